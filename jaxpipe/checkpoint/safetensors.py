"""The safetensors format: a reader over a memory map, and a writer that holds one tensor at a time.

A file is 8 bytes with the little-endian length of a JSON header, the header, and the tensors' bytes without gaps
(https://huggingface.co/docs/safetensors). The reader is our own because ``safetensors.safe_open`` hands numpy none of
the 8-bit and 4-bit float types.
"""

import contextlib
import dataclasses
import json
import math
import mmap
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeGuard

import ml_dtypes
import numpy as np

from jaxpipe.checkpoint.source import Index, TensorInfo, unknown_tensor
from jaxpipe.common.errors import CheckpointError

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(value)
    for name, value in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F32": np.float32,
        "F64": np.float64,
        "C64": np.complex64,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "F4": ml_dtypes.float4_e2m1fn,
    }.items()
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# In the format, but neither numpy nor ml_dtypes can address four 6-bit values in three bytes.
REFUSED = ("F6_E2M3", "F6_E3M2")
# The limits of the reference implementation, of numpy's dimensions and of its byte counts.
MAX_HEADER = 100_000_000
MAX_DIMENSIONS = 64
MAX_BYTES = 2**63 - 1


def bits(dtype_name: str) -> int:
    """Bits that one element takes in a file."""
    return 4 if dtype_name == "F4" else 8 * DTYPES[dtype_name].itemsize


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a header; ``begin`` and ``end`` count bytes from the start of the file."""

    dtype_name: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A safetensors file as a source of tensors: views of a memory map, read-only.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file cannot be read, or its header does not describe its bytes exactly.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        header, start, size, mapped = _open(self.path)
        self.metadata: dict[str, str] = _metadata(self.path, header)
        self._entries = {name: _entry(self.path, name, value, start, size) for name, value in header.items()}
        _check_layout(self.path, self._entries, start, size)
        self.infos: dict[str, TensorInfo] = {
            name: TensorInfo(name, entry.shape, DTYPES[entry.dtype_name], self.path)
            for name, entry in self._entries.items()
        }
        self._bytes: np.ndarray | None = np.frombuffer(mapped, np.uint8)

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Returns a tensor, or the part of it that ``index`` names; only the pages of that part are read.

        Args:
            name: the tensor.
            index: a slice for each leading dimension, or None for the whole tensor.

        Raises:
            KeyError: there is no tensor of that name.
            ValueError: the file was closed.
        """
        if name not in self._entries:
            raise unknown_tensor(name, self.path, self._entries)
        if self._bytes is None:
            raise ValueError(f"{self.path}: the file was closed.")
        entry = self._entries[name]
        index = index or ()
        raw = self._bytes[entry.begin : entry.end]
        if entry.dtype_name == "F4":
            return _read_packed(raw, entry.shape, index)
        if entry.dtype_name == "BOOL":
            # A stored byte may be any number; numpy's booleans must be 0 or 1.
            return raw.reshape(entry.shape)[index] != 0
        array = raw.view(DTYPES[entry.dtype_name]).reshape(entry.shape)[index]
        # Files written before headers were padded may place data at any byte.
        return array if array.flags.aligned else array.copy()

    def close(self) -> None:
        """Lets go of the map; it is unmapped when the last array that was read is gone."""
        self._bytes = None


def _open(path: Path) -> tuple[dict[str, Any], int, int, mmap.mmap]:
    """Returns the parsed header, the offset of the data, the size of the file and its memory map."""
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file.")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise CheckpointError(
                    f"{path}: the header should take {length} bytes, but the file has {size}; "
                    "it is truncated or no safetensors file. Download it again."
                )
            if length > MAX_HEADER:
                raise CheckpointError(f"{path}: a header of {length} bytes is over the format's limit of {MAX_HEADER}.")
            header = _parse(path, file.read(length))
            return header, 8 + length, size, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise CheckpointError(f"{path}: the header names {twice!r} twice.")
        return result

    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=no_duplicates)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: no valid safetensors file: the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header must be a JSON object, not {type(header).__name__}.")
    return header


def _metadata(path: Path, header: dict[str, Any]) -> dict[str, str]:
    metadata = header.pop("__metadata__", None)
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ in the header must map names to strings.")
    return metadata


def _is_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_BYTES for item in value)


def _entry(path: Path, name: str, value: Any, start: int, size: int) -> Entry:
    """Checks what the header says of one tensor, in plain integers, before any array is made."""

    def fail(problem: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {name!r}: {problem}")

    if not isinstance(value, dict):
        raise fail(f"the header must hold an object for it, not {type(value).__name__}.")
    dtype_name, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if isinstance(dtype_name, str) and dtype_name in REFUSED:
        raise fail(f"dtype {dtype_name} (6 bits an element) is not supported; convert it to F8_E4M3 or BF16.")
    if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
        raise fail(f"unknown dtype {dtype_name!r}; the known ones are {', '.join(DTYPES)}.")
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise fail(f"shape {_short(shape)} is not a list of at most {MAX_DIMENSIONS} non-negative integers.")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fail(f"data_offsets {_short(offsets)} are not two rising non-negative integers.")
    # numpy refuses dimensions whose product overflows even where another one is zero.
    if math.prod(max(dimension, 1) for dimension in shape) * DTYPES[dtype_name].itemsize > MAX_BYTES:
        raise fail(f"shape {_short(shape)} is larger than any array can be.")
    begin, end = start + offsets[0], start + offsets[1]
    if end > size:
        raise fail(f"its bytes should end at {end}, but the file has {size}; it is truncated. Download it again.")
    needed = math.prod(shape) * bits(dtype_name)
    if needed != 8 * (end - begin):
        raise fail(f"shape {_short(shape)} of {dtype_name} needs {needed / 8:g} bytes, but {end - begin} are given.")
    return Entry(dtype_name, tuple(shape), begin, end)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_layout(path: Path, entries: dict[str, Entry], start: int, size: int) -> None:
    """Raises where tensors overlap, or leave bytes that belong to none."""
    position, before = start, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            problem = "overlaps" if entry.begin < position else "leaves unused bytes after"
            raise CheckpointError(f"{path}: tensor {name!r} {problem} {before}; the header does not fit the data.")
        position, before = entry.end, f"tensor {name!r}"
    if position != size:
        raise CheckpointError(f"{path}: {size - position} bytes after {before} belong to no tensor.")


def _read_packed(raw: np.ndarray, shape: tuple[int, ...], index: Index) -> np.ndarray:
    """Unpacks 4-bit floats, two in a byte, the first one in the low half."""
    last: Index = ()
    if shape and shape[-1] % 2 == 0:
        # Rows start at whole bytes, so all dimensions but the last can be sliced before unpacking.
        raw = raw.reshape(*shape[:-1], shape[-1] // 2)[index[: len(shape) - 1]]
        last = (slice(None),) * (len(shape) - 1) + tuple(index[len(shape) - 1 :])
    values = np.empty((*raw.shape, 2), np.uint8)
    np.bitwise_and(raw, 0x0F, out=values[..., 0])
    np.right_shift(raw, 4, out=values[..., 1])
    array = values.view(DTYPES["F4"])
    if last:
        return array.reshape(*raw.shape[:-1], shape[-1])[last]
    return array.reshape(shape)[index]


class Writable(Protocol):
    """An array to write: of numpy, of jax, or a `LazyArray`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        ...

    @property
    def dtype(self) -> Any:
        """Its numpy dtype."""
        ...


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array that is made when it is written: its shape and dtype, and a function that returns it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


def dtype_name(name: str, array: Writable) -> str:
    """Returns the format's name of an array's dtype.

    Raises:
        ValueError: the format has no such dtype.
    """
    dtype = np.dtype(array.dtype)
    # Custom dtypes have no byte order to normalise.
    dtype = dtype.newbyteorder("=") if dtype.kind in "biufc" and dtype.byteorder == ">" else dtype
    if dtype not in NAMES:
        raise ValueError(f"tensor {name!r}: safetensors has no dtype {dtype}; it has {', '.join(NAMES.values())}.")
    return NAMES[dtype]


def stored_bytes(name: str, array: Writable) -> int:
    """Returns the bytes that an array takes in a file."""
    total = math.prod(array.shape) * bits(dtype_name(name, array))
    if total % 8:
        raise ValueError(f"tensor {name!r}: an odd number of 4-bit values does not fill whole bytes.")
    return total // 8


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, Writable]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file, atomically, with one tensor in memory at a time.

    Args:
        path: the file; one that is there is replaced when the new one is complete on disk.
        tensors: pairs of name and array (numpy, jax, or `LazyArray`), written in this order within one element size.
        metadata: names and strings kept in the header; by default ``{"format": "pt"}``.

    Raises:
        ValueError: a name comes twice, a dtype is not in the format, or an array is not what it was announced as.
    """
    path = Path(path)
    partial = partial_path(path)
    try:
        write_partial(partial, tensors, metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)


def partial_path(path: Path) -> Path:
    """Returns a fresh name beside ``path`` for a file that is not complete yet."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")


def sync_directory(directory: Path) -> None:
    """Makes renames in a directory durable, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_partial(
    path: Path, tensors: Iterable[tuple[str, Writable]], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file to a fresh name, down to the disk; see `write_safetensors`."""
    # Larger elements first, as the reference implementation does, so that every tensor is aligned.
    items = sorted(tensors, key=lambda item: -bits(dtype_name(*item)))
    header: dict[str, Any] = {"__metadata__": dict({"format": "pt"} if metadata is None else metadata)}
    position = 0
    for name, array in items:
        if name in header:
            raise ValueError(f"tensor {name!r} cannot be written: the name is taken.")
        end = position + stored_bytes(name, array)
        shape = [int(dimension) for dimension in array.shape]
        header[name] = {"dtype": dtype_name(name, array), "shape": shape, "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("xb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name, array in items:
            _write_array(file, name, array)
        file.flush()
        os.fsync(file.fileno())


def _write_array(file: BinaryIO, name: str, array: Writable) -> None:
    values = np.asarray(array)
    if values.shape != tuple(array.shape) or values.dtype != np.dtype(array.dtype):
        raise ValueError(
            f"tensor {name!r} was announced as {np.dtype(array.dtype)}{tuple(array.shape)}, "
            f"but is {values.dtype}{values.shape}."
        )
    if values.dtype.kind in "biufc":
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    if values.dtype == DTYPES["F4"]:
        flat = flat[0::2] & 0x0F | flat[1::2] << 4
    file.write(flat.data)
