"""The header of a GGUF file, parsed with every size checked.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The ``gguf`` package has a reader, but it makes
an array for each of a vocabulary's strings, which takes seconds.
"""

import dataclasses
import itertools
import math
import mmap
import struct
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from jaxpipe.common.errors import CheckpointError

VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**60
# struct format and numpy dtype of the value types, by the format's numbers.
SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
ARRAYS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
FLOAT32, STRING, ARRAY = 6, 8, 9


@dataclasses.dataclass(frozen=True)
class GGUFTensor:
    """One tensor: its shape, slowest dimension first, its type's number, and where its bytes lie in the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class GGUFHeader:
    """What stands before the tensors' bytes, and the map of the whole file."""

    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    data: mmap.mmap


def read_header(path: Path) -> GGUFHeader:
    """Parses the metadata and the list of tensors of a GGUF file.

    Raises:
        CheckpointError: the file cannot be read, is truncated, or contradicts itself.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file.")
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    cursor = _Cursor(path, data)
    tensor_count, metadata_count = _counts(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        key = cursor.string()
        if key in metadata:
            cursor.fail(f"the metadata names {key!r} twice")
        metadata[key] = cursor.value(key)
    listed = [_tensor_info(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        cursor.fail(f"general.alignment={alignment!r} is not a power of two")
    start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    for name, dimensions, kind, offset in listed:
        if name in tensors:
            cursor.fail(f"the header names tensor {name!r} twice")
        tensors[name] = _place(cursor, name, dimensions, kind, start + offset)
    _check_overlaps(cursor, tensors)
    return GGUFHeader(metadata, tensors, data)


class _Cursor:
    """Reads values one after another; every length is checked against the file before anything is made of it."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = 0

    def fail(self, problem: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: {problem}; the GGUF file is damaged or not supported.")

    def skip(self, length: int) -> int:
        """Moves over ``length`` bytes and returns where they begin."""
        begin = self.position
        if length > self.size - begin:
            self.fail(f"{length} bytes should follow at byte {begin}, but the file ends at {self.size} (truncated?)")
        self.position = begin + length
        return begin

    def scalar(self, format: str) -> Any:
        return struct.unpack_from(format, self.data, self.skip(struct.calcsize(format)))[0]

    def string(self) -> str:
        length = self.scalar("<Q")
        begin = self.skip(length)
        try:
            return self.data[begin : begin + length].decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"the string at byte {begin} is not UTF-8")

    def value(self, key: str) -> Any:
        kind = self.scalar("<I")
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array(key)
        if kind not in SCALARS:
            self.fail(f"{key!r} has the unknown value type {kind}")
        value = self.scalar(SCALARS[kind])
        # The shortest decimal gives back the number that was written: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(value))) if kind == FLOAT32 else value

    def array(self, key: str) -> list[Any]:
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if kind == STRING:
            # A string takes at least its length's 8 bytes: a lying count fails here, not after filling the memory.
            if count > (self.size - self.position) // 8:
                self.fail(f"{key!r} should hold {count} strings, more than the file has room for")
            return [self.string() for _ in range(count)]
        if kind not in ARRAYS:
            self.fail(f"{key!r} is an array of the unsupported value type {kind}")
        dtype = np.dtype(ARRAYS[kind])
        begin = self.skip(count * dtype.itemsize)
        return np.frombuffer(self.data, dtype, count, begin).tolist()


def _counts(cursor: _Cursor) -> tuple[int, int]:
    if cursor.data[:4] != b"GGUF":
        cursor.fail(f"it begins with {cursor.data[:4]!r}, not with b'GGUF'")
    cursor.skip(4)
    version = cursor.scalar("<I")
    if version and version & 0xFFFF == 0:
        cursor.fail("it was written for big-endian machines; convert it with `gguf-convert-endian FILE little`")
    if version not in VERSIONS:
        cursor.fail(f"it has version {version}; versions {' and '.join(map(str, VERSIONS))} are supported")
    return cursor.scalar("<Q"), cursor.scalar("<Q")


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string()
    count = cursor.scalar("<I")
    if count > MAX_DIMENSIONS:
        cursor.fail(f"tensor {name!r} has {count} dimensions")
    dimensions = tuple(cursor.scalar("<Q") for _ in range(count))
    return name, dimensions, cursor.scalar("<I"), cursor.scalar("<Q")


def _place(cursor: _Cursor, name: str, dimensions: tuple[int, ...], kind: int, begin: int) -> GGUFTensor:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        known = ", ".join(sorted(member.name for member in GGMLQuantizationType))
        cursor.fail(f"tensor {name!r} has the unknown quantisation type {kind}; the known ones are {known}")
    if math.prod(max(dimension, 1) for dimension in dimensions) > MAX_ELEMENTS:
        cursor.fail(f"tensor {name!r} has the impossible shape {dimensions[::-1]}")
    if block > 1 and (not dimensions or dimensions[0] % block):
        cursor.fail(f"tensor {name!r} of shape {dimensions[::-1]} is not made of whole blocks of {block} values")
    end = begin + math.prod(dimensions) // block * block_bytes
    if end > cursor.size:
        cursor.fail(f"tensor {name!r} should end at byte {end}, but the file has {cursor.size} (truncated?)")
    return GGUFTensor(name, dimensions[::-1], kind, begin, end)


def _check_overlaps(cursor: _Cursor, tensors: dict[str, GGUFTensor]) -> None:
    ordered = sorted(tensors.values(), key=lambda tensor: (tensor.begin, tensor.end))
    for before, after in itertools.pairwise(ordered):
        if after.begin < before.end:
            cursor.fail(f"tensors {before.name!r} and {after.name!r} overlap")
