"""Relative position biases in buckets that widen with distance (Raffel et al., 2020; arXiv 1910.10683)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxpipe.nn.init import Init
from jaxpipe.nn.layout import Direct

Array = jax.Array


@functools.lru_cache(maxsize=64)
def distance_buckets(buckets: int, max_distance: int) -> np.ndarray:
    """Returns the bucket of every distance from 0 to `max_distance`, int32.

    The first half of the buckets is one distance each, the others widen with its logarithm up to
    `max_distance`; what lies beyond shares the last.
    """
    exact = buckets // 2
    distances = np.arange(max_distance + 1, dtype=np.float32)
    # In float32, as T5 was trained: on the borders between buckets the rounding decides.
    ratio = np.log(np.maximum(distances, 1) / np.float32(exact)) / np.float32(np.log(max_distance / exact))
    widening = exact + (ratio * np.float32(buckets - exact)).astype(np.int32)
    return np.where(distances < exact, distances, np.minimum(widening, buckets - 1)).astype(np.int32)


def relative_buckets(queries: Array, keys: Array, *, bidirectional: bool, buckets: int, max_distance: int) -> Array:
    """Returns the bucket of every pair of a query and a key, (1 or B, T, S) int32.

    Args:
        queries: (1 or B, T) positions.
        keys: (1 or B, S) positions.
        bidirectional: half of the buckets are of keys after the query; else those share the first bucket.
        buckets: how many there are.
        max_distance: from which on all distances share a bucket.
    """
    distance = queries[:, :, None] - keys[:, None, :]  # (B, T, S)
    buckets = buckets // 2 if bidirectional else buckets
    table = jnp.asarray(distance_buckets(buckets, max_distance))
    later = jnp.where(distance < 0, buckets, 0) if bidirectional else 0
    distance = jnp.abs(distance) if bidirectional else jnp.maximum(distance, 0)
    return table[jnp.minimum(distance, max_distance)] + later


class RelativeBias(nnx.Module):
    """What is added to the scores of each head, by the bucket of the distance."""

    def __init__(self, init: Init, buckets: int, heads: int):
        shape = (buckets, heads)
        self.bias = init.param((None, "kv_heads"), shape, Direct("weight", shape))

    def __call__(self, buckets: Array) -> Array:
        """Biases (1 or B, H, T, S) of buckets (1 or B, T, S)."""
        return jnp.moveaxis(self.bias[...][buckets], -1, 1)
