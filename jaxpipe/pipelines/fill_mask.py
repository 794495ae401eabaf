"""Fill-mask: the likeliest tokens at a text's masks."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.common.errors import PipelineException
from jaxpipe.common.logging import logger
from jaxpipe.pipelines.base import Parameters, Pipeline
from jaxpipe.pipelines.encode import check_tokenizer_arguments, encode, encode_many
from jaxpipe.pipelines.inputs import described
from jaxpipe.pipelines.scores import checked_top_k, finite, largest, logits_of, softmax, unknown_parameter

_LOADER = "AutoModelForMaskedLM"
_PARAMETERS = ("top_k", "targets", "tokenizer_kwargs")


class FillMaskPipeline(Pipeline):
    """Gives the likeliest tokens in the place of a text's mask, or of each of its masks.

    Construct it with `pipeline`.

    >>> fill = pipeline("fill-mask")
    >>> fill("The capital of France is <mask>.", top_k=1)
    [{'score': ..., 'token': 2201, 'token_str': ' Paris', 'sequence': 'The capital of France is Paris.'}]

    A score is the probability of the token among the whole vocabulary, also where ``targets`` are given. Several masks
    are filled one by one, each with the others left in the text. Texts are not cut unless ``tokenizer_kwargs`` has
    ``truncation``: what is longer than the model's positions is an error.

    Raises:
        ValueError: there is no tokenizer.
        PipelineException: the tokenizer has no mask token.
    """

    _load_tokenizer: ClassVar[bool | None] = True
    _forwards_at_once: ClassVar[bool] = True

    def __init__(self, model: Any, tokenizer: Any = None, task: str = "fill-mask", **parameters: Any) -> None:
        if tokenizer is None:
            raise ValueError("fill-mask needs a tokenizer: give tokenizer=.")
        if tokenizer.mask_token_id is None:
            raise PipelineException(task, _type_of(model), "The tokenizer does not define a `mask_token`.")
        super().__init__(model, tokenizer, task, **parameters)

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        """Fills masks.

        Args:
            inputs: a text with the tokenizer's mask token, once or more; a list of texts; or a data set, generator or
                iterator of texts.
            **parameters: ``batch_size`` and the following; also as defaults in the constructor.
                top_k: number of tokens for each mask (5), at most as many as there are targets.
                targets: a word or a list of words, the only ones that are scored. Of a word that is not in the
                    vocabulary the first token counts, with a warning.
                tokenizer_kwargs: arguments of the tokenizer.

        Returns:
            For a text with one mask a list of records ``{"score": float, "token": int, "token_str": str,
            "sequence": str}``, the likeliest first; with several masks a list of such lists, whose ``sequence`` holds
            the special tokens. For a list of texts a list of these, but the result itself for a list of one text; an
            iterator of them for a data set or generator.

        Raises:
            TypeError: an input is no text, or a parameter is unknown.
            ValueError: a parameter is wrong, a text has too many tokens, or a score is NaN.
            PipelineException: a text has no mask; also a ValueError.
        """
        result = super().__call__(inputs, **parameters)
        return result[0] if isinstance(inputs, (list, tuple)) and len(inputs) == 1 else result

    def check_item(self, item: Any, where: str) -> Any:
        """Returns a text as it is; a list of words only where the tokenizer is told of them, in preprocess."""
        if isinstance(item, str):
            return item
        if isinstance(item, (list, tuple)) and item and all(isinstance(word, str) for word in item):
            return list(item)
        hint = " For a column of a data set use KeyDataset." if isinstance(item, Mapping) else ""
        raise TypeError(f"{where} is {described(item)}; expected a text (str).{hint}")

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        targets: str | Sequence[str] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> Parameters:
        for name in unknown:
            raise unknown_parameter(
                name, self._named, _PARAMETERS, " Arguments of the tokenizer go to tokenizer_kwargs=."
            )
        preprocess: dict[str, Any] = {}
        if tokenizer_kwargs is not None:
            if not isinstance(tokenizer_kwargs, Mapping):
                raise TypeError(f"tokenizer_kwargs= takes a mapping, not {described(tokenizer_kwargs)}.")
            check_tokenizer_arguments(self.tokenizer, tokenizer_kwargs, self._named)
            preprocess["tokenizer_kwargs"] = dict(tokenizer_kwargs)
        postprocess: dict[str, Any] = {}
        if targets is not None:
            postprocess["target_ids"] = self._target_ids(targets)
        if top_k is not None:
            postprocess["top_k"] = checked_top_k(top_k)
        return preprocess, {}, postprocess

    def _target_ids(self, targets: str | Sequence[str]) -> np.ndarray:
        """Returns the ids of the targets, each once, in ascending order."""
        words = [targets] if isinstance(targets, str) else targets
        if not isinstance(words, (list, tuple, set, frozenset)):
            raise TypeError(f"targets= takes a word or a list of words, not {described(targets)}.")
        vocabulary = self.tokenizer.get_vocab()
        ids: set[int] = set()
        for word in words:
            if not isinstance(word, str):
                raise TypeError(f"targets= holds {described(word)}; expected words (str).")
            found = vocabulary.get(word)
            found = self._first_id(word) if found is None else found
            ids.update([] if found is None else [found])
        if not ids:
            raise ValueError(f"targets={targets!r} names no token; give at least one word, or leave targets= out.")
        return np.array(sorted(ids))

    def _first_id(self, word: str) -> int | None:
        """Returns the id of the first token of a word that is not in the vocabulary, None where it has no token."""
        ids = self.tokenizer(word, add_special_tokens=False, max_length=1, truncation=True)["input_ids"]
        what = f"The target {word!r} is not in the model's vocabulary"
        if not ids:
            logger.warning("%s and has no tokens; it is left out.", what)
            return None
        logger.warning("%s; its first token %r stands for it.", what, self.tokenizer.convert_ids_to_tokens(ids[0]))
        return ids[0]

    def preprocess(self, text: str | list[str], tokenizer_kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns the tokenizer's arrays (1, T), the ids as a list, and the positions of the masks."""
        row = encode(self.tokenizer, text, limit=self._position_limit, **(tokenizer_kwargs or {}))
        return self._with_masks(row, text)

    def preprocess_batch(self, items: list[Any], tokenizer_kwargs: Mapping[str, Any] | None = None) -> list[Any]:
        """Returns what `preprocess` returns for each text."""
        if not all(isinstance(item, str) for item in items):
            return super().preprocess_batch(items, tokenizer_kwargs=tokenizer_kwargs)
        rows = encode_many(self.tokenizer, items, limit=self._position_limit, **(tokenizer_kwargs or {}))
        return [self._with_masks(row, text) for row, text in zip(rows, items, strict=True)]

    def _with_masks(self, row: dict[str, np.ndarray], text: str | list[str]) -> dict[str, Any]:
        """Adds the ids as a list, and the positions of the masks.

        Raises:
            PipelineException: there is no mask.
        """
        ids = row["input_ids"][0]
        masks = np.flatnonzero(ids == self.tokenizer.mask_token_id).tolist()
        if not masks:
            mask = self.tokenizer.mask_token
            raise PipelineException(
                self.task,
                _type_of(self.model),
                f"No mask_token ({mask}) found on the input {described(text)}; put {mask} where a token is wanted, and "
                "see that truncation leaves it in.",
            )
        return {**row, "ids": ids.tolist(), "masks": masks}

    def _forward(self, model_inputs: dict[str, Any], **_: Any) -> dict[str, Any]:
        rows = {name: model_inputs.pop(name) for name in ("ids", "masks")}
        logits = logits_of(self.model, self.model(**model_inputs), None, _LOADER)  # (B, T, V)
        # Of a power of two masks, so that few shapes are compiled.
        count = 1 << (max(map(len, rows["masks"])) - 1).bit_length()
        positions = np.zeros((len(logits), count), np.int32)
        for number, masks in enumerate(rows["masks"]):
            positions[number, : len(masks)] = masks
        return {"at_masks": _at(logits, positions), **rows}

    def postprocess(
        self, model_outputs: Mapping[str, Any], top_k: int = 5, target_ids: np.ndarray | None = None
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Returns the records of the only mask, or a list with those of each mask."""
        ids, masks = model_outputs["ids"], model_outputs["masks"]
        logits = np.asarray(model_outputs["at_masks"][0, : len(masks)], np.float32)  # (masks, V)
        scores = finite(softmax(logits), "a token")
        tokens = np.arange(scores.shape[1]) if target_ids is None else target_ids
        if tokens[-1] >= scores.shape[1]:
            raise ValueError(
                f"A target has the id {tokens[-1]} in the tokenizer, but the model has {scores.shape[1]} tokens."
            )
        if target_ids is None and top_k > len(tokens):
            raise ValueError(f"top_k={top_k} is more than the {len(tokens)} tokens of the model.")
        scores = scores[:, tokens]
        filled = [
            [
                self._record(ids, position, int(tokens[index]), float(row[index]), only=len(masks) == 1)
                for index in largest(row, min(top_k, len(tokens)))
            ]
            for position, row in zip(masks, scores, strict=True)
        ]
        return filled[0] if len(filled) == 1 else filled

    def _record(self, ids: list[int], position: int, token: int, score: float, only: bool) -> dict[str, Any]:
        """Returns what is said of a token at a position; ``only``: there is no other mask to be kept in the text."""
        sequence = [*ids[:position], token, *ids[position + 1 :]]
        sequence = [index for index in sequence if index != self.tokenizer.pad_token_id]
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token]),
            "sequence": self.tokenizer.decode(sequence, skip_special_tokens=only),
        }


@jax.jit
def _at(logits: jax.Array, positions: jax.Array) -> jax.Array:
    """Takes the logits (B, T, V) at positions (B, M), so that not all of them are copied to the host: (B, M, V)."""
    return jnp.take_along_axis(logits, positions[:, :, None], axis=1, mode="clip")


def _type_of(model: Any) -> str:
    config = getattr(model, "config", None)
    return getattr(config, "model_type", None) or type(model).__name__
