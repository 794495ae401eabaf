"""Files as ``torch.save`` writes them, made without torch: opcodes of the pickle, and both containers."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage", "bool": "BoolStorage"}
KINDS |= {"bfloat16": "BFloat16Storage", "complex64": "ComplexFloatStorage", "uint8": "ByteStorage"}
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    width = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([width]) + value.to_bytes(width, "little", signed=True)


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def dict_of(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(name) + item for name, item in items.items()) + b"u"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def storage(kind: str, key: str, elements: int, *view: bytes) -> bytes:
    return tuple_of(text("storage"), name("torch", kind), text(key), text("cpu"), number(elements), *view) + b"Q"


def tensor(storage: bytes, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *more: bytes) -> bytes:
    sizes = [tuple_of(*map(number, values)) for values in (size, stride)]
    return name("torch._utils", "_rebuild_tensor_v2") + tuple_of(storage, number(offset), *sizes, *more) + b"R"


def finished(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def write_zip(
    path: Path, value: bytes, records: Mapping[str, bytes], prefix: str = "archive/", order: bytes | None = b"little"
) -> None:
    """Writes the zip format; ``value`` is the opcodes of the object."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(prefix + "data.pkl", finished(value))
        if order is not None:
            archive.writestr(prefix + "byteorder", order)
        for key, data in records.items():
            archive.writestr(f"{prefix}data/{key}", data)


def write_stream(path: Path, value: bytes, records: Mapping[str, tuple[int, bytes]], keys: Any = None) -> None:
    """Writes the older format; a record is its number of elements and their bytes."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    small = [pickle.dumps(item, 2) for item in (MAGIC, 1001, system)]
    listed = pickle.dumps(list(records) if keys is None else keys, 2)
    data = [count.to_bytes(8, "little", signed=True) + raw for count, raw in records.values()]
    path.write_bytes(b"".join((*small, finished(value), listed, *data)))


def write(path: Path, form: str, value: bytes, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an object and the arrays that are its storages, in the form "zip" or "stream"."""
    if form == "zip":
        write_zip(path, value, {key: array.tobytes() for key, array in arrays.items()})
    else:
        write_stream(path, value, {key: (array.size, array.tobytes()) for key, array in arrays.items()})


def whole(key: str, array: np.ndarray) -> bytes:
    """Opcodes of a tensor that is all of its storage."""
    strides = tuple(step // array.itemsize for step in array.strides)
    return tensor(storage(KINDS[array.dtype.name], key, array.size), 0, array.shape, strides)


def save(path: Path, form: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict of arrays."""
    value = ORDERED_DICT + b"(" + b"".join(text(key) + whole(key, array) for key, array in arrays.items()) + b"u"
    write(path, form, value + dict_of({"_metadata": ORDERED_DICT}) + b"b", arrays)
