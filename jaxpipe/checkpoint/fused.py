"""Experts that a checkpoint holds in one tensor, under the names that they have one by one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxpipe.checkpoint.names import current_name
from jaxpipe.checkpoint.source import Index, TensorInfo, TensorSource, unknown_tensor
from jaxpipe.common.errors import CheckpointError
from jaxpipe.models.registry import Architecture


def split_fused(source: TensorSource, architecture: Architecture) -> TensorSource:
    """Returns the source with the tensors of `Architecture.fused` taken apart; the same one where it has none."""
    found = {name: parts for name in source.infos if (parts := _parts(name, source.infos[name], architecture))}
    return SplitSource(source, found) if found else source


@dataclass(frozen=True)
class Part:
    """Rows `rows` of the matrix of expert `expert` in tensor `whole`."""

    whole: str
    expert: int
    rows: slice


def _parts(name: str, info: TensorInfo, architecture: Architecture) -> dict[str, Part]:
    current = current_name(name, architecture)
    for pattern, templates in architecture.fused.items():
        if not re.fullmatch(pattern, current) or len(info.shape) != 3 or info.shape[1] % len(templates):
            continue
        experts, rows = info.shape[0], info.shape[1] // len(templates)
        return {
            re.sub(pattern, template, current).replace("{e}", str(e)): Part(name, e, slice(i * rows, (i + 1) * rows))
            for i, template in enumerate(templates)
            for e in range(experts)
        }
    return {}


class SplitSource:
    """A source in which some tensors (E, n F, D) are E n tensors (F, D).

    Args:
        source: of the tensors as they lie in the files.
        parts: name of a tensor -> what it is taken apart into, by name.

    Raises:
        CheckpointError: the source holds a part by itself too.
    """

    def __init__(self, source: TensorSource, parts: Mapping[str, Mapping[str, Part]]) -> None:
        self._source = source
        self._parts = {name: part for own in parts.values() for name, part in own.items()}
        self.infos: dict[str, TensorInfo] = {k: info for k, info in source.infos.items() if k not in parts}
        for name, part in self._parts.items():
            whole = source.infos[part.whole]
            if name in self.infos:
                raise CheckpointError(f"{whole.file}: tensor {name!r} is also a part of {part.whole!r}.")
            shape = (part.rows.stop - part.rows.start, whole.shape[2])
            self.infos[name] = replace(whole, name=name, shape=shape)
        self.metadata: Mapping[str, Any] = source.metadata

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Returns a tensor, or the part of it that ``index`` names."""
        if name not in self.infos:
            raise unknown_tensor(name, "the checkpoint", self.infos)
        part = self._parts.get(name)
        if part is None:
            return self._source.read(name, index)
        rows, *rest = index or (slice(None),)
        start, stop, step = rows.indices(part.rows.stop - part.rows.start)
        inside = slice(part.rows.start + start, part.rows.start + stop, step)
        return self._source.read(part.whole, (slice(part.expert, part.expert + 1), inside, *rest))[0]

    def close(self) -> None:
        """Closes the files."""
        self._source.close()
