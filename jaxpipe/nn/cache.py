"""The static key-value cache: one array for keys and one for values a layer, written in place."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp

from jaxpipe.nn.quantized_cache import QuantizedKVLayer
from jaxpipe.nn.ring import RingLayer, ring_slots
from jaxpipe.sharding.rules import constrain

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVLayer:
    """Keys and values (B, S, K, h) of one layer."""

    keys: Array
    values: Array

    def write(self, keys: Array, values: Array, slot: Array) -> "KVLayer":
        """Writes keys and values (B, T, K, h) into the slots from `slot` on, the same for all rows."""
        start = (0, slot, 0, 0)
        return KVLayer(
            _shard(jax.lax.dynamic_update_slice(self.keys, keys.astype(self.keys.dtype), start)),
            _shard(jax.lax.dynamic_update_slice(self.values, values.astype(self.values.dtype), start)),
        )

    @property
    def scales(self) -> tuple[None, None]:
        """Of keys and of values, which have none; see `QuantizedKVLayer.scales`."""
        return None, None


def _shard(x: Array) -> Array:
    return constrain(x, "batch", None, "kv_heads", None)


class LayerState(Protocol):
    """The shapes of what a layer remembers, where that is not keys and values."""

    def empty(self, batch: int, slots: int, dtype: jnp.dtype) -> Any:
        """Makes the state of `batch` rows before their first token: a pytree of arrays (B, ...)."""
        ...

    def bytes(self, tokens: int, dtype: jnp.dtype, shards: int) -> int:
        """Counts the bytes of one row of `tokens` tokens on one of `shards` tensor shards."""
        ...


class WindowShape(NamedTuple):
    """A layer whose tokens see a window of the last ones: key-value heads, the width of a key, and that of a value."""

    heads: int
    keys: int
    window: int
    values: int


# (K, h), or (K, h, width of a value) where values are not as wide as keys; a `WindowShape`; or the shapes of another
# state.
CacheLayer = tuple[int, ...] | LayerState


@dataclass(frozen=True)
class CacheLayout:
    """How a cache keeps keys and values; static, as executables are made for it.

    Attributes:
        ring: layers with a window keep no more slots than it needs. Such a cache takes one token of every row a call
            after its first call, and cannot go back to an earlier token.
        stored: ``"int8"`` or ``"float8_e4m3fn"``, in which keys and values are kept; None keeps them as they are.
    """

    ring: bool = False
    stored: str | None = None


DENSE = CacheLayout()
"""All slots of all layers, as they are computed."""


def empty_layer(layer: CacheLayer, batch: int, slots: int, dtype: jnp.dtype, layout: CacheLayout = DENSE) -> Any:
    """Makes what a layer remembers of `batch` rows before their first token."""
    if not isinstance(layer, tuple):
        return layer.empty(batch, slots, dtype)
    window = layer.window if layout.ring and isinstance(layer, WindowShape) else None
    shape, widths = (batch, layer_slots(window, slots), layer[0]), (layer[1], layer[-1])
    if layout.stored is not None:
        store = QuantizedKVLayer.empty(shape, widths, jnp.dtype(dtype), layout.stored)
    else:
        store = KVLayer(*(_shard(jnp.zeros((*shape, width), dtype)) for width in widths))
    return store if window is None else RingLayer(store, window)


def layer_slots(window: int | None, slots: int) -> int:
    """Returns how many slots a layer has in a cache of `slots`, where it keeps its window only or, for None, all."""
    return slots if window is None else min(ring_slots(window), slots)


def slots_of(layer: Any) -> int | None:
    """Returns the number of slots of what a layer remembers; None for a state without slots."""
    if isinstance(layer, RingLayer):
        return layer.slots
    return layer.keys.shape[1] if isinstance(layer, KVLayer | QuantizedKVLayer) else None


def layer_bytes(layer: CacheLayer, tokens: int, dtype: jnp.dtype, shards: int) -> int:
    """Counts the bytes of a layer's memory of one row of `tokens` tokens on one of `shards` tensor shards.

    Layers with a window keep a ring, as in plain generation.
    """
    if not isinstance(layer, tuple):
        return layer.bytes(tokens, dtype, shards)
    heads, widths = layer[0], layer[1] + layer[-1]
    tokens = layer_slots(layer.window if isinstance(layer, WindowShape) else None, tokens)
    return tokens * heads * widths * dtype.itemsize // (shards if heads % shards == 0 else 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """What a decoder remembers of the tokens before a call.

    Rows share the slot that is written next, and a row's tokens need not lie side by side: what
    a slot holds is told by `positions` alone.

    Attributes:
        layers: one entry a layer: a `KVLayer`, `QuantizedKVLayer` or `RingLayer`, or a state of another kind.
        positions: (B, S) int32, the position in its row of the token in each slot, -1 where there is none.
        slot: () int32, the first slot that the next call writes.
        fresh: nothing was written yet, so the next call's tokens see none but their own.
        in_order: slot i holds every row's token i, as far as `slot` and the row's length, and the next call's tokens
            follow; so a prompt is read in parts.
    """

    layers: tuple[Any, ...]
    positions: Array
    slot: Array
    fresh: bool = field(default=True, metadata={"static": True})
    in_order: bool = field(default=False, metadata={"static": True})

    @classmethod
    def empty(
        cls,
        layers: Sequence[CacheLayer],
        batch: int,
        slots: int,
        dtype: jnp.dtype,
        layout: CacheLayout = DENSE,
    ) -> Self:
        """Makes a cache of rows before their first token; without a `layout` all layers have all slots."""
        return cls(
            tuple(empty_layer(layer, batch, slots, dtype, layout) for layer in layers),
            constrain(jnp.full((batch, slots), -1, jnp.int32), "batch", None),
            jnp.zeros((), jnp.int32),
        )

    def enter(self, positions: Array | None, valid: Array | None) -> Self:
        """Takes down the positions (B, T) of the call's tokens, -1 where `valid` (B, T) is False."""
        if positions is None:
            raise ValueError("position_ids are needed where a cache is given.")
        positions = positions if valid is None else jnp.where(valid, positions, -1)
        return replace(self, positions=jax.lax.dynamic_update_slice(self.positions, positions, (0, self.slot)))

    def leave(self, layers: Sequence[Any], tokens: int) -> Self:
        """Returns the cache after a call that wrote `tokens` slots."""
        return replace(self, layers=tuple(layers), slot=self.slot + tokens, fresh=False)
