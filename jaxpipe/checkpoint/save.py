"""Weights back into the Hub's layout."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath

import jax
import numpy as np

from jaxpipe.checkpoint.index import write_sharded
from jaxpipe.checkpoint.names import Entry, Path
from jaxpipe.checkpoint.safetensors import LazyArray


def save_weights(
    directory: FilePath, wanted: Sequence[Entry], arrays: Mapping[Path, jax.Array], max_shard_size: int | str
) -> None:
    """Writes a model's arrays as ``model.safetensors`` or as shards with an index.

    Args:
        directory: where to; earlier weights there are replaced once the new ones are whole.
        wanted: the parameters with their tensors.
        arrays: the parameters' values.
        max_shard_size: in bytes, or such as ``"5GB"``.
    """
    write_sharded(directory, _tensors(wanted, arrays), max_shard_size)


def _tensors(wanted: Sequence[Entry], arrays: Mapping[Path, jax.Array]) -> Iterator[tuple[str, LazyArray]]:
    # An array that holds several tensors is fetched once: they are written one after another.
    @functools.lru_cache(maxsize=1)
    def split(i: int) -> dict[str, np.ndarray]:
        entry = wanted[i]
        return entry.layout.write(np.asarray(arrays[entry.path]))

    for i, entry in enumerate(wanted):
        for name, shape in entry.layout.tensors.items():
            fetch = functools.partial(lambda i, name: np.ascontiguousarray(split(i)[name]), i, name)
            yield entry.prefix + name, LazyArray(shape, arrays[entry.path].dtype, fetch)
