"""The cache under beams: its rows repeated for them, and moved as beams give way to others."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe.nn.cache import Cache, slots_of

Array = jax.Array

# Slots of the cache that are moved at a time when beams are reordered: as much memory as that takes, and no more.
_CHUNK = 64


def repeat_cache(cache: Cache, repeat: Callable[[Array], Array]) -> Cache:
    """Repeats the rows of everything that a cache holds, what it remembers of an encoder included."""
    parts = {name: jax.tree.map(repeat, getattr(cache, name)) for name in ("layers", "positions")}
    if getattr(cache, "memory", None) is not None:
        parts["memory"] = jax.tree.map(repeat, cache.memory)  # type: ignore[attr-defined]
    return replace(cache, **parts)


def reorder_cache(cache: Cache, parents: Array, first: Array) -> Cache:
    """Gives every row what its parent's row holds.

    Args:
        cache: of B * N rows, or of several for each of them. Its positions, and its memory of an encoder, are the same
            for the beams of a prompt.
        parents: (B, N) int32, beams from 0 to N - 1.
        first: () int32, the slots before it are the same for the beams of a prompt.

    Nothing is moved where every beam is its own parent.
    """

    def pick(x: Array) -> Array:
        beams = x.reshape(*parents.shape, -1, *x.shape[1:])  # (B, N, 1, ...)
        return pick_beams(beams, parents).reshape(x.shape)

    stays = jnp.all(parents == jnp.arange(parents.shape[1], dtype=parents.dtype))
    slots = [slots_of(layer) for layer in cache.layers]
    layers = [
        jax.tree.map(pick, layer) if own is None else layer for layer, own in zip(cache.layers, slots, strict=True)
    ]
    for size in sorted({own for own in slots if own is not None}):
        index = [i for i, own in enumerate(slots) if own == size]
        last = jnp.where(stays, 0, cache.slot)
        for i, layer in zip(index, _move_slots([layers[i] for i in index], size, pick, first, last), strict=True):
            layers[i] = layer
    return replace(cache, layers=tuple(layers))


def _move_slots(layers: list[Any], size: int, pick: Callable[[Array], Array], first: Array, last: Array) -> list[Any]:
    """Picks the rows of the slots from `first` to `last` in layers of `size` slots, where slot s is s mod size.

    They are moved chunk by chunk, and those of a ring that was filled more than once are moved once.
    """
    chunk = math.gcd(_CHUNK, size)

    def move(i: Array, layers: list[Any]) -> list[Any]:
        start = (i * chunk) % size

        def turn(x: Array) -> Array:  # (B * N, S, K, h)
            part = pick(lax.dynamic_slice_in_dim(x, start, chunk, axis=1))
            return lax.dynamic_update_slice_in_dim(x, part, start, axis=1)

        return jax.tree.map(turn, layers)

    begin = first // chunk
    return lax.fori_loop(begin, jnp.minimum((last + chunk - 1) // chunk, begin + size // chunk), move, layers)


def common_slots(origins: Array, slot: Array) -> Array:
    """Returns the number of slots, () int32, that hold the same for all beams of a prompt, in every prompt.

    Where the beams continued one and the same beam, they have all that it held before.

    Args:
        origins: (B, N, S) int32, as in `Finished`, of beams whose cache is in their order.
        slot: () int32, the last slot with a token.
    """
    slots = jnp.arange(origins.shape[2], dtype=jnp.int32)
    same = jnp.all(origins == origins[:, :1], axis=(0, 1)) & (slots <= slot)
    return jnp.max(jnp.where(same, slots, 0))


def pick_beams(x: Array, beams: Array) -> Array:
    """Returns of x (B, N, ...) the beams (B, M) of each prompt, (B, M, ...)."""
    return jax.vmap(lambda rows, index: rows.at[index].get(mode="promise_in_bounds"))(x, beams)
