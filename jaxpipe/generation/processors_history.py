"""Logits processors that look back: repetition penalties, n-grams that may not come again, biased and banned words.

A history is what `StepState.history` returns: padding is no part of it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.generation.step import NO_TOKEN, StepState, bucket, drop, last_tokens

Array = jax.Array

# Differs from NO_TOKEN, so that nothing matches where both sides have no token.
_NOTHING = -2


def _seen(ids: Array, vocab_size: int) -> Array:
    """Returns (B, V) bool, True at each row's token ids (B, S); ids out of range are left out."""
    rows = jnp.arange(ids.shape[0])[:, None]
    inside = jnp.where(ids < 0, vocab_size, ids)
    return jnp.zeros((ids.shape[0], vocab_size), bool).at[rows, inside].set(True, mode="drop")


def _penalised(logits: Array, seen: Array, penalty: Array) -> Array:
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)  # (B, V)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RepetitionPenalty:
    """Makes tokens of the prompt and of the answer so far less likely (Keskar et al. 2019, arXiv:1909.05858).

    Attributes:
        penalty: () float32, divides positive and multiplies negative logits.
    """

    penalty: Any

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns the penalised logits (B, V)."""
        return _penalised(logits, _seen(jnp.where(state.valid, state.tokens, NO_TOKEN), logits.shape[1]), self.penalty)


def source_of(source: Array | None, state: StepState) -> Array:
    """Returns what the answer is to keep to, (B, S) int32 from column 0 on, then `NO_TOKEN`.

    Args:
        source: (R, S), the encoder's tokens of R rows, each for B / R rows in a row; None is the decoder's prompt.
        state: of the decoder.
    """
    if source is not None:
        return jnp.repeat(source, state.tokens.shape[0] // source.shape[0], axis=0)
    history, _ = state.history()
    return jnp.where(jnp.arange(history.shape[1]) < state.prompt_lengths[:, None], history, NO_TOKEN)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncoderRepetitionPenalty:
    """Makes tokens of the source more likely, against inventions.

    Attributes:
        inverse: () float32, 1 / penalty; divides positive and multiplies negative logits.
        source: as `source_of` takes it.
    """

    inverse: Any
    source: Any

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns the changed logits (B, V)."""
        return _penalised(logits, _seen(source_of(self.source, state), logits.shape[1]), self.inverse)


def _continuations(source: Array, history: Array, lengths: Array, size: Array, most: int) -> Array:
    """Returns the tokens (B, S) that complete an n-gram of the source after the history's end, `NO_TOKEN` elsewhere.

    Args:
        source: (B, S) int32, tokens and then `NO_TOKEN`.
        history: (B, T) int32 from column 0 on.
        lengths: (B,) int32 of the histories.
        size: () int32, n.
        most: a static number of at least n - 1.
    """
    most = min(most, source.shape[1])
    context = last_tokens(history, lengths, most, _NOTHING)  # (B, most)
    back = jnp.arange(most)
    columns = jnp.arange(source.shape[1])[:, None] - 1 - back  # (S, most), of the tokens before each
    before = jnp.where(columns >= 0, source[:, jnp.maximum(columns, 0)], NO_TOKEN)  # (B, S, most)
    matches = jnp.all((before == context[:, None]) | (back >= size - 1), axis=-1)  # (B, S)
    return jnp.where(matches & (size <= source.shape[1]), source, NO_TOKEN)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoRepeatNgram:
    """Lets no sequence of n tokens of prompt and answer come again (Paulus et al. 2017, arXiv:1705.04304).

    Attributes:
        size: () int32, n.
        most: a static number of at least n - 1.
    """

    size: Any
    most: int = dataclasses.field(metadata={"static": True})

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with -inf at tokens that would repeat."""
        history, lengths = state.history()
        return drop(logits, _seen(_continuations(history, history, lengths, self.size, self.most), logits.shape[1]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncoderNoRepeatNgram:
    """Lets no sequence of n tokens of the source come in the answer.

    Attributes:
        size: () int32, n.
        source: as `source_of` takes it.
        most: a static number of at least n - 1.
    """

    size: Any
    source: Any
    most: int = dataclasses.field(metadata={"static": True})

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with -inf at tokens that would repeat."""
        history, lengths = state.history()
        source = source_of(self.source, state)
        return drop(logits, _seen(_continuations(source, history, lengths, self.size, self.most), logits.shape[1]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SequenceBias:
    """Adds a bias to the token that completes a sequence of tokens; with -inf, the sequence never comes.

    Attributes:
        contexts: (N, K) int32, each sequence's tokens before its last, backward; `NO_TOKEN` before its start.
        last: (N,) int32, each sequence's last token; -1 where unused.
        biases: (N,) float32.
    """

    contexts: Any
    last: Any
    biases: Any

    @classmethod
    def of(cls, biases: Sequence[tuple[Sequence[int], float]]) -> "SequenceBias":
        """Makes the processor from sequences of token ids, each with its bias."""
        count = bucket(len(biases))
        contexts = np.full((count, bucket(max(len(ids) for ids, _ in biases) - 1, smallest=1)), NO_TOKEN, np.int32)
        last, values = np.full(count, NO_TOKEN, np.int32), np.zeros(count, np.float32)
        for i, (ids, bias) in enumerate(biases):
            contexts[i, : len(ids) - 1] = ids[-2::-1]
            last[i], values[i] = ids[-1], bias
        return cls(contexts, last, values)

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns the biased logits (B, V)."""
        history, lengths = state.history()
        ends = last_tokens(history, lengths, self.contexts.shape[1], _NOTHING)  # (B, K)
        contexts = jnp.asarray(self.contexts)
        completes = jnp.all((contexts == NO_TOKEN) | (contexts == ends[:, None]), axis=-1)  # (B, N)
        columns = jnp.where(jnp.asarray(self.last) < 0, logits.shape[1], self.last)
        added = jnp.where(completes, self.biases, 0.0)
        return logits + jnp.zeros_like(logits).at[:, columns].add(added, mode="drop")
