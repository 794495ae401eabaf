"""Checkpoints in several files: the index that lists them, read and written in the Hub's layout."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxpipe.checkpoint.safetensors import (
    SafetensorsFile,
    Writable,
    partial_path,
    stored_bytes,
    sync_directory,
    write_partial,
)
from jaxpipe.checkpoint.source import JoinedSource, TensorSource
from jaxpipe.common.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
LEFTOVER = re.compile(r"\.model[-\d\w]*\.safetensors(\.index\.json)?\.[0-9a-f]{12}\.partial")
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def is_plain_relative(name: str) -> bool:
    """Tells whether a name stays inside the folder that it is joined to, on every system."""
    if not name or "\\" in name or "\0" in name or ":" in name or name.startswith("/"):
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def read_json(path: Path, kind: type = dict) -> Any:
    """Returns the object, or with ``kind=list`` the list, that a JSON file holds.

    Raises:
        CheckpointError: the file cannot be read, is not JSON, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(value, kind):
        wanted = "object" if kind is dict else "list"
        raise CheckpointError(f"{path}: must hold a JSON {wanted}, not {type(value).__name__}.")
    return value


def weight_map(path: Path, suffix: str = ".safetensors") -> dict[str, str]:
    """Returns what an index says: for every tensor the name of the file that holds it.

    Args:
        path: the index.
        suffix: of the files that it may name.

    Raises:
        CheckpointError: the index is malformed, or names a file outside its folder.
    """
    mapping = read_json(path).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointError(f"{path}: has no 'weight_map' that lists the tensors and their files.")
    for name, file in mapping.items():
        if not isinstance(file, str):
            raise CheckpointError(f"{path}: the file of tensor {name!r} must be a name, not {file!r}.")
        if not is_plain_relative(file):
            raise CheckpointError(
                f"{path}: refused: tensor {name!r} should lie in {file!r}, which leads out of the checkpoint's folder."
            )
        if not file.endswith(suffix):
            raise CheckpointError(f"{path}: refused: tensor {name!r} lies in {file!r}, which is no {suffix} file.")
    return mapping


def open_index(
    path: Path,
    locate: Callable[[str], Path | None],
    open_file: Callable[[Path], TensorSource] = SafetensorsFile,
    suffix: str = ".safetensors",
) -> JoinedSource:
    """Opens every shard that an index lists.

    Args:
        path: the index, such as ``model.safetensors.index.json``.
        locate: gives the local path of a shard's name, or None where there is none.
        open_file: opens a shard.
        suffix: of the shards' names.

    Raises:
        CheckpointError: the index is malformed, a shard is missing, a tensor is missing or lies in two shards.
    """
    mapping = weight_map(path, suffix)
    held: dict[str, list[str]] = {}
    for name, file in mapping.items():
        held.setdefault(file, []).append(name)
    shards: list[TensorSource] = []
    for file, names in held.items():
        local = locate(file)
        if local is None:
            raise CheckpointError(f"{path}: the shard {file!r} is missing; it should hold {_listed(names)}.")
        shard = open_file(local)
        if absent := [name for name in names if name not in shard.infos]:
            raise CheckpointError(f"{local}: {_listed(absent)} should lie here by {path.name}, but are missing.")
        shards.append(shard)
    return JoinedSource(shards)


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} weights: {', '.join(names[:most])}{more}"


def parse_size(size: int | str) -> int:
    """Returns the bytes that a size like ``"5GB"`` (10^9), ``"5GiB"`` (2^30) or an integer stands for.

    Raises:
        ValueError: the size is not positive, or is written otherwise.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?B)\s*", size.upper())
        value = int(float(match[1]) * UNITS[match[2]]) if match else 0
    else:
        value = size
    if value <= 0:
        raise ValueError(f"max_shard_size={size!r} is not a size; give bytes, or a string like '5GB' or '5GiB'.")
    return value


def split(tensors: Iterable[tuple[str, Writable]], max_shard_size: int) -> list[list[tuple[str, Writable]]]:
    """Splits tensors in shards, in their order; one larger than the limit gets a shard of its own, as on the Hub."""
    shards: list[list[tuple[str, Writable]]] = []
    current: list[tuple[str, Writable]] = []
    filled = 0
    for name, array in tensors:
        size = stored_bytes(name, array)
        if size > max_shard_size:
            shards.append([(name, array)])
            continue
        if current and filled + size > max_shard_size:
            shards.append(current)
            current, filled = [], 0
        current.append((name, array))
        filled += size
    if current or not shards:
        shards.append(current)
    return shards


def write_sharded(
    directory: str | os.PathLike[str],
    tensors: Iterable[tuple[str, Writable]],
    max_shard_size: int | str = "50GB",
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes a checkpoint's weights in the Hub's layout, and removes those of an earlier save when all is written.

    Every file is complete on disk under another name before the first one is put in place, so that an interrupted
    save leaves the earlier weights as they were.

    Args:
        directory: made if it is missing.
        tensors: pairs of name and array (numpy, jax, or `LazyArray`), kept in this order.
        max_shard_size: bytes, or a string like ``"5GB"``.
        metadata: kept in the header of every file; by default ``{"format": "pt"}``.

    Returns:
        The files: ``model.safetensors``, or the shards and ``model.safetensors.index.json``.

    Raises:
        ValueError: a name comes twice, a dtype is not in the format, or ``max_shard_size`` is no size.
    """
    directory = Path(directory)
    limit = parse_size(max_shard_size)
    items = list(tensors)
    names = [name for name, _ in items]
    if twice := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
        raise ValueError(f"tensors {', '.join(map(repr, twice))} come twice.")
    shards = split(items, limit)
    directory.mkdir(parents=True, exist_ok=True)
    files = _shard_names(len(shards))
    partials: dict[Path, Path] = {}
    try:
        for file, shard in zip(files, shards, strict=True):
            partials[directory / file] = partial = partial_path(directory / file)
            write_partial(partial, shard, metadata)
        if len(shards) > 1:
            partials[directory / INDEX] = partial = partial_path(directory / INDEX)
            _write_index(partial, files, shards)
    except BaseException:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        raise
    # From here on the partial files are the only whole copy of the new weights: no failure removes them.
    _put_in_place(directory, partials)
    return list(partials)


def _shard_names(count: int) -> list[str]:
    return [WEIGHTS] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _write_index(path: Path, files: list[str], shards: list[list[tuple[str, Writable]]]) -> None:
    mapping = {name: file for file, shard in zip(files, shards, strict=True) for name, _ in shard}
    total = sum(stored_bytes(name, array) for shard in shards for name, array in shard)
    with path.open("x", encoding="utf-8") as file:
        json.dump({"metadata": {"total_size": total}, "weight_map": mapping}, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _put_in_place(directory: Path, partials: dict[Path, Path]) -> None:
    """Renames complete files to their names, the index last, then removes what an earlier save left."""
    index = directory / INDEX
    if index in partials and any(final.exists() for final in partials if final != index):
        # The old index must not be read with shards of both saves: between the renames there is none.
        index.unlink(missing_ok=True)
    for final, partial in partials.items():
        os.replace(partial, final)
    sync_directory(directory)
    for path in directory.iterdir():
        if path not in partials and (OURS.fullmatch(path.name) or LEFTOVER.fullmatch(path.name)):
            path.unlink(missing_ok=True)
    sync_directory(directory)
