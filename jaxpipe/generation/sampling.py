"""Choice of the next token. A draw depends on its row's key, position and logits alone, not on batch or bucket."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Array = jax.Array


def row_keys(seed: int, item_indices: ArrayLike, return_indices: ArrayLike) -> Array:
    """Returns a PRNG key for each row.

    Args:
        seed: any integer.
        item_indices: (B,) int, indices of the rows' prompts in the user's whole input.
        return_indices: (B,) int, indices of the rows among the sequences returned for their prompt.

    Returns:
        (B,) typed keys. The generator is always threefry, whose draws are the same alone, under vmap and sharded.
    """
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    items, sequences = (np.asarray(indices).astype(np.uint32) for indices in (item_indices, return_indices))
    return _row_keys(np.uint32(low), np.uint32(high), items, sequences)


@jax.jit
def _row_keys(low: Array, high: Array, items: Array, sequences: Array) -> Array:
    key = jax.random.fold_in(jax.random.key(low, impl="threefry2x32"), high)

    def row_key(item: Array, sequence: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(key, item), sequence)

    return jax.vmap(row_key)(items, sequences)


def sample(keys: Array, position: Array, logits: Array) -> Array:
    """Draws a token for each row.

    Args:
        keys: (B,) from `row_keys`.
        position: (B,) int, number of the draw in its row; a key is never used twice at one position.
        logits: (B, V) float32; -inf is never drawn.

    Returns:
        (B,) int32.
    """

    def draw(key: Array, position: Array, logits: Array) -> Array:
        return jax.random.categorical(jax.random.fold_in(key, position), logits)

    return jax.vmap(draw)(keys, jnp.asarray(position, jnp.uint32), logits).astype(jnp.int32)


def greedy(logits: Array) -> Array:
    """Returns the most likely token of each row, (B,) int32, from logits (B, V); the lowest id among equals."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
