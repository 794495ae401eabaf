"""The watermark SynthID-Text: the traced processor, and the values that its detector reads.

After Dathathri et al. 2024 (doi 10.1038/s41586-024-08025-4), with the hash of Transformers 5.23
(``SynthIDTextWatermarkLogitsProcessor``): a text that is marked here bears the mark that is made there. That is not
the hash of Google's own products.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpipe.generation import words64
from jaxpipe.generation.settle_watermark import as_watermark
from jaxpipe.generation.step import StepState
from jaxpipe.generation.torch_random import randint
from jaxpipe.generation.watermarking import SynthIDTextWatermarkingConfig
from jaxpipe.generation.words64 import Word

Array = jax.Array

# A linear congruential generator, with the parameters of the C library musl.
_MULTIPLIER = 6364136223846793005
_INCREMENT = 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SynthID:
    """Marks scores by a tournament.

    Only new tokens are part of contexts; before the first of them stand zeros.

    Attributes:
        keys: (depth, 2) uint32, the low and high half of the key of each round.
        table: (n,) bool, the random values.
        history: () int32, contexts that are remembered.
        first: () int32, new tokens before which nothing is marked and no context is remembered.
        uniform: () bool, mark equal scores instead of the model's.
        context: static, tokens of a context.
    """

    keys: Any
    table: Any
    history: Any
    first: Any
    uniform: Any
    context: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, config: SynthIDTextWatermarkingConfig) -> "SynthID":
        """Makes the processor of a checked config."""
        context = config.ngram_len - 1
        return cls(
            keys=np.asarray([words64.halves(int(key)) for key in config.keys], np.uint32),
            table=_table(config).astype(bool),
            history=np.int32(config.context_history_size),
            first=np.int32(context if config.skip_first_ngram_calls else 0),
            uniform=np.bool_(config.debug_mode),
            context=context,
        )

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns marked log-probabilities (B, V), or the logits where the context was there before."""
        scores = jnp.where(self.uniform, jnp.ones_like(logits), logits)
        contexts = self._contexts(state)
        columns = jnp.arange(state.tokens.shape[1])
        step = jnp.broadcast_to(jnp.reshape(state.step, (-1, 1)), (len(logits), 1))
        own = jnp.take_along_axis(contexts[0], step, axis=1), jnp.take_along_axis(contexts[1], step, axis=1)  # (B, 1)
        remembered = (columns < step) & (columns >= jnp.maximum(self.first, step - self.history))  # (B, S)
        again = jnp.any(_same(contexts, own) & remembered, axis=1, keepdims=True)
        # The memory is filled with zeros at first.
        none = jnp.uint32(0), jnp.uint32(0)
        again = again | (_same(own, none) & (step - self.first < self.history))
        candidates = jnp.arange(logits.shape[1], dtype=jnp.uint32)[None]
        marked = self._tournament(scores, _hash(own, (candidates, jnp.zeros_like(candidates))))
        return jnp.where(again | (step < self.first), scores, marked)

    def _contexts(self, state: StepState) -> Word:
        """The hash of the context of each new token, the first in column 0; (B, S) each half."""
        history, _ = state.history()
        columns = jnp.arange(history.shape[1])
        start = state.prompt_lengths[:, None]
        shape = history.shape
        found = jnp.ones(shape, jnp.uint32), jnp.zeros(shape, jnp.uint32)
        for back in range(self.context, 0, -1):
            place = columns - back  # among the new tokens
            tokens = jnp.take_along_axis(history, jnp.clip(start + place, 0, shape[1] - 1), axis=1)
            tokens = jnp.where(place >= 0, tokens, 0).astype(jnp.uint32)
            found = _hash(found, (tokens, jnp.zeros_like(tokens)))
        return found

    def _tournament(self, scores: Array, ngrams: Word) -> Array:
        """Log-probabilities (B, V) after as many rounds as there are keys; `ngrams` are hashes of the candidates."""
        size = self.table.shape[0]
        table = jnp.asarray(self.table)

        def play(probabilities: Array, key: Array) -> tuple[Array, None]:
            hashed = _hash(ngrams, (key[0], key[1]))
            values = table[words64.remainder(hashed, size)].astype(jnp.float32)
            mass = jnp.sum(values * probabilities, axis=1, keepdims=True)
            return probabilities * (1.0 + values - mass), None

        probabilities, _ = lax.scan(play, jax.nn.softmax(scores, axis=1), jnp.asarray(self.keys))
        logs = jnp.log(probabilities)
        return jnp.where(jnp.isfinite(logs), logs, np.finfo(np.float32).min)


def _hash(word: Word, data: Word) -> Word:
    low, high = words64.multiply(words64.add(word, data), _MULTIPLIER)
    return words64.add((low, high), (jnp.uint32(_INCREMENT), jnp.uint32(0)))


def _same(a: Word, b: Word) -> Array:
    return (a[0] == b[0]) & (a[1] == b[1])


def _table(config: SynthIDTextWatermarkingConfig) -> np.ndarray:
    return randint(config.sampling_table_seed, 2, config.sampling_table_size)


class SynthIDTextWatermarkLogitsProcessor:
    """The values of a watermark in a text, on the host; `generate` marks with ``watermarking_config=``.

    Args:
        ngram_len, keys, sampling_table_size, sampling_table_seed, context_history_size, skip_first_ngram_calls,
            debug_mode: as of `SynthIDTextWatermarkingConfig`.
        device: accepted, without effect.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        ngram_len: int,
        keys: Sequence[int],
        sampling_table_size: int,
        sampling_table_seed: int,
        context_history_size: int,
        device: Any = None,
        skip_first_ngram_calls: bool = False,
        debug_mode: bool = False,
    ):
        entries = {name: value for name, value in locals().items() if name not in ("self", "device", "__class__")}
        config: Any = as_watermark({**entries, "keys": list(keys)})
        self.ngram_len: int = config.ngram_len
        self.keys = np.asarray(config.keys, np.int64).astype(np.uint64)
        self.sampling_table = _table(config)
        self.context_history_size: int = config.context_history_size

    def compute_g_values(self, input_ids: Any) -> np.ndarray:
        """Returns the random values of each token after the first ones.

        Args:
            input_ids: (B, T) int.

        Returns:
            (B, T - (ngram_len - 1), depth) int64 of 0 and 1.
        """
        ngrams = self._windows(self._checked(input_ids), self.ngram_len)  # (B, n, ngram_len)
        hashes = self._accumulate(ngrams)[:, :, None]
        keyed = self._step(hashes, self.keys)  # (B, n, depth)
        return self.sampling_table[keyed.view(np.int64) % len(self.sampling_table)]

    def compute_context_repetition_mask(self, input_ids: Any) -> np.ndarray:
        """Returns which tokens after the first ones stand in a context that was not there before.

        Args:
            input_ids: (B, T) int.

        Returns:
            (B, T - (ngram_len - 1)) bool.
        """
        contexts = self._windows(self._checked(input_ids)[:, :-1], self.ngram_len - 1)
        hashes = self._accumulate(contexts)  # (B, n)
        fresh = np.ones(hashes.shape, bool)
        for row, own in enumerate(hashes.tolist()):
            last: dict[int, int] = {}
            for place, number in enumerate(own):
                # The memory is filled with zeros at first.
                before = last.get(number, -1 if number == 0 and place < self.context_history_size else None)
                remembered = before is not None and (before < 0 or place - before <= self.context_history_size)
                fresh[row, place] = not remembered
                last[number] = place
        return fresh

    def compute_eos_token_mask(self, input_ids: Any, eos_token_id: int) -> np.ndarray:
        """Returns which tokens of (B, T) stand before the first end-of-sequence token, (B, T) int64 of 0 and 1."""
        ids = self._checked(input_ids, 1)
        return (np.cumsum(ids == eos_token_id, axis=1) == 0).astype(np.int64)

    def expected_mean_g_value(self, vocab_size: int, coinflip_prob: float = 0.5) -> float:
        """Returns the mean value of tokens that one round has marked, where all tokens are equally likely.

        Args:
            vocab_size: V.
            coinflip_prob: of a value to be 1.
        """
        return coinflip_prob + coinflip_prob * (1 - coinflip_prob) * (1 - 1 / vocab_size)

    def _checked(self, input_ids: Any, shortest: int | None = None) -> np.ndarray:
        ids, shortest = np.asarray(input_ids), self.ngram_len if shortest is None else shortest
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.shape[1] < shortest:
            raise ValueError(
                f"input_ids of shape {ids.shape} and dtype {ids.dtype}: expected token ids (B, T) with T of at least "
                f"{shortest}."
            )
        return ids

    @staticmethod
    def _windows(ids: np.ndarray, width: int) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(ids.astype(np.int64), width, axis=1)

    def _accumulate(self, tokens: np.ndarray) -> np.ndarray:
        """Hashes the last axis of tokens."""
        found = np.ones(tokens.shape[:-1], np.uint64)
        for place in range(tokens.shape[-1]):
            found = self._step(found, tokens[..., place].astype(np.uint64))
        return found

    @staticmethod
    def _step(hashes: np.ndarray, data: np.ndarray) -> np.ndarray:
        return (hashes + data) * np.uint64(_MULTIPLIER) + np.uint64(_INCREMENT)
