"""Prompts of a call on the devices, padded to the shapes that executables are made for."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpipe.generation.buckets import cache_stages
from jaxpipe.generation.inputs import Prompts
from jaxpipe.sharding.mesh import batch_sharding

Array = jax.Array | np.ndarray


@dataclass(frozen=True)
class Packed:
    """The arrays of a prefill.

    Attributes:
        prompts: as given, B of them without those that fill the batch.
        rows: those included.
        width: P, tokens to which prompts are padded.
        slots: S, of the cache that holds all new tokens too.
        arrays: what the model reads beside the prompts, a tuple; prompts (rows, P) int32 padded on the right; their
            lengths (rows,) int32; which rows are only there to fill the batch, (rows,) bool. On one device they are
            numpy's, which a jitted function places in a fraction of the time of a call for it.
    """

    prompts: Prompts
    rows: int
    width: int
    slots: int
    arrays: tuple[tuple[Array, ...], Array, Array, Array]

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
    if mesh.size > 1:
        arrays = jax.device_put(arrays, jax.tree.map(lambda x: batch_sharding(mesh, x.shape[0], x.ndim), arrays))
    return Packed(prompts, rows, width, slots, arrays)


@functools.lru_cache(maxsize=256)
def constant(value: int | tuple[int, ...], mesh: Mesh) -> jax.Array:
    """Places int32 numbers, () or (n,), on all devices for this call and those to come; never to be donated.

    A jitted function that is given numpy's places them anew in each call, which on a GPU takes 50 us an array.
    """
    return jax.device_put(np.asarray(value, np.int32), NamedSharding(mesh, PartitionSpec()))


def place_rows(x: np.ndarray | jax.Array, mesh: Mesh) -> jax.Array:
    """Places an array whose first dimension are the rows of a batch."""
    return jax.device_put(x, batch_sharding(mesh, x.shape[0], x.ndim))
