"""Weights of a checkpoint, or random ones, onto the mesh: every device reads no more than its slice."""

import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxpipe.checkpoint.names import Entry, Path
from jaxpipe.checkpoint.source import TensorSource
from jaxpipe.nn.init import initial_value
from jaxpipe.nn.layout import Index

# Bytes of the target that are converted at a time.
CHUNK = 32 * 2**20


def load_arrays(
    wanted: Sequence[Entry],
    shapes: Mapping[Path, jax.ShapeDtypeStruct],
    shardings: Mapping[Path, NamedSharding],
    source: TensorSource,
    sources: Mapping[str, str],
) -> dict[Path, jax.Array]:
    """Reads every parameter from a checkpoint, straight to its dtype and its devices.

    Args:
        wanted: parameters with their tensors.
        shapes: shape and target dtype of each.
        shardings: where each goes.
        source: the checkpoint.
        sources: name in the model -> name in the checkpoint, as `names.match` finds them.
    """
    arrays = {}
    for entry in wanted:
        aval = shapes[entry.path]
        arrays[entry.path] = _load_array(entry, aval.shape, aval.dtype, shardings[entry.path], source, sources)
    return arrays


def _load_array(
    entry: Entry,
    shape: tuple[int, ...],
    dtype: Any,
    sharding: NamedSharding,
    source: TensorSource,
    sources: Mapping[str, str],
) -> jax.Array:
    def read(name: str, index: Index) -> np.ndarray:
        return _read_as(source, sources[entry.prefix + name], index, dtype)

    # JAX asks once for each device, also where several hold the same slice.
    @functools.cache
    def block(bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        values = entry.layout.read(read, tuple(slice(*b) for b in bounds))
        # Always a copy: a device array on CPU may alias what it is given, and the file may change.
        return np.array(values, dtype=dtype, order="C", copy=True)

    def callback(index: Any) -> np.ndarray:
        return block(tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True)))

    return jax.make_array_from_callback(shape, sharding, callback, dtype=dtype)


def _read_as(source: TensorSource, name: str, index: Index, dtype: Any) -> np.ndarray:
    """Reads a slice of a tensor in the target dtype, converted in chunks of rows.

    A whole tensor in a wider dtype would be the largest thing in memory.
    """
    if source.infos[name].dtype == dtype or not index:
        return np.asarray(source.read(name, index), dtype)
    rows, *rest = index
    shape = tuple(s.stop - s.start for s in index)
    out = np.empty(shape, dtype)
    step = max(1, CHUNK // max(1, out[:1].nbytes))
    for start in range(0, shape[0], step):
        chunk = slice(rows.start + start, min(rows.start + start + step, rows.stop))
        out[start : start + step] = source.read(name, (chunk, *rest))
    return out


def random_arrays(
    variables: Mapping[Path, Any], shardings: Mapping[Path, NamedSharding], seed: int
) -> dict[Path, jax.Array]:
    """Makes random weights on the mesh, without copies on the host.

    A weight's values depend on the seed and on its path, not on the mesh.

    Args:
        variables: abstract parameters with the metadata of `nn.init.Init.param`.
        shardings: where each goes.
        seed: any integer.
    """
    key = jax.random.key(seed)
    arrays = {}
    for path, variable in variables.items():
        metadata, aval = variable.get_metadata(), variable.get_value()
        make = _maker(
            aval.shape, aval.dtype, metadata["initializer"], metadata["std"], metadata["layout"], shardings[path]
        )
        arrays[path] = make(jax.random.fold_in(key, zlib.crc32(".".join(map(str, path)).encode())))
    return arrays


@functools.lru_cache(maxsize=256)
def _maker(
    shape: tuple[int, ...], dtype: Any, initializer: str, std: float, layout: Any, sharding: NamedSharding
) -> Any:
    def make(key: jax.Array) -> jax.Array:
        # Repeated heads are copies of one draw, so that the weights can be saved.
        drawn = initial_value(key, getattr(layout, "unrepeated", shape), dtype, initializer, std)
        return layout.repeat(drawn) if hasattr(layout, "repeat") else drawn

    return jax.jit(make, out_shardings=sharding)
