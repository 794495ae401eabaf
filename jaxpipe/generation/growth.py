"""Growth of a cache between two dispatches: a step reads all slots, so there are few more than are filled."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxpipe.generation.beam import BeamState
from jaxpipe.generation.loop import DecodeState
from jaxpipe.generation.packing import Packed
from jaxpipe.generation.settle import Settled
from jaxpipe.nn.cache import Cache, CacheLayout, layer_slots, slots_of
from jaxpipe.nn.ring import RingLayer

Array = jax.Array
State = TypeVar("State", bound=DecodeState)


def cache_sizes(packed: Packed, settled: Settled) -> tuple[tuple[int, ...], CacheLayout]:
    """Returns the lengths that a call's cache has one after another, and its layout.

    Args:
        packed: the prompts.
        settled: the settings.
    """
    return packed.stages, CacheLayout(ring=True, stored=settled.cache_dtype)


def grow(state: State, slots: int) -> State:
    """Returns a state with room for `slots` slots; the arrays that it replaces are deleted one by one.

    Nothing waits: the dispatches before and after it follow each other on the device.
    """
    parts = {name: extended(getattr(state, name), slots, 0) for name in state.by_slot}
    return replace(state, cache=grow_cache(state.cache, slots), **parts)


def grow_beams(state: BeamState, slots: int, pad_id: int) -> BeamState:
    """Returns the state of a beam search with room for `slots` slots; see `grow`.

    Args:
        state: of the search.
        slots: at least as many as it has.
        pad_id: stands where there is no token.
    """
    finished = replace(
        state.finished,
        tokens=extended(state.finished.tokens, slots, pad_id, axis=2),
        origins=extended(state.finished.origins, slots, -1, axis=2),
    )
    return replace(
        state,
        cache=grow_cache(state.cache, slots),
        tokens=extended(state.tokens, slots, pad_id),
        valid=extended(state.valid, slots, 0),
        origins=extended(state.origins, slots, -1, axis=2),
        finished=finished,
    )


def grow_cache(cache: Cache, slots: int) -> Cache:
    """Returns a cache of `slots` slots with what it held, and deletes the arrays that it replaces.

    A ring grows to the length of its window, and keeps it.
    """
    layers = tuple(_grow_layer(layer, slots) for layer in cache.layers)
    return replace(cache, layers=layers, positions=extended(cache.positions, slots, -1))


def _grow_layer(layer: Any, slots: int) -> Any:
    if slots_of(layer) is None:
        return layer
    own = layer_slots(layer.window if isinstance(layer, RingLayer) else None, slots)
    return jax.tree.map(lambda x: extended(x, own, 0), layer)


def extended(x: Array, slots: int, fill: int, axis: int = 1) -> Array:
    """Returns x with an axis brought to `slots` by `fill` at its end, and deletes x; x itself if it has as many."""
    if x.shape[axis] == slots:
        return x
    longer = _extend(x.sharding)(x, slots - x.shape[axis], fill, axis)
    x.delete()  # its memory is free for the next array once this copy is done
    return longer


@functools.cache
def _extend(sharding: jax.sharding.Sharding) -> Callable[..., Array]:
    def extend(x: Array, count: int, fill: int, axis: int) -> Array:
        pad = [(0, 0)] * x.ndim
        pad[axis] = (0, count)
        return jnp.pad(x, pad, constant_values=fill)

    return jax.jit(extend, static_argnums=(1, 2, 3), out_shardings=sharding)
