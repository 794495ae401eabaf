"""Detectors of watermarks, with names, arguments and scores of Transformers 5.23; all run on the host."""

import functools
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxpipe.common.outputs import ModelOutput
from jaxpipe.generation.greenlist import green_lists, green_tokens
from jaxpipe.generation.settle_watermark import as_watermark
from jaxpipe.generation.synthid import SynthIDTextWatermarkLogitsProcessor
from jaxpipe.generation.watermarking import WatermarkingConfig


@dataclass
class WatermarkDetectorOutput:
    """What a `WatermarkDetector` finds, each (B,).

    Attributes:
        num_tokens_scored: tokens that could bear the mark.
        num_green_tokens: those of them that are green.
        green_fraction: their part.
        z_score: standard deviations by which there are more than by chance.
        p_value: probability that there are as many by chance.
        prediction: whether the text is marked.
        confidence: 1 - ``p_value``.
    """

    num_tokens_scored: np.ndarray | None = None
    num_green_tokens: np.ndarray | None = None
    green_fraction: np.ndarray | None = None
    z_score: np.ndarray | None = None
    p_value: np.ndarray | None = None
    prediction: np.ndarray | None = None
    confidence: np.ndarray | None = None


class WatermarkDetector:
    """Tells whether texts bear the mark of green tokens.

    It finds the marks of `generate`, here on any device, and of Transformers on a CPU. Transformers on a GPU draws
    other green tokens, which only the same kind of device can tell.

    Args:
        model_config: of the model that generated, for its vocabulary and the token that texts start with.
        device: accepted, without effect.
        watermarking_config: what the text was generated with, a `WatermarkingConfig` or a mapping of its entries.
        ignore_repeated_ngrams: count every group of tokens once.
        max_cache_size: groups of tokens whose answer is kept.

    Raises:
        ValueError: the config is of another watermark, or a value is out of range.
    """

    def __init__(
        self,
        model_config: Any,
        device: Any = None,
        watermarking_config: Any = None,
        ignore_repeated_ngrams: bool = False,
        max_cache_size: int = 128,
    ):
        config = as_watermark(watermarking_config)
        if not isinstance(config, WatermarkingConfig):
            raise ValueError(
                "watermarking_config is a SynthIDTextWatermarkingConfig; its marks are found by "
                "SynthIDTextWatermarkDetector."
            )
        decoder = getattr(model_config, "is_encoder_decoder", False)
        self.bos_token_id = getattr(model_config, "decoder_start_token_id" if decoder else "bos_token_id", None)
        self.greenlist_ratio = config.greenlist_ratio
        self.ignore_repeated_ngrams = ignore_repeated_ngrams
        self._config, self._vocab_size = config, int(model_config.vocab_size)
        self._lists = green_lists(config.hashing_key, self._vocab_size, green_tokens(config, self._vocab_size))
        self._is_green = functools.lru_cache(maxsize=max_cache_size)(self._score)

    def __call__(
        self, input_ids: Any, z_threshold: float = 3.0, return_dict: bool = False
    ) -> WatermarkDetectorOutput | np.ndarray:
        """Scores texts.

        Args:
            input_ids: (B, T) int, best without the prompt, which bears no mark.
            z_threshold: deviations above which a text counts as marked.
            return_dict: return all scores.

        Returns:
            (B,) bool, or a `WatermarkDetectorOutput`.

        Raises:
            ValueError: ids are out of range, texts are too short, or only some start with the start token.
        """
        ids = self._checked(input_ids)
        scored, green = np.zeros(len(ids)), np.zeros(len(ids))
        # The candidate is among the tokens that decide with "selfhash", and follows them with "lefthash".
        size = self._config.context_width + (self._config.seeding_scheme == "lefthash")
        for i, row in enumerate(ids.tolist()):
            counts = Counter(tuple(row[start : start + size]) for start in range(len(row) - size + 1))
            if self.ignore_repeated_ngrams:
                counts = Counter(dict.fromkeys(counts, 1))
            scored[i] = sum(counts.values())
            green[i] = sum(number for ngram, number in counts.items() if self._is_green(ngram))
        ratio = self.greenlist_ratio
        z_score = (green - ratio * scored) / np.sqrt(scored * ratio * (1 - ratio))
        prediction = z_score > z_threshold
        if not return_dict:
            return prediction
        p_value = np.asarray([0.5 * math.erfc(z / math.sqrt(2)) for z in z_score])
        return WatermarkDetectorOutput(
            num_tokens_scored=scored,
            num_green_tokens=green,
            green_fraction=green / scored,
            z_score=z_score,
            p_value=p_value,
            prediction=prediction,
            confidence=1 - p_value,
        )

    def _score(self, ngram: tuple[int, ...]) -> bool:
        if self._config.seeding_scheme == "selfhash":
            return self._lists.is_green(ngram)
        return bool(self._lists.after(ngram[-2])[ngram[-1]])

    def _checked(self, input_ids: Any) -> np.ndarray:
        ids = np.asarray(input_ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
            raise ValueError(f"input_ids of shape {ids.shape} and dtype {ids.dtype}: expected token ids (B, T).")
        if ids.min() < 0 or ids.max() >= self._vocab_size:
            raise ValueError(
                f"input_ids hold {ids.min()} to {ids.max()}: expected token ids from 0 to {self._vocab_size - 1}."
            )
        starts = ids[:, 0] == self.bos_token_id if self.bos_token_id is not None else np.zeros(len(ids), bool)
        if starts.any() != starts.all():
            raise ValueError(
                f"Some rows of input_ids start with the start token {self.bos_token_id} and some do not; tokenize all "
                "in the same way."
            )
        ids = ids[:, 1:] if starts.all() else ids
        width = self._config.context_width
        if ids.shape[1] <= width:
            raise ValueError(
                f"input_ids have {ids.shape[1]} tokens without the start token; the first {width} (context_width) bear "
                f"no mark, so at least {width + 1} are needed."
            )
        return ids


class BayesianDetectorConfig:
    """Settings of a `BayesianDetectorModel`.

    Args:
        watermarking_depth: number of keys of the watermark.
        base_rate: probability that a text is marked, before it is read.
        model_name, watermarking_config: what the detector was trained for; not read here.
        **kwargs: other entries of config.json, which are left out.
    """

    def __init__(
        self,
        watermarking_depth: int | None = None,
        base_rate: float = 0.5,
        *,
        model_name: str | None = None,
        watermarking_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.watermarking_depth, self.base_rate = watermarking_depth, base_rate
        self.model_name, self.watermarking_config = model_name, watermarking_config


class BayesianWatermarkDetectorModelOutput(ModelOutput):
    """``posterior_probabilities`` (B,) float32; ``loss`` is None, as nothing is trained here."""

    loss: np.ndarray | None = None
    posterior_probabilities: np.ndarray | None = None


class BayesianDetectorModel:
    """Tells from the values of its tokens how likely a text bears a SynthID mark; trained elsewhere.

    A logistic regression for each round of the tournament gives the probability that its two tokens differed, and so
    how likely the values are in a marked text (Dathathri et al. 2024, supplement, "Bayesian scoring function").

    Args:
        config: its settings.
        beta: (1, 1, depth), biases.
        delta: (1, 1, depth, depth), weights of the values of the rounds before.
        prior: (1,), probability that a text is marked; ``config.base_rate`` if None.

    Raises:
        ValueError: shapes do not agree with the depth.
    """

    def __init__(self, config: BayesianDetectorConfig, beta: Any, delta: Any, prior: Any = None):
        self.config = config
        self.beta = np.asarray(beta, np.float64).reshape(-1)  # (depth,)
        depth = len(self.beta)
        if np.shape(delta)[-2:] != (depth, depth) or config.watermarking_depth not in (None, depth):
            raise ValueError(
                f"beta of {depth} and delta of shape {np.shape(delta)} do not fit watermarking_depth="
                f"{config.watermarking_depth}."
            )
        # Each round reads the values of those before it.
        self.delta = np.tril(np.asarray(delta, np.float64).reshape(depth, depth), -1)
        self.prior = float(np.reshape(config.base_rate if prior is None else prior, ()))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> "BayesianDetectorModel":
        """Loads a detector that Transformers has saved.

        Args:
            name_or_path: a Hub id or a directory, with config.json and model.safetensors.
            **kwargs: Hub arguments, such as ``revision`` and ``token``.

        Raises:
            OSError: a file is missing.
            ValueError: a weight is missing, or has another shape.
        """
        from jaxpipe.checkpoint.resolve import resolve

        checkpoint = resolve(name_or_path, **kwargs)
        config = BayesianDetectorConfig(**(checkpoint.read_json("config.json") or {}))
        names = [f"likelihood_model_watermarked.{name}" for name in ("beta", "delta")] + ["prior"]
        source = checkpoint.weights()
        missing = [name for name in names if name not in source.infos]
        if missing:
            raise ValueError(f"{checkpoint.name} has no weight {missing[0]!r}: it is no detector of SynthID marks.")
        beta, delta, prior = (np.array(source.read(name), np.float64) for name in names)
        source.close()
        return cls(config, beta, delta, prior)

    def __call__(
        self, g_values: Any, mask: Any, return_dict: bool = False
    ) -> tuple[np.ndarray] | BayesianWatermarkDetectorModelOutput:
        """Returns how likely texts are marked.

        Args:
            g_values: (B, T, depth) of 0 and 1.
            mask: (B, T), 1 at tokens that count.
            return_dict: return the output object.

        Returns:
            (B,) float32 in a tuple, or the output.

        Raises:
            ValueError: shapes do not agree.
        """
        values, counted = np.asarray(g_values, np.float64), np.asarray(mask, np.float64)
        if values.ndim != 3 or values.shape[2] != len(self.beta) or counted.shape != values.shape[:2]:
            raise ValueError(
                f"g_values of shape {values.shape} and mask of shape {counted.shape}: expected (B, T, "
                f"{len(self.beta)}) and (B, T)."
            )
        two = _sigmoid(values @ self.delta.T + self.beta)  # (B, T, depth), that the two tokens of a match differ
        marked = 0.5 * ((values + 0.5) * two + 1.0 - two)
        surprise = np.sum((np.log(np.maximum(marked, 1e-30)) - np.log(0.5)) * counted[:, :, None], axis=(1, 2))
        prior = min(max(self.prior, 1e-5), 1 - 1e-5)
        posterior = _sigmoid(surprise + math.log(prior) - math.log(1 - prior)).astype(np.float32)
        return BayesianWatermarkDetectorModelOutput(posterior_probabilities=posterior) if return_dict else (posterior,)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


class SynthIDTextWatermarkDetector:
    """Tells how likely texts bear a SynthID mark.

    Args:
        detector_module: a trained detector.
        logits_processor: made with the settings of the watermark.
        tokenizer: for its end-of-sequence token, after which nothing counts.
    """

    def __init__(
        self,
        detector_module: BayesianDetectorModel,
        logits_processor: SynthIDTextWatermarkLogitsProcessor,
        tokenizer: Any,
    ):
        self.detector_module, self.logits_processor, self.tokenizer = detector_module, logits_processor, tokenizer

    def __call__(self, tokenized_outputs: Any) -> Any:
        """Scores texts (B, T) int; returns what the module does, (B,) float32 in a tuple."""
        processor = self.logits_processor
        eos = self.tokenizer.eos_token_id
        ids = np.asarray(tokenized_outputs)
        fresh = processor.compute_context_repetition_mask(ids)
        before_end = processor.compute_eos_token_mask(ids, -1 if eos is None else eos)[:, processor.ngram_len - 1 :]
        return self.detector_module(processor.compute_g_values(ids), fresh * before_end)
