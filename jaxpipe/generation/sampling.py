"""Choice of the next token. A draw depends on its row's key, position and logits alone, not on batch or bucket."""

import jax
import jax.numpy as jnp

Array = jax.Array


def row_keys(seed: int, item_indices: Array, return_indices: Array) -> Array:
    """Returns a PRNG key for each row.

    Args:
        seed: any integer.
        item_indices: (B,) int, indices of the rows' prompts in the user's whole input.
        return_indices: (B,) int, indices of the rows among the sequences returned for their prompt.

    Returns:
        (B,) typed keys. The generator is always threefry, whose draws are the same alone, under vmap and sharded.
    """
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    key = jax.random.fold_in(jax.random.key(jnp.uint32(low), impl="threefry2x32"), jnp.uint32(high))

    def row_key(item: Array, sequence: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(key, item), sequence)

    return jax.vmap(row_key)(jnp.asarray(item_indices, jnp.uint32), jnp.asarray(return_indices, jnp.uint32))


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
