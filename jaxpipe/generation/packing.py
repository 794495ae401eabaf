"""Prompts of a call on the devices, padded to the shapes that executables are made for."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpipe.generation.buckets import cache_stages
from jaxpipe.generation.inputs import Prompts
from jaxpipe.sharding.mesh import batch_sharding


@dataclass(frozen=True)
class Packed:
    """The arrays of a prefill.

    Attributes:
        prompts: as given, B of them without those that fill the batch.
        rows: those included.
        width: P, tokens to which prompts are padded.
        slots: S, of the cache that holds all new tokens too.
        arrays: what the model reads beside the prompts, a tuple; prompts (rows, P) int32 padded on the right; their
            lengths (rows,) int32; which rows are only there to fill the batch, (rows,) bool.
    """

    prompts: Prompts
    rows: int
    width: int
    slots: int
    arrays: tuple[tuple[jax.Array, ...], jax.Array, jax.Array, jax.Array]

    @property
    def stages(self) -> tuple[int, ...]:
        """Slots that a growing cache has one after another; see `cache_stages`."""
        return cache_stages(self.width, self.slots)


def pack(prompts: Prompts, inputs: Sequence[np.ndarray], *, rows: int, width: int, slots: int, mesh: Mesh) -> Packed:
    """Pads prompts to a number of rows and of tokens, and places them.

    Args:
        prompts: of a call.
        inputs: what the model reads beside them, of that number of rows.
        rows, width, slots: see `Packed`.
        mesh: of the model.
    """
    packed = np.zeros((rows, width), np.int32)
    lengths = np.ones((rows,), np.int32)
    for i, row in enumerate(prompts.rows):
        packed[i, : len(row)] = row
        lengths[i] = len(row)
    idle = np.arange(rows) >= len(prompts.rows)
    arrays = tuple(inputs), packed, lengths, idle
    # All in one call, each of which costs as much as a small copy.
    placed = jax.device_put(arrays, jax.tree.map(lambda x: batch_sharding(mesh, x.shape[0], x.ndim), arrays))
    return Packed(prompts, rows, width, slots, placed)


def place_rows(x: np.ndarray | jax.Array, mesh: Mesh) -> jax.Array:
    """Places an array whose first dimension are the rows of a batch."""
    return jax.device_put(x, batch_sharding(mesh, x.shape[0], x.ndim))
