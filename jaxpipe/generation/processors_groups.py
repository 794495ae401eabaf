"""The logits processor that keeps groups of beams apart (diverse beam search; Vijayakumar et al., arXiv:1610.02424)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxpipe.generation.step import StepState

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HammingDiversity:
    """Takes off a token's score what it costs that beams of earlier groups chose it in this step.

    Attributes:
        penalty: () float32, for each of those beams.
        chosen: (B, N) int32, the tokens that the beams of each prompt were given in this step, -1 where none yet; None
            where there is no earlier group.
    """

    penalty: Any
    chosen: Any = None

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns the changed logits (B * n, V) of the n beams of a group."""
        if self.chosen is None:
            return logits
        prompts, vocab_size = self.chosen.shape[0], logits.shape[1]
        columns = jnp.where(self.chosen < 0, vocab_size, self.chosen)
        rows = jnp.arange(prompts)[:, None]
        counts = jnp.zeros((prompts, vocab_size), jnp.float32).at[rows, columns].add(1.0, mode="drop")
        return logits - self.penalty * jnp.repeat(counts, len(logits) // prompts, axis=0)
