"""Attention with linear biases (Press et al., 2022; arXiv 2108.12409)."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.nn.attention import Span

Array = jax.Array


def alibi_slopes(heads: int) -> np.ndarray:
    """Slope of each head, float32 (H,): a geometric series, interleaved with a finer one where H is no power of two."""

    def series(n: int) -> np.ndarray:
        return np.float32(2.0 ** -(2.0 ** -(math.log2(n) - 3))) ** np.arange(1, n + 1, dtype=np.float32)

    whole = 2 ** math.floor(math.log2(heads))
    return np.concatenate([series(whole), series(2 * whole)[::2][: heads - whole]])


def alibi(heads: int, span: Span, attention_mask: Array | None, *, rounded: bool = False) -> Array:
    """Returns what is added to the scores: slope times the key's position in its row, (1 or B, H, 1, S) float32.

    A query's own position would add the same to all of its scores, which the softmax does not see.

    Args:
        heads: H.
        span: of the call.
        attention_mask: (B, T) of the call.
        rounded: slopes, positions and products are rounded to bfloat16, as Falcon was trained.
    """
    if span.slot is None and attention_mask is not None:
        positions = jnp.cumsum(attention_mask.astype(jnp.int32), axis=1) - 1
    else:
        positions = span.keys
    positions = jnp.maximum(positions, 0).astype(jnp.float32)[:, None, None, :]  # (B, 1, 1, S)
    slopes = jnp.asarray(alibi_slopes(heads))[:, None, None]  # (H, 1, 1)
    return _round(_round(slopes) * _round(positions)) if rounded else slopes * positions


def _round(x: Array) -> Array:
    """Rounds to bfloat16; a pair of casts could be optimised away."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
