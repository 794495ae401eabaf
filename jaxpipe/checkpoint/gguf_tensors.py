"""The tensors of a GGUF file under the Hub's names and in the Hub's layout, dequantised a few rows at a time."""

import functools
import mmap
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxpipe.checkpoint.gguf_header import GGUFTensor
from jaxpipe.checkpoint.source import Index, TensorInfo, unknown_tensor
from jaxpipe.common.errors import CheckpointError
from jaxpipe.common.gguf_spec import GGUFSpec

# Types stored as plain numbers, by GGML's numbers; everything else is dequantised to float32.
RAW: dict[int, np.dtype] = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float16),
    24: np.dtype(np.int8),
    25: np.dtype(np.int16),
    26: np.dtype(np.int32),
    27: np.dtype(np.int64),
    28: np.dtype(np.float64),
    30: np.dtype(ml_dtypes.bfloat16),
}
ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
# Transforms that leave the rows where they are.
PLAIN_TRANSFORMS = ("transpose", "minus_one")
REGROUP = "regroup_heads"
# Values dequantised at once. The package's intermediate arrays take several times as much.
CHUNK = 2**20


@functools.cache
def dequantiser(kind: int) -> Callable[[np.ndarray], np.ndarray] | None:
    """Returns the function from blocks of bytes (rows, bytes) to float32 (rows, values), or None if there is none."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    type_ = GGMLQuantizationType(kind)
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[type_][1]), np.uint8), type_)
    except NotImplementedError:
        return None
    return functools.partial(dequantize, qtype=type_)


def check_types(path: Path, tensors: dict[str, GGUFTensor]) -> None:
    """Raises CheckpointError where tensors have types that cannot be dequantised."""
    from gguf.constants import GGMLQuantizationType

    refused = [tensor for tensor in tensors.values() if tensor.type not in RAW and dequantiser(tensor.type) is None]
    if refused:
        found = ", ".join(sorted({GGMLQuantizationType(tensor.type).name for tensor in refused}))
        known = ", ".join(sorted(kind.name for kind in GGMLQuantizationType if kind in RAW or dequantiser(kind)))
        raise CheckpointError(
            f"{path}: {len(refused)} tensors ({refused[0].name!r}, ...) have the quantisation type {found}, which "
            f"cannot be dequantised; the supported types are {known}."
        )


def hub_name(names: Mapping[str, str], name: str) -> str:
    """Returns the Hub's name of a GGUF tensor by templates, or the same name where none of them fits."""
    base, dot, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        base, dot, suffix = name, "", ""
    layer = re.search(r"(?<=blk\.)\d+", base)
    template = re.sub(r"(?<=blk\.)\d+", "{bid}", base)
    if template not in names:
        return name
    return names[template].replace("{bid}", layer[0] if layer else "") + dot + suffix


class GGUFSource:
    """A source of a GGUF file's tensors: plain ones as views of the file, quantised ones as float32.

    Args:
        path: the file, for messages.
        data: its memory map.
        tensors: the tensors of its header.
        spec: names and layouts of the architecture.
        heads: query heads and key-value heads, where the file says.
        metadata: the file's metadata.

    Raises:
        CheckpointError: a type cannot be dequantised, or a layout does not fit a tensor.
    """

    def __init__(
        self,
        path: Path,
        data: mmap.mmap,
        tensors: dict[str, GGUFTensor],
        spec: GGUFSpec,
        heads: tuple[Any, Any],
        metadata: dict[str, Any],
    ) -> None:
        check_types(path, tensors)
        self.path = path
        self.metadata = metadata
        self._heads = {"unpermute_heads": heads[0], "unpermute_kv_heads": heads[1], REGROUP: heads[1]}
        self._query_heads = heads[0]
        self._bytes: np.ndarray | None = np.frombuffer(data, np.uint8)
        self._tensors: dict[str, tuple[GGUFTensor, str | None]] = {}
        self.infos: dict[str, TensorInfo] = {}
        names = dict(spec.tensors)
        for present, replaced in spec.variants.items():
            names |= replaced if present in tensors else {}
        for tensor in tensors.values():
            # They hold a scaling of the configuration, not a weight.
            if tensor.name in (ROPE_FREQS, ROPE_LONG, ROPE_SHORT):
                continue
            name = hub_name(names, tensor.name)
            if name in self.infos:
                raise CheckpointError(
                    f"{path}: tensors {tensor.name!r} and {self._tensors[name][0].name!r} are both {name!r}."
                )
            transform = next((value for key, value in spec.transforms.items() if re.fullmatch(key, name)), None)
            self._check_transform(tensor, transform)
            shape = tensor.shape[::-1] if transform == "transpose" else tensor.shape
            self.infos[name] = TensorInfo(name, shape, RAW.get(tensor.type, np.dtype(np.float32)), path)
            self._tensors[name] = tensor, transform

    def _check_transform(self, tensor: GGUFTensor, transform: str | None) -> None:
        if transform is None or transform in PLAIN_TRANSFORMS:
            return
        heads = self._heads.get(transform)
        if transform not in self._heads:
            known = [*PLAIN_TRANSFORMS, *self._heads]
            raise ValueError(f"{tensor.name!r}: transform {transform!r} is not one of {known}.")
        if transform == REGROUP:
            self._check_groups(tensor)
        elif not isinstance(heads, int) or heads <= 0 or not tensor.shape or tensor.shape[0] % (2 * heads):
            raise CheckpointError(
                f"{self.path}: tensor {tensor.name!r} of shape {tensor.shape} cannot be split in "
                f"{heads} heads of even width."
            )

    def _check_groups(self, tensor: GGUFTensor) -> None:
        heads, kv_heads = self._query_heads, self._heads[REGROUP]
        counted = all(isinstance(count, int) and count > 0 for count in (heads, kv_heads))
        if not counted or heads % kv_heads or not tensor.shape or tensor.shape[0] % (heads + 2 * kv_heads):
            raise CheckpointError(
                f"{self.path}: tensor {tensor.name!r} of shape {tensor.shape} does not hold {heads} query heads and "
                f"{kv_heads} key and value heads each."
            )

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Returns a tensor, or the part of it that ``index`` names; only its rows and blocks are read.

        Args:
            name: the Hub's name of the tensor.
            index: a slice for each leading dimension, or None for the whole tensor.

        Raises:
            KeyError: there is no tensor of that name.
            ValueError: the file was closed.
        """
        if name not in self._tensors:
            raise unknown_tensor(name, self.path, self._tensors)
        if self._bytes is None:
            raise ValueError(f"{self.path}: the file was closed.")
        tensor, transform = self._tensors[name]
        dimensions = len(tensor.shape)
        index = tuple(index or ())
        index += (slice(None),) * (dimensions - len(index))
        if transform == "transpose":
            index = index[::-1]
        rows = self._rows(tensor, transform)
        raw = self._bytes[tensor.begin : tensor.end]
        if tensor.type in RAW:
            array = raw.view(RAW[tensor.type]).reshape(tensor.shape)
            array = array[index] if rows is None else array[(rows[index[0]], *index[1:])]
            array = array if array.flags.aligned else array.copy()
        else:
            array = _dequantise(raw, tensor, index, rows)
        if transform == "minus_one":
            return array - np.ones((), array.dtype)
        return array.T if transform == "transpose" else array

    def _rows(self, tensor: GGUFTensor, transform: str | None) -> np.ndarray | None:
        """Returns which stored row each row of the Hub's tensor is, or None where they are the same.

        llama.cpp rotates neighbouring pairs, the Hub's models the two halves of a head, so its converter interleaves
        the halves' rows. Of joined projections it takes the groups apart that Falcon's checkpoints have.
        """
        heads = self._heads.get(transform or "")
        if heads is None:
            return None
        count = tensor.shape[0]
        if transform == REGROUP:
            width = count // (self._query_heads + 2 * heads)
            query, key, value = np.split(np.arange(count), [self._query_heads * width, count - heads * width])
            return np.concatenate([part.reshape(heads, -1) for part in (query, key, value)], axis=1).reshape(-1)
        return np.arange(count).reshape(heads, count // heads // 2, 2).swapaxes(1, 2).reshape(-1)

    def close(self) -> None:
        """Lets go of the map; it is unmapped when the last array that was read is gone."""
        self._bytes = None


def _dequantise(raw: np.ndarray, tensor: GGUFTensor, index: Index, rows: np.ndarray | None) -> np.ndarray:
    """Dequantises the rows and columns that ``index`` names, `CHUNK` values at a time."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type)]
    function = dequantiser(tensor.type)
    assert function is not None  # checked when the file was opened
    *leading, width = tensor.shape
    columns = range(width)[index[-1]]
    if rows is None:
        rows = np.arange(int(np.prod(leading, dtype=np.int64))).reshape(leading)
    rows = rows[index[:-1]]
    shape = (*rows.shape, len(columns))
    rows = rows.reshape(-1)
    out = np.empty((len(rows), len(columns)), np.float32)
    if not out.size:
        return out.reshape(shape)
    first, last = min(columns[0], columns[-1]) // block, max(columns[0], columns[-1]) // block + 1
    blocks = raw.reshape(-1, width // block * block_bytes)
    inside = np.arange(columns[0], columns[0] + len(columns) * columns.step, columns.step) - first * block
    select: Any = slice(int(inside[0]), int(inside[-1]) + 1) if columns.step == 1 else inside
    step = max(1, CHUNK // ((last - first) * block))
    # A damaged scale may overflow; the values are what the file says.
    with np.errstate(all="ignore"):
        for begin in range(0, len(rows), step):
            chunk = blocks[rows[begin : begin + step], first * block_bytes : last * block_bytes]
            out[begin : begin + step] = function(chunk)[:, select]
    return out.reshape(shape)
