"""What a logits processor is, and what it is told of the tokens so far."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

Array = jax.Array

NO_TOKEN = -1
"""Stands in histories where there is no token."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepState:
    """What is known when a token is chosen.

    Attributes:
        tokens: (B, S) int32, prompt and new tokens.
        valid: (B, S) bool, False at padding and at slots that are not yet written.
        prompt_lengths: (B,) int32, tokens of each prompt without padding.
        step: () int32, new tokens so far; (B, 1) where rows differ.
    """

    tokens: Array
    valid: Array
    prompt_lengths: Array
    step: Array

    def history(self) -> tuple[Array, Array]:
        """Each row's tokens without gaps: (B, S) int32 from column 0 on, then `NO_TOKEN`; and their number (B,)."""
        rows = jnp.arange(self.tokens.shape[0])[:, None]
        columns = jnp.where(self.valid, jnp.cumsum(self.valid, axis=1) - 1, self.tokens.shape[1])  # (B, S)
        empty = jnp.full_like(self.tokens, NO_TOKEN)
        return empty.at[rows, columns].set(self.tokens, mode="drop"), jnp.sum(self.valid, axis=1)


class LogitsProcessor(Protocol):
    """A traceable change of the logits."""

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns the changed logits.

        Args:
            logits: (B, V) float32.
            state: the tokens so far.
        """
        ...


def last_tokens(history: Array, lengths: Array, count: int, absent: int) -> Array:
    """Returns the ``count`` last tokens of histories, (B, count) int32 with the last first; ``absent`` where too few.

    Args:
        history: (B, S) int32 from column 0 on.
        lengths: (B,) int32, tokens of each.
        count: static.
        absent: stands where a history is shorter.
    """
    columns = lengths[:, None] - 1 - jnp.arange(count)  # (B, count)
    tokens = jnp.take_along_axis(history, jnp.maximum(columns, 0), axis=1)
    return jnp.where(columns >= 0, tokens, absent)


def mask_of(ids: Array, vocab_size: int) -> Array:
    """Returns (V,) bool, True at token ids (n,); ids that are negative or out of range are left out."""
    return jnp.zeros(vocab_size, bool).at[jnp.where(ids < 0, vocab_size, ids)].set(True, mode="drop")


def drop(logits: Array, dropped: Array) -> Array:
    """Returns logits (B, V) with -inf where ``dropped``, which is broadcast to them."""
    return jnp.where(dropped, -jnp.inf, logits)


def bucket(count: int, smallest: int = 4) -> int:
    """Returns the static size for a number of entries: a power of two, so that few sizes compile."""
    return max(smallest, 1 << max(count - 1, 0).bit_length())
