"""What a file of weights offers: the names, shapes and dtypes of its tensors, and reads of slices of them."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxpipe.common.errors import CheckpointError, nearest

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Name, shape and stored dtype of one tensor, and the file that holds it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as an array of its dtype."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorSource(Protocol):
    """Tensors by name, read in slices without touching the rest of the file."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """The tensors, by name."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the file says of itself beside its tensors."""
        ...

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Returns a tensor, or the part of it that ``index`` names, in its stored dtype; it may be read-only.

        Raises:
            KeyError: there is no tensor of that name.
        """
        ...

    def close(self) -> None:
        """Lets go of the files; arrays that were read stay valid."""
        ...


def unknown_tensor(name: str, where: str | Path, names: Iterable[str]) -> KeyError:
    """Returns the error for a name that a source does not hold."""
    return KeyError(f"{where}: there is no tensor {name!r}.{nearest(name, names)}")


class JoinedSource:
    """The tensors of several files as one source, for a checkpoint in shards.

    Args:
        sources: the shards; each tensor must lie in one of them only.

    Raises:
        CheckpointError: a tensor lies in two of the files.
    """

    def __init__(self, sources: Iterable[TensorSource]) -> None:
        self._sources = list(sources)
        self._owner: dict[str, TensorSource] = {}
        self.infos: dict[str, TensorInfo] = {}
        self.metadata: dict[str, Any] = {}
        for source in self._sources:
            for name, info in source.infos.items():
                if name in self.infos:
                    raise CheckpointError(
                        f"{info.file}: tensor {name!r} also lies in {self.infos[name].file.name}; "
                        "each tensor must lie in one shard."
                    )
                self.infos[name] = info
                self._owner[name] = source
            self.metadata.update(source.metadata)

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Returns a tensor, or the part of it that ``index`` names, from the shard that holds it."""
        if name not in self._owner:
            raise unknown_tensor(name, "the checkpoint's shards", self._owner)
        return self._owner[name].read(name, index)

    def close(self) -> None:
        """Closes every shard."""
        for source in self._sources:
            source.close()
