"""Ring buffers: layers that see a window of the last tokens keep no more than it."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

_MULTIPLE = 16


def ring_slots(window: int) -> int:
    """Returns the number of slots of a ring for a window."""
    return -(-max(window, 1) // _MULTIPLE) * _MULTIPLE


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RingLayer:
    """The last tokens of every row, in R slots that are written again and again.

    Slot s of a cache without end is slot s mod R of the ring. New tokens of all rows go into the same slot, as they do
    in any cache; the prompts of a call, which may differ in length, are turned so that all of them end in the same
    slot. So a slot is written anew exactly R tokens after it was written, in every row, and what it holds follows from
    the slot that was written last: no positions are kept.

    Attributes:
        store: a `KVLayer` or a `QuantizedKVLayer` of R slots.
        window: tokens that are seen, no more than R unless no slot was written twice.
    """

    store: Any
    window: int = field(metadata={"static": True})

    @property
    def slots(self) -> int:
        """R."""
        return self.store.keys.shape[1]

    def start(self, keys: Array, values: Array, lengths: Array) -> "RingLayer":
        """Writes the last tokens of prompts into an empty ring.

        Args:
            keys, values: (B, P, K, h), padded on the right.
            lengths: (B,) int32, without padding.
        """
        last = keys.shape[1] - 1
        back = (last - jnp.arange(self.slots, dtype=jnp.int32)) % self.slots  # (R,) tokens before the last
        columns = jnp.clip(lengths[:, None] - 1 - back, 0, last)  # (B, R); what a row does not have is never seen
        keys, values = (jnp.take_along_axis(x, columns[:, :, None, None], axis=1) for x in (keys, values))
        return replace(self, store=self.store.write(keys, values, jnp.int32(0)))

    def write(self, keys: Array, values: Array, slot: Array) -> "RingLayer":
        """Writes one token's keys and values (B, 1, K, h) of every row, the next after those that the ring holds.

        Args:
            keys, values: of the token.
            slot: () int32 that it would have in a cache without end.
        """
        if keys.shape[1] != 1:
            raise ValueError(
                f"A ring buffer takes one token after its prompt, but the call has {keys.shape[1]}: make the cache "
                "without rings (CacheLayout(ring=False))."
            )
        return replace(self, store=self.store.write(keys, values, slot % self.slots))

    def positions(self, queries: Array, slot: Array) -> Array:
        """Returns the position in its row of the token in each slot, (B, R) int32; negative where there is none.

        Args:
            queries: (B, 1) int32, positions of the tokens that were written last.
            slot: () int32 that they would have in a cache without end.
        """
        return queries - (slot - jnp.arange(self.slots, dtype=jnp.int32)) % self.slots
