"""Logits processors for certain tokens or steps: what is forced or suppressed, and ends that come late or soon."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.generation.step import StepState, bucket, drop, mask_of

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MinNewTokens:
    """Allows no end-of-sequence token before a number of new tokens.

    Attributes:
        min_new_tokens: () int32.
        eos_ids: (n,) int32, filled up with -1.
    """

    min_new_tokens: Any
    eos_ids: Any

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with -inf at the end-of-sequence tokens while it is too early."""
        return drop(logits, mask_of(self.eos_ids, logits.shape[1]) & (state.step < self.min_new_tokens))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ForcedTokens:
    """Allows none but certain tokens at one step.

    Attributes:
        step: () int32, new tokens before it.
        ids: (n,) int32, filled up with -1.
    """

    step: Any
    ids: Any

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) that at the step are 0 at the tokens and -inf elsewhere."""
        forced = jnp.where(mask_of(self.ids, logits.shape[1]), 0.0, -jnp.inf)  # (V,)
        return jnp.where(state.step == self.step, forced, logits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RemoveInvalid:
    """Replaces NaN by 0, and infinite logits by the largest and smallest float32."""

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns finite logits (B, V)."""
        largest = np.finfo(np.float32).max
        return jnp.nan_to_num(logits, nan=0.0, posinf=largest, neginf=-largest)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExponentialDecay:
    """Makes the end of the sequence more likely with every token after a number of new tokens.

    Attributes:
        growth: (n,) float32, for each step what is added to the score, as a part of its size; 0 before the start.
        eos_ids: (n,) int32, filled up with -1.
    """

    growth: Any
    eos_ids: Any

    @classmethod
    def of(cls, start: int, factor: float, max_new_tokens: int, eos_ids: Any) -> "ExponentialDecay":
        """Makes the processor: after ``start`` new tokens the part grows as ``factor`` to the power of those since."""
        since = np.maximum(np.arange(bucket(max_new_tokens, smallest=64)) - start, 0)
        # In float64, as factor ** n - 1 cancels; bounded, so that it stays finite with any score.
        growth = np.expm1(np.minimum(since * np.log(np.float64(factor)), 69.0))
        return cls(growth.astype(np.float32), eos_ids)

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) that are larger at the end-of-sequence tokens."""
        added = jnp.abs(logits) * jnp.asarray(self.growth)[state.step]
        return jnp.where(mask_of(self.eos_ids, logits.shape[1]) & jnp.isfinite(logits), logits + added, logits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SuppressTokens:
    """Never allows certain tokens, ids (n,) int32, filled up with -1."""

    ids: Any

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with -inf at the tokens."""
        return drop(logits, mask_of(self.ids, logits.shape[1]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SuppressTokensAtStep:
    """Does not allow certain tokens at one step.

    Attributes:
        step: () int32, new tokens before it.
        ids: (n,) int32, filled up with -1.
    """

    step: Any
    ids: Any

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with -inf at the tokens at the step."""
        return drop(logits, mask_of(self.ids, logits.shape[1]) & (state.step == self.step))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Renormalize:
    """Makes scores log-probabilities."""

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) whose exponentials sum to 1."""
        return jax.nn.log_softmax(logits, axis=-1)
