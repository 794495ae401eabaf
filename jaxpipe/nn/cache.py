"""The static key-value cache: one array for keys and one for values a layer, written in place."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp

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


# (K, h), or (K, h, width of a value) where values are not as wide as keys; or the shapes of another state.
CacheLayer = tuple[int, ...] | LayerState


def empty_layer(layer: CacheLayer, batch: int, slots: int, dtype: jnp.dtype) -> Any:
    """Makes what a layer remembers of `batch` rows before their first token."""
    if not isinstance(layer, tuple):
        return layer.empty(batch, slots, dtype)
    heads, keys, values = layer[0], layer[1], layer[-1]
    return KVLayer(*(_shard(jnp.zeros((batch, slots, heads, width), dtype)) for width in (keys, values)))


def layer_bytes(layer: CacheLayer, tokens: int, dtype: jnp.dtype, shards: int) -> int:
    """Counts the bytes of a layer's memory of one row of `tokens` tokens on one of `shards` tensor shards."""
    if not isinstance(layer, tuple):
        return layer.bytes(tokens, dtype, shards)
    heads, widths = layer[0], layer[1] + layer[-1]
    return tokens * heads * widths * dtype.itemsize // (shards if heads % shards == 0 else 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """What a decoder remembers of the tokens before a call.

    Rows share the slot that is written next, and a row's tokens need not lie side by side: what
    a slot holds is told by `positions` alone.

    Attributes:
        layers: one entry a layer, a `KVLayer` or a state of another kind.
        positions: (B, S) int32, the position in its row of the token in each slot, -1 where there is none.
        slot: () int32, the first slot that the next call writes.
        fresh: nothing was written yet, so the next call's tokens see none but their own.
    """

    layers: tuple[Any, ...]
    positions: Array
    slot: Array
    fresh: bool = field(default=True, metadata={"static": True})

    @classmethod
    def empty(cls, layers: Sequence[CacheLayer], batch: int, slots: int, dtype: jnp.dtype) -> Self:
        """Makes a cache of rows before their first token."""
        return cls(
            tuple(empty_layer(layer, batch, slots, dtype) for layer in layers),
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
