"""The static key-value cache: one array for keys and one for values a layer, written in place."""

from dataclasses import dataclass, field, replace

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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """What a decoder remembers of the tokens before a call.

    Rows share the slot that is written next, and a row's tokens need not lie side by side: what
    a slot holds is told by `positions` alone.

    Attributes:
        layers: one entry a layer.
        positions: (B, S) int32, the position in its row of the token in each slot, -1 where there is none.
        slot: () int32, the first slot that the next call writes.
        fresh: nothing was written yet, so the next call's tokens see none but their own.
    """

    layers: tuple[KVLayer, ...]
    positions: Array
    slot: Array
    fresh: bool = field(default=True, metadata={"static": True})

    @classmethod
    def empty(cls, layers: list[tuple[int, int]], batch: int, slots: int, dtype: jnp.dtype) -> "Cache":
        """Makes a cache of zeros; `layers` gives (K, h) of each layer."""

        def zeros(heads: int, head_dim: int) -> Array:
            return _shard(jnp.zeros((batch, slots, heads, head_dim), dtype))

        return cls(
            tuple(KVLayer(zeros(*shape), zeros(*shape)) for shape in layers),
            constrain(jnp.full((batch, slots), -1, jnp.int32), "batch", None),
            jnp.zeros((), jnp.int32),
        )

    def enter(self, positions: Array | None, valid: Array | None) -> "Cache":
        """Takes down the positions (B, T) of the call's tokens, -1 where `valid` (B, T) is False."""
        if positions is None:
            raise ValueError("position_ids are needed where a cache is given.")
        positions = positions if valid is None else jnp.where(valid, positions, -1)
        return replace(self, positions=jax.lax.dynamic_update_slice(self.positions, positions, (0, self.slot)))

    def leave(self, layers: list[KVLayer], tokens: int) -> "Cache":
        """Returns the cache after a call that wrote `tokens` slots."""
        return replace(self, layers=tuple(layers), slot=self.slot + tokens, fresh=False)
