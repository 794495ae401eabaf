"""Files of torch's ``torch.save`` as sources of tensors, in both of its formats; nothing in them is run.

The zip (since torch 1.6) holds ``NAME/data.pkl`` and one stored entry ``NAME/data/KEY`` for each storage. The older
stream is five pickles (magic number, version, system, the object, the storages' keys), then each storage in that
order: its number of elements in 8 bytes, then the elements.
https://github.com/pytorch/pytorch/blob/main/torch/serialization.py
"""

import dataclasses
import mmap
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxpipe.checkpoint import torch_pickle
from jaxpipe.checkpoint.source import Index, TensorInfo, unknown_tensor
from jaxpipe.checkpoint.torch_names import Storage, StoredTensor
from jaxpipe.common.errors import CheckpointError

ZIP_MAGIC = b"PK\x03\x04"
LOCAL_HEADER = 30
STREAM_MAGIC = 0x1950A86A20F9469CFC6C
STREAM_VERSION = 1001
# Of the pickles before the object, which are a number each and a small dict.
SMALL_PICKLE = 4096
# Keys under which training scripts keep a model's weights beside other state.
WRAPPERS = ("state_dict", "model_state_dict", "model")
MOST_LISTED = 10


@dataclasses.dataclass(frozen=True)
class _Contents:
    """The object of a file, and the first byte and length of each storage's record; ``swapped`` is big-endian."""

    value: Any
    records: dict[str, tuple[int, int]]
    swapped: bool = False


class TorchFile:
    """A file of ``torch.save`` as a source of tensors: views of a memory map, read-only.

    The file is a state dict, or holds one under ``state_dict``, ``model_state_dict`` or ``model``; what is no tensor
    in it is left out.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file is damaged, its tensors do not fit its storages, or its pickle asks for anything but
            plain values and tensors; the message says what.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        mapped = _map(self.path)
        self._bytes: np.ndarray | None = np.frombuffer(mapped, np.uint8)
        contents = _read_zip(self.path, mapped) if mapped[:4] == ZIP_MAGIC else _read_stream(self.path, mapped)
        self._swapped = contents.swapped
        self._tensors = _state_dict(self.path, contents.value)
        self._records = contents.records
        for name, tensor in self._tensors.items():
            _check_record(self.path, name, tensor.storage, contents.records)
        self.metadata: dict[str, Any] = {}
        self.infos: dict[str, TensorInfo] = {
            name: TensorInfo(name, tensor.shape, tensor.dtype, self.path) for name, tensor in self._tensors.items()
        }

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Returns a tensor, or the part of it that ``index`` names; only the pages of that part are read.

        Args:
            name: the tensor.
            index: a slice for each leading dimension, or None for the whole tensor.

        Raises:
            KeyError: there is no tensor of that name.
            ValueError: the file was closed.
        """
        if name not in self._tensors:
            raise unknown_tensor(name, self.path, self._tensors)
        if self._bytes is None:
            raise ValueError(f"{self.path}: the file was closed.")
        tensor, index = self._tensors[name], index or ()
        if 0 in tensor.shape:
            return np.empty(tensor.shape, tensor.dtype)[index]
        storage, width = tensor.storage, tensor.dtype.itemsize
        begin = self._records[storage.key][0] + storage.first * storage.dtype.itemsize
        raw = self._bytes[begin : begin + storage.count * storage.dtype.itemsize]
        # Any byte may stand for a boolean in a file, numpy's must be 0 or 1.
        dtype = np.dtype(np.uint8) if tensor.dtype == np.bool_ else tensor.dtype
        strides = tuple(stride * width for stride in tensor.strides)
        view = np.ndarray(tensor.shape, dtype, raw, tensor.offset * width, strides)
        part = view[index]
        if tensor.dtype == np.bool_:
            return part != 0
        if self._swapped and width > 1:
            return _swap(part)
        return part if part.flags.aligned else part.copy()

    def close(self) -> None:
        """Lets go of the map; it is unmapped when the last array that was read is gone."""
        self._bytes = None


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _swap(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "iufc":
        return array.byteswap()
    # Types that numpy does not know by itself have no byte order: swapped as integers.
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").byteswap().view(array.dtype)


def _read_zip(path: Path, mapped: mmap.mmap) -> _Contents:
    entries = _zip_entries(path)
    pickles = sorted((name for name in entries if name.split("/")[-1] == "data.pkl"), key=lambda name: name.count("/"))
    if not pickles:
        raise CheckpointError(f"{path}: a zip file without 'data.pkl': not one that torch.save wrote.")
    prefix = pickles[0].removesuffix("data.pkl")
    spans = {
        name.removeprefix(prefix): _span(path, entries[name], mapped) for name in entries if name.startswith(prefix)
    }
    begin, length = spans["data.pkl"]
    if length > torch_pickle.MAX_BYTES:
        raise CheckpointError(f"{path}: refused: a pickle of {length} bytes; those of weights are far smaller.")
    value, _ = torch_pickle.load(mapped[begin : begin + length], str(path))
    order = b"little"
    if "byteorder" in spans:
        begin, length = spans["byteorder"]
        order = mapped[begin : begin + min(length, 10)]
    if order not in (b"little", b"big"):
        raise CheckpointError(f"{path}: its byte order is {order!r}, neither 'little' nor 'big'.")
    records = {name.removeprefix("data/"): span for name, span in spans.items() if name.startswith("data/")}
    return _Contents(value, records, order == b"big")


def _zip_entries(path: Path) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    # Damaged archives raise many things: BadZipFile, struct.error, NotImplementedError, UnicodeDecodeError, ...
    except Exception as error:
        raise CheckpointError(f"{path}: not a whole zip file ({error}); download it again.") from error
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in listed:
        if entry.filename in entries:
            raise CheckpointError(f"{path}: refused: the zip file holds {entry.filename!r} twice.")
        entries[entry.filename] = entry
    return entries


def _span(path: Path, entry: zipfile.ZipInfo, mapped: mmap.mmap) -> tuple[int, int]:
    """First byte and length of an entry, which torch stores as it is."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1 or entry.compress_size != entry.file_size:
        raise CheckpointError(
            f"{path}: refused: {entry.filename!r} is compressed or encrypted, which torch.save never does."
        )
    start = entry.header_offset
    header = mapped[start : start + LOCAL_HEADER] if start >= 0 else b""
    if len(header) < LOCAL_HEADER or header[:4] != ZIP_MAGIC:
        raise CheckpointError(f"{path}: {entry.filename!r} does not lie where the zip file says; download it again.")
    begin = start + LOCAL_HEADER + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    if begin + entry.file_size > len(mapped):
        raise CheckpointError(f"{path}: {entry.filename!r} reaches beyond the file's end; download it again.")
    return begin, entry.file_size


def _read_stream(path: Path, mapped: mmap.mmap) -> _Contents:
    position = 0

    def pickle(most: int) -> Any:
        nonlocal position
        value, length = torch_pickle.load(mapped[position : position + most + 1], str(path), most)
        position += length
        return value

    try:
        magic = pickle(SMALL_PICKLE)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: begins neither as a zip file nor with torch's magic number, so torch.save (since 0.1.10) did "
            f"not write it. {error}"
        ) from error
    if magic != STREAM_MAGIC or (version := pickle(SMALL_PICKLE)) != STREAM_VERSION:
        found = f"magic number {magic!r:.40}" if magic != STREAM_MAGIC else f"version {version!r:.40}"
        raise CheckpointError(f"{path}: not a file of torch.save: its {found} is not torch's.")
    pickle(SMALL_PICKLE)
    value = pickle(torch_pickle.MAX_BYTES)
    keys = pickle(torch_pickle.MAX_BYTES)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise CheckpointError(f"{path}: the list of its storages is not a list of different keys.")
    widths = {storage.key: storage.dtype.itemsize for storage in _storages(value)}
    return _Contents(value, dict(_stream_records(path, mapped, position, keys, widths)))


def _stream_records(
    path: Path, mapped: mmap.mmap, position: int, keys: list[str], widths: dict[str, int]
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Key, first byte and length of every storage."""
    for key in keys:
        if key not in widths:
            # How wide its elements are stands only where a tensor uses it.
            raise CheckpointError(f"{path}: storage {key!r:.40} belongs to no tensor.")
        count = int.from_bytes(mapped[position : position + 8], "little", signed=True)
        position += 8
        end = position + count * widths[key]
        if count < 0 or end > len(mapped) or position > len(mapped):
            raise CheckpointError(
                f"{path}: storage {key!r:.40} of {count} elements should end at byte {end}, but the file has "
                f"{len(mapped)}; it is truncated. Download it again."
            )
        yield key, (position, end - position)
        position = end


def _storages(value: Any) -> Iterator[Storage]:
    """Every storage of an object's tensors, each part of the object seen once, without recursion."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, StoredTensor):
            yield item.storage
        elif isinstance(item, Storage):
            yield item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)


def _state_dict(path: Path, value: Any) -> dict[str, StoredTensor]:
    """The tensors by name, of a state dict or of what a training script keeps it in."""
    top = value
    # A dict may hold itself.
    for _ in range(len(WRAPPERS) + 1):
        if not isinstance(value, dict):
            break
        tensors = {name: item for name, item in value.items() if isinstance(item, StoredTensor)}
        if tensors:
            if wrong := next((name for name in tensors if not isinstance(name, str)), None):
                raise CheckpointError(f"{path}: a tensor's name is {wrong!r}, not text.")
            return tensors
        value = next((value[key] for key in WRAPPERS if isinstance(value.get(key), dict)), None)
    found = f"a {type(top).__name__}"
    if isinstance(top, dict):
        found = f"a dict of {_listed(top) or 'nothing'}"
    raise CheckpointError(
        f"{path}: holds no state dict, directly or under {', '.join(map(repr, WRAPPERS))}; it is {found}."
    )


def _listed(names: Iterable[Any]) -> str:
    names = [repr(name)[:80] for name in names]
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


def _check_record(path: Path, name: str, storage: Storage, records: dict[str, tuple[int, int]]) -> None:
    """Raises where the file does not hold a storage as its tensor counts on it."""
    if storage.key not in records:
        raise CheckpointError(f"{path}: tensor {name!r}: the file lacks its storage {storage.key!r:.40}.")
    held, needed = records[storage.key][1], storage.total * storage.dtype.itemsize
    if held != needed:
        raise CheckpointError(
            f"{path}: tensor {name!r}: its storage {storage.key!r:.40} has {held} bytes, but should have {needed} "
            f"({storage.total} elements of {storage.dtype}); the file is damaged. Download it again."
        )
