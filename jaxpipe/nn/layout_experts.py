"""How the weights of a mixture's experts lie in a Hub checkpoint; a layout reads only the experts it is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jaxpipe.nn.layout import Direct, Index, Layout, Read, Stacked, Transposed


@dataclass(frozen=True)
class PerExpert:
    """An array (E, ...) whose experts are tensors of their own.

    Attributes:
        experts: E.
        inner: how one expert's array lies in the checkpoint; its names follow the expert's number and a dot.
    """

    experts: int
    inner: Layout

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        return {f"{e}.{name}": shape for e in range(self.experts) for name, shape in self.inner.tensors.items()}

    def read(self, read: Read, index: Index) -> np.ndarray:
        chosen, *rest = index
        out: np.ndarray | None = None
        for i, e in enumerate(range(chosen.start, chosen.stop)):
            block = self.inner.read(lambda name, part, e=e: read(f"{e}.{name}", part), tuple(rest))
            if out is None:
                out = np.empty((chosen.stop - chosen.start, *block.shape), block.dtype)
            out[i] = block
        assert out is not None  # a slice of an array holds at least one expert
        return out

    def write(self, array: np.ndarray) -> dict[str, np.ndarray]:
        return {f"{e}.{name}": part for e in range(self.experts) for name, part in self.inner.write(array[e]).items()}


@dataclass(frozen=True)
class FusedGateUp:
    """Gate and up projections (E, D, 2, F), or their biases (E, 2, F), that are one tensor of the checkpoint.

    Attributes:
        name: of the tensor.
        experts, features: E and F.
        width: D, or None for a bias.
        interleaved: gate and up features alternate, else all of the gate's come first.
        transposed: the checkpoint stores (E, 2 F, D), else (E, D, 2 F).
    """

    name: str
    experts: int
    width: int | None
    features: int
    interleaved: bool = False
    transposed: bool = False

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        if self.width is None:
            return {self.name: (self.experts, 2 * self.features)}
        columns = (2 * self.features, self.width) if self.transposed else (self.width, 2 * self.features)
        return {self.name: (self.experts, *columns)}

    def _read_columns(self, read: Read, experts: slice, rows: Index, columns: slice) -> np.ndarray:
        if self.transposed and self.width is not None:
            return np.swapaxes(read(self.name, (experts, columns, *rows)), 1, 2)
        return read(self.name, (experts, *rows, columns))

    def read(self, read: Read, index: Index) -> np.ndarray:
        experts, *rows, halves, features = index
        if self.interleaved:
            block = self._read_columns(read, experts, tuple(rows), slice(2 * features.start, 2 * features.stop))
            block = block.reshape(*block.shape[:-1], -1, 2)  # (E, D, F, 2)
            return np.swapaxes(block, -1, -2)[..., halves, :]
        offsets = range(0, 2 * self.features, self.features)[halves]
        columns = [slice(o + features.start, o + features.stop) for o in offsets]
        return np.stack([self._read_columns(read, experts, tuple(rows), c) for c in columns], axis=-2)

    def write(self, array: np.ndarray) -> dict[str, np.ndarray]:
        if self.interleaved:
            array = np.swapaxes(array, -1, -2)
        flat = array.reshape(*array.shape[:-2], 2 * self.features)
        return {self.name: np.swapaxes(flat, 1, 2) if self.transposed and self.width is not None else flat}


@dataclass(frozen=True)
class SwappedExperts:
    """An array (E, F, D) that the checkpoint stores as (E, D, F)."""

    name: str
    shape: tuple[int, int, int]  # (E, F, D)

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        experts, features, width = self.shape
        return {self.name: (experts, width, features)}

    def read(self, read: Read, index: Index) -> np.ndarray:
        experts, features, width = index
        return np.swapaxes(read(self.name, (experts, width, features)), 1, 2)

    def write(self, array: np.ndarray) -> dict[str, np.ndarray]:
        return {self.name: np.swapaxes(array, 1, 2)}


@dataclass(frozen=True)
class ExpertLayouts:
    """The layouts of one mixture: gate and up (E, D, 2, F), down (E, F, D), and their biases or None."""

    gate_up: Layout
    down: Layout
    gate_up_bias: Layout | None = None
    down_bias: Layout | None = None


GATE_UP_DOWN = ("gate_proj", "up_proj", "down_proj")


def fused_names(names: tuple[str, str, str] = GATE_UP_DOWN) -> Mapping[str, tuple[str, ...]]:
    """Returns `registry.Architecture.fused` of experts whose layers are named gate, up and down."""
    gate, up, down = (rf"\1.{{e}}.{name}.weight" for name in names)
    return {r"(.*\.experts)\.gate_up_proj": (gate, up), r"(.*\.experts)\.down_proj": (down,)}


def per_expert(experts: int, width: int, features: int, names: tuple[str, str, str] = GATE_UP_DOWN) -> ExpertLayouts:
    """Returns the layouts of experts that are linear layers of their own, named gate, up and down."""
    gate, up, down = (f"{name}.weight" for name in names)
    return ExpertLayouts(
        PerExpert(experts, Stacked((gate, up), features, width)),
        PerExpert(experts, Transposed(down, (features, width))),
    )


def fused_linear(experts: int, width: int, features: int, names: tuple[str, str]) -> ExpertLayouts:
    """Returns the layouts of experts in two tensors (E, 2 F, D) and (E, D, F), gate before up."""
    return ExpertLayouts(
        FusedGateUp(f"{names[0]}.weight", experts, width, features, transposed=True),
        SwappedExperts(f"{names[1]}.weight", (experts, features, width)),
    )


def interleaved_biased(experts: int, width: int, features: int) -> ExpertLayouts:
    """Returns the layouts of experts in tensors (E, D, 2 F) and (E, F, D) with biases, gate and up alternating."""
    return ExpertLayouts(
        FusedGateUp("gate_up_proj", experts, width, features, interleaved=True),
        Direct("down_proj", (experts, features, width)),
        FusedGateUp("gate_up_proj_bias", experts, None, features, interleaved=True),
        Direct("down_proj_bias", (experts, width)),
    )
