"""How one array of a module lies in a Hub checkpoint.

A layout names the checkpoint's tensors, reads any slice of the array from them, and splits the
array into them again. Names are relative to the module that owns the array. The same object
serves loading, saving and every check of shapes, so that both ways agree.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

Index = tuple[slice, ...]
Read = Callable[[str, Index], np.ndarray]  # reads a slice of a tensor of the checkpoint


class Layout(Protocol):
    """The tensors of a checkpoint that make up one array."""

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Names of the checkpoint's tensors, relative to the owning module, with their shapes."""
        ...

    def read(self, read: Read, index: Index) -> np.ndarray:
        """Returns the slice ``index`` (a start and stop for every dimension) of the array."""
        ...

    def write(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """Splits the whole array into the checkpoint's tensors."""
        ...


@dataclass(frozen=True)
class Direct:
    """The array is one tensor of the checkpoint, as it is."""

    name: str
    shape: tuple[int, ...]

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        return {self.name: self.shape}

    def read(self, read: Read, index: Index) -> np.ndarray:
        return read(self.name, index)

    def write(self, array: np.ndarray) -> dict[str, np.ndarray]:
        return {self.name: array}


@dataclass(frozen=True)
class Transposed:
    """A kernel (in, out) that the checkpoint stores as (out, in), as torch's Linear does."""

    name: str
    shape: tuple[int, int]  # (in, out)

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        return {self.name: self.shape[::-1]}

    def read(self, read: Read, index: Index) -> np.ndarray:
        return read(self.name, index[::-1]).T

    def write(self, array: np.ndarray) -> dict[str, np.ndarray]:
        return {self.name: array.T}


@dataclass(frozen=True)
class Stacked:
    """Several equal projections in one array: (D, n, F) of n tensors (F, D), or (n, F) of n biases (F,)."""

    names: tuple[str, ...]
    features: int
    width: int | None  # None for a bias

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        shape = (self.features,) if self.width is None else (self.features, self.width)
        return dict.fromkeys(self.names, shape)

    def read(self, read: Read, index: Index) -> np.ndarray:
        *rows, stack, columns = index
        parts = [read(name, (columns, *rows)).T for name in self.names[stack]]
        return np.stack(parts, axis=-2)  # (D, n, F) or (n, F)

    def write(self, array: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[..., i, :].T for i, name in enumerate(self.names)}


@dataclass(frozen=True)
class Joined:
    """Several equal projections in one array (D, n, F), or (n, F) of a bias, which lie one behind the other in one
    tensor (n F, D) or (n F,).
    """

    name: str
    parts: int
    features: int
    width: int | None  # None for a bias

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        rows = self.parts * self.features
        return {self.name: (rows,) if self.width is None else (rows, self.width)}

    def read(self, read: Read, index: Index) -> np.ndarray:
        *columns, stack, features = index
        offsets = [part * self.features for part in range(self.parts)[stack]]
        rows = [slice(offset + features.start, offset + features.stop) for offset in offsets]
        return np.stack([read(self.name, (part, *columns)).T for part in rows], axis=-2)  # (D, n, F) or (n, F)

    def write(self, array: np.ndarray) -> dict[str, np.ndarray]:
        return {self.name: array.reshape(*array.shape[:-2], -1).T}


@dataclass(frozen=True)
class PackedHeads:
    """Query, key and value projections in one array, grouped by key-value head.

    The kernel is (D, G, (H/G + 2) h) and the bias (G, (H/G + 2) h): group g holds its H/G query
    heads, then one key head, then one value head. G is K, or a multiple of K where key and value
    heads are repeated so that the groups divide a mesh axis.

    Attributes:
        names: tensors of q, k and v, or one tensor in which they follow one another.
        heads, kv_heads, groups, head_dim: H, K, G and h.
        width: D, or None for a bias.
        transposed: the checkpoint stores (out, in), as torch's Linear does; else (in, out).
    """

    names: tuple[str, ...]
    heads: int
    kv_heads: int
    groups: int
    head_dim: int
    width: int | None
    transposed: bool = True

    @property
    def _rows(self) -> tuple[int, int, int]:
        return self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        rows = self._rows if len(self.names) == 3 else (sum(self._rows),)
        return {name: self._disk_shape(n) for name, n in zip(self.names, rows, strict=True)}

    @property
    def unrepeated(self) -> tuple[int, ...]:
        """Shape of the array where no head is repeated."""
        features = (self.heads // self.kv_heads + 2) * self.head_dim
        return (self.kv_heads, features) if self.width is None else (self.width, self.kv_heads, features)

    def repeat(self, array: jax.Array) -> jax.Array:
        """Repeats the key and value heads of an array of shape `unrepeated`."""
        width = array.shape[:-2]
        copies, h = self.groups // self.kv_heads, self.head_dim
        q = array[..., : -2 * h].reshape(*width, self.groups, self.heads // self.groups * h)
        kv = jnp.repeat(array[..., -2 * h :], copies, axis=-2)
        return jnp.concatenate([q, kv], axis=-1)  # (D, G, (H/G + 2) h)

    def _disk_shape(self, rows: int) -> tuple[int, ...]:
        if self.width is None:
            return (rows,)
        return (rows, self.width) if self.transposed else (self.width, rows)

    def _read_heads(self, read: Read, part: int, heads: slice, columns: tuple[slice, ...]) -> np.ndarray:
        """Heads of q (part 0), k or v as (heads, h, D), or (heads, h) of a bias."""
        offset = 0 if len(self.names) == 3 else sum(self._rows[:part])
        rows = slice(offset + heads.start * self.head_dim, offset + heads.stop * self.head_dim)
        name = self.names[part if len(self.names) == 3 else 0]
        block = read(name, (rows, *columns) if self.transposed else (*columns, rows))
        block = block if self.transposed or self.width is None else block.T
        return block.reshape(heads.stop - heads.start, self.head_dim, *block.shape[1:])

    def _read_parts(
        self, read: Read, q: slice, kv: slice, columns: tuple[slice, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The query heads `q` and the key and value heads `kv`, each as `_read_heads` gives them."""
        k, v = (self._read_heads(read, part, kv, columns) for part in (1, 2))
        return self._read_heads(read, 0, q, columns), k, v

    def _join(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> list[np.ndarray]:
        """The rows of the checkpoint's tensors, of q (K, (H/K) h, D), k and v (K, h, D), or without D of a bias."""
        flat = [part.reshape(-1, *part.shape[2:]) for part in (q, k, v)]
        return flat if len(self.names) == 3 else [np.concatenate(flat)]

    def read(self, read: Read, index: Index) -> np.ndarray:
        *columns, groups, features = index
        n = groups.stop - groups.start
        per_group, copies = self.heads // self.groups, self.groups // self.kv_heads
        kv = slice(groups.start // copies, (groups.stop - 1) // copies + 1)
        owner = np.arange(groups.start, groups.stop) // copies - kv.start
        heads = slice(groups.start * per_group, groups.stop * per_group)
        q, k, v = self._read_parts(read, heads, kv, tuple(columns))
        q = q.reshape(n, per_group * self.head_dim, *q.shape[2:])
        packed = np.concatenate([q, k[owner], v[owner]], axis=1)[:, features]  # (G, (H/G + 2) h, D)
        return packed if self.width is None else np.moveaxis(packed, -1, 0)

    def write(self, array: np.ndarray) -> dict[str, np.ndarray]:
        packed = array if self.width is None else np.moveaxis(array, 0, -1)
        h, copies = self.head_dim, self.groups // self.kv_heads
        q, k, v = np.split(packed, [packed.shape[1] - 2 * h, packed.shape[1] - h], axis=1)
        q = q.reshape(self.kv_heads, -1, *q.shape[2:])
        return {
            name: part if self.transposed or self.width is None else part.T
            for name, part in zip(self.names, self._join(q, k[::copies], v[::copies]), strict=True)
        }


@dataclass(frozen=True)
class GroupedHeads(PackedHeads):
    """`PackedHeads` of one tensor that the checkpoint groups by key-value head too, as Megatron does.

    Its rows are K times H/K query heads, a key head and a value head: (H, 3, h) of multi-head attention,
    (K, H/K + 2, h) of grouped, (H + 2, h) of multi-query attention.
    """

    def _read_parts(
        self, read: Read, q: slice, kv: slice, columns: tuple[slice, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        per_kv = self.heads // self.kv_heads
        rows = slice(*(bound * (per_kv + 2) * self.head_dim for bound in (kv.start, kv.stop)))
        block = read(self.names[0], (rows, *columns) if self.transposed else (*columns, rows))
        block = block if self.transposed or self.width is None else block.T
        block = block.reshape(kv.stop - kv.start, per_kv + 2, self.head_dim, *block.shape[1:])
        heads = block[:, :per_kv].reshape(-1, *block.shape[2:])  # (heads, h, D)
        return heads[q.start - kv.start * per_kv : q.stop - kv.start * per_kv], block[:, -2], block[:, -1]

    def _join(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> list[np.ndarray]:
        joined = np.concatenate([q, k, v], axis=1)  # (K, (H/K + 2) h, D)
        return [joined.reshape(-1, *joined.shape[2:])]


@dataclass(frozen=True)
class SplitHeads:
    """n projections to the same heads in one array (D, H, n h), each stored as (H h, D); or (H, n h) of n biases.

    Attributes:
        names: tensors of the projections.
        heads, head_dim: H and h.
        width: D, or None for biases.
    """

    names: tuple[str, ...]
    heads: int
    head_dim: int
    width: int | None

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        rows = self.heads * self.head_dim
        return dict.fromkeys(self.names, (rows,) if self.width is None else (rows, self.width))

    def read(self, read: Read, index: Index) -> np.ndarray:
        *columns, heads, features = index
        rows = slice(heads.start * self.head_dim, heads.stop * self.head_dim)
        parts = [read(name, (rows, *columns)) for name in self.names]
        parts = [part.reshape(-1, self.head_dim, *part.shape[1:]) for part in parts]
        packed = np.concatenate(parts, axis=1)[:, features]  # (H, n h, D)
        return packed if self.width is None else np.moveaxis(packed, -1, 0)

    def write(self, array: np.ndarray) -> dict[str, np.ndarray]:
        packed = array if self.width is None else np.moveaxis(array, 0, -1)
        parts = np.split(packed, len(self.names), axis=1)
        return {name: part.reshape(-1, *part.shape[2:]) for name, part in zip(self.names, parts, strict=True)}


@dataclass(frozen=True)
class HeadsOut:
    """An output projection (G, (H/G) h, D), stored as (D, H h) or, untransposed, as (H h, D)."""

    name: str
    groups: int
    features: int  # (H/G) h
    width: int
    transposed: bool = True

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        shape = (self.groups * self.features, self.width)
        return {self.name: shape[::-1] if self.transposed else shape}

    def read(self, read: Read, index: Index) -> np.ndarray:
        groups, features, columns = index
        rows = slice(groups.start * self.features, groups.stop * self.features)
        block = read(self.name, (columns, rows)).T if self.transposed else read(self.name, (rows, columns))
        return block.reshape(groups.stop - groups.start, self.features, -1)[:, features]

    def write(self, array: np.ndarray) -> dict[str, np.ndarray]:
        flat = array.reshape(self.groups * self.features, self.width)
        return {self.name: flat.T if self.transposed else flat}
