"""Weights that are drawn anew where a checkpoint's have another shape: ``ignore_mismatched_sizes=True``."""

import dataclasses
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxpipe.checkpoint.build import Blueprint
from jaxpipe.checkpoint.names import Match
from jaxpipe.checkpoint.source import Index, TensorInfo, TensorSource
from jaxpipe.common.logging import logger

# Before the names of drawn tensors, so that they are none of the checkpoint's.
PREFIX = "drawn anew: "


@dataclasses.dataclass(frozen=True)
class Draw:
    """How a tensor is drawn: its shape, ``"normal"`` (0, std), ``"zeros"`` or ``"ones"``, and the seed."""

    shape: tuple[int, ...]
    initializer: str
    std: float
    seed: int

    def read(self, index: Index) -> np.ndarray:
        """Returns a part of the tensor; each row has a seed of its own, so that parts of it agree."""
        if self.initializer != "normal":
            part = np.empty(self.shape, np.bool_)[index].shape
            return np.full(part, float(self.initializer == "ones"), np.float32)
        if len(self.shape) < 2:
            return self._row(0, self.shape)[index]
        rows = range(self.shape[0])[index[0] if index else slice(None)]
        values = [self._row(row, self.shape[1:])[index[1:]] for row in rows]
        return np.stack(values) if values else np.empty(self.shape, np.float32)[:0][index]

    def _row(self, row: int, shape: tuple[int, ...]) -> np.ndarray:
        drawn = np.random.default_rng((self.seed, row)).standard_normal(shape, np.float32)
        return np.asarray(drawn * np.float32(self.std))


class RedrawnSource:
    """A checkpoint with some tensors drawn anew.

    Args:
        source: the checkpoint.
        drawn: name, with the prefix, to how it is drawn.
    """

    def __init__(self, source: TensorSource, drawn: Mapping[str, Draw]) -> None:
        self._source, self._drawn = source, drawn
        made = {n: TensorInfo(n, draw.shape, np.dtype(np.float32), Path()) for n, draw in drawn.items()}
        self.infos: dict[str, TensorInfo] = {**source.infos, **made}
        self.metadata: Mapping[str, Any] = source.metadata

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Returns a tensor, or the part of it that ``index`` names."""
        return self._drawn[name].read(index or ()) if name in self._drawn else self._source.read(name, index)

    def close(self) -> None:
        """Closes the checkpoint."""
        self._source.close()


def redraw(source: TensorSource, found: Match, blueprint: Blueprint, where: str) -> TensorSource:
    """Returns a source that draws what has another shape in the checkpoint, and lets ``found`` name it.

    Args:
        source: the checkpoint.
        found: as `build.fit` found it.
        blueprint: the module, whose parameters say how they are drawn.
        where: the checkpoint, named in the warning.
    """
    if not found.mismatched:
        return source
    shapes = {name: asked for name, _, asked in found.mismatched}
    variables, drawn = blueprint.variables(), {}
    for entry in blueprint.entries():
        metadata = variables[entry.path].get_metadata()
        for name in entry.tensors.keys() & shapes.keys():
            seed = zlib.crc32(name.encode())
            drawn[PREFIX + name] = Draw(shapes[name], metadata["initializer"], metadata["std"], seed)
            found.sources[name] = PREFIX + name
    listed = "; ".join(f"{name}: {old} in the checkpoint, {new} here" for name, old, new in found.mismatched)
    logger.warning("%s: drawn at random, because the shapes differ: %s.", where, listed)
    return RedrawnSource(source, drawn)
