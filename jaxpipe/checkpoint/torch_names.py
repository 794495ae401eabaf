"""The names that a pickle of torch tensors may use, each with an inert stand-in; nothing of torch is imported.

What the real ones do: https://github.com/pytorch/pytorch/blob/main/torch/_utils.py
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

MAX_DIMENSIONS = 64
MAX_BYTES = 2**63 - 1
# A tensor may be larger than its storage where a stride is 0 (``Tensor.expand``): buffers of positions are, weights
# never.
MAX_EXPANDED = 2**26

_DTYPES = {
    "float32": np.float32,
    "float": np.float32,
    "float64": np.float64,
    "double": np.float64,
    "float16": np.float16,
    "half": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "long": np.int64,
    "int32": np.int32,
    "int": np.int32,
    "int16": np.int16,
    "short": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
    "complex64": np.complex64,
    "cfloat": np.complex64,
    "complex128": np.complex128,
    "cdouble": np.complex128,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
}
_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
DTYPES: dict[str, np.dtype] = {f"torch.{name}": np.dtype(value) for name, value in _DTYPES.items()}
STORAGES: dict[str, np.dtype] = {
    f"{module}.{name}": np.dtype(_DTYPES[dtype])
    for module in ("torch", "torch.cuda")
    for name, dtype in _STORAGES.items()
} | {"torch.storage.UntypedStorage": np.dtype(np.uint8)}
TENSOR_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter")


@dataclasses.dataclass(frozen=True)
class Name:
    """A name of the tables here, as it stands on the pickle's stack."""

    text: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """A flat run of elements in the file: ``count`` of them, from element ``first`` of the record ``key`` on.

    The record has ``total`` elements.
    """

    key: str
    dtype: np.dtype
    total: int
    first: int
    count: int


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A view of a storage; ``offset`` and ``strides`` count elements of ``dtype``."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class OrderedItems(dict[Any, Any]):
    """Stands for ``collections.OrderedDict``, the only object whose attributes a pickle may set (and loses here)."""


def is_size(value: Any) -> bool:
    """Tells whether a value is a number of elements."""
    return type(value) is int and 0 <= value <= MAX_BYTES


def persistent(value: Any) -> Storage:
    """Returns the storage that a persistent id names.

    Args:
        value: ``("storage", type, key, location, elements)``, and for the older format a sixth, None or
            ``(key of the view, first element, elements)``.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(value, tuple) or len(value) not in (5, 6) or value[0] != "storage":
        raise ValueError("a persistent id that is not of a storage")
    _, kind, key, location, total = value[:5]
    if not isinstance(kind, Name) or kind.text not in STORAGES:
        raise ValueError(f"a storage of type {_said(kind)}")
    if not isinstance(key, str) or not isinstance(location, str) or not is_size(total):
        raise ValueError("a storage without a key, a location and a number of elements")
    view = value[5] if len(value) == 6 else None
    first, count = 0, total
    if view is not None:
        if not isinstance(view, tuple) or len(view) != 3 or not is_size(view[1]) or not is_size(view[2]):
            raise ValueError(f"a view of storage {key!r} without a first element and a number of elements")
        first, count = view[1:]
        if first + count > total:
            raise ValueError(f"a view of elements {first} to {first + count} of storage {key!r}, which has {total}")
    return Storage(key, STORAGES[kind.text], total, first, count)


def _said(value: Any) -> str:
    return repr(value.text) if isinstance(value, Name) else type(value).__name__


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: np.dtype | None = None) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor over {_said(storage)}, not over a storage")
    if not is_size(offset) or not _is_sizes(size) or not _is_sizes(stride) or len(size) != len(stride):
        raise ValueError("a tensor whose offset, size and stride are not as many non-negative integers")
    if len(size) > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {len(size)} dimensions, more than {MAX_DIMENSIONS}")
    dtype = storage.dtype if dtype is None else dtype
    held = storage.count * storage.dtype.itemsize // dtype.itemsize
    # numpy refuses dimensions whose product overflows even where another one is zero.
    if math.prod(max(dimension, 1) for dimension in size) > max(held, MAX_EXPANDED):
        raise ValueError(f"a tensor of size {size} over a storage of {held} elements")
    last = offset + sum((dimension - 1) * step for dimension, step in zip(size, stride, strict=True))
    if 0 not in size and last >= held:
        raise ValueError(f"a tensor that reaches element {last} of a storage of {held}")
    return StoredTensor(storage, dtype, offset, size, stride)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(is_size, value))


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any) -> StoredTensor:
    return _tensor(storage, offset, size, stride)


def _rebuild_tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any = None, _hooks: Any = None, metadata: Any = None
) -> StoredTensor:
    _check_metadata(metadata)
    return _tensor(storage, offset, size, stride)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, metadata: Any = None
) -> StoredTensor:
    _check_metadata(metadata)
    if not isinstance(dtype, Name) or dtype.text not in DTYPES:
        raise ValueError(f"a tensor of dtype {_said(dtype)}")
    return _tensor(storage, offset, size, stride, DTYPES[dtype.text])


def _check_metadata(metadata: Any) -> None:
    if metadata:
        raise ValueError("a tensor that is to be conjugated or negated when it is read")


def _rebuild_parameter(data: Any, _grad: Any, _hooks: Any, _state: Any = None) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise ValueError(f"a parameter of {_said(data)}, not of a tensor")
    return data


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, _state: Any) -> StoredTensor:
    known = isinstance(function, Name) and function.text in _TENSOR_FUNCTIONS
    if not known or not isinstance(kind, Name) or kind.text not in TENSOR_TYPES or not isinstance(arguments, tuple):
        raise ValueError(f"a tensor of type {_said(kind)} made by {_said(function)}")
    return _TENSOR_FUNCTIONS[function.text](*arguments)


def _ordered_dict(pairs: Any = ()) -> OrderedItems:
    """Takes no pairs, or those that Python 2 wrote: a list of lists of two."""
    items = OrderedItems()
    if not isinstance(pairs, (list, tuple)):
        raise ValueError(f"an OrderedDict of {_said(pairs)}")
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError("an OrderedDict of something else than pairs")
        items[check_key(pair[0])] = pair[1]
    return items


def check_key(key: Any) -> str | int:
    """Returns a dict's key; only text and integers of 64 bits are taken, whose hashes a file cannot make collide.

    Raises:
        ValueError: it is anything else.
    """
    if isinstance(key, str) or (type(key) is int and abs(key) <= MAX_BYTES):
        return key
    raise ValueError(f"a dict with a key that is {_said(key)}, neither text nor an integer of 64 bits")


def _size(values: Any = ()) -> tuple[int, ...]:
    if not _is_sizes(values):
        raise ValueError("a torch.Size of something else than non-negative integers")
    return values


def _device(kind: Any, index: Any = None) -> str:
    return f"{kind}:{index}" if isinstance(kind, str) and type(index) is int else "cpu"


_TENSOR_FUNCTIONS: Mapping[str, Callable[..., StoredTensor]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **_TENSOR_FUNCTIONS,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch.device": _device,
}
KNOWN = frozenset((*FUNCTIONS, *STORAGES, *DTYPES, *TENSOR_TYPES))
