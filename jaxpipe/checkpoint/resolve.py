"""From the name of a model to its files: a directory, a GGUF file, a package's file, or a repository of the Hub."""

import os
import re
from pathlib import Path
from typing import Any, Protocol

from jaxpipe.checkpoint.hub import HubFiles
from jaxpipe.checkpoint.index import INDEX, WEIGHTS, is_plain_relative, open_index, read_json
from jaxpipe.checkpoint.package import SCHEME, package_path
from jaxpipe.checkpoint.safetensors import SafetensorsFile
from jaxpipe.checkpoint.source import TensorSource
from jaxpipe.common.errors import CheckpointError

# Of sentence-transformers: which folder holds which part of the pipeline.
MODULES = "modules.json"
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
# Formats that are not read; some of them can run code when other programs open them.
UNREAD = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|pickle|h5|msgpack)(\.index.*\.json)?")
TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
TORCH_SHARD = re.compile(r"(.*/)?pytorch_model.*\.bin")
MOST_LISTED = 20


class Files(Protocol):
    """Where a checkpoint's files come from."""

    where: str
    revision: str | None

    def get(self, filename: str) -> Path | None:
        """Returns the local path of a file, or None where there is none."""
        ...

    def listing(self) -> list[str]:
        """Names of the files that there are, relative and with forward slashes."""
        ...


class DirectoryFiles:
    """The files of a local directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = f"directory {str(path)!r}"
        self.revision: str | None = None

    def get(self, filename: str) -> Path | None:
        """Returns the path of a file, or None where the directory lacks it."""
        path = self.path / filename
        return path if path.is_file() else None

    def listing(self) -> list[str]:
        """Names of the directory's files, also in folders of it."""
        return sorted(path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file())


class Checkpoint:
    """The files of one model, wherever they are; `resolve` makes it.

    Attributes:
        name: what was asked for.
        revision: the Hub commit that every file comes from, or None for local files.
        gguf: the GGUF file, where the checkpoint is one; then configuration, tokenizer and weights are inside it.
        subfolder: the folder that holds the model, or "" for the outermost one.
    """

    def __init__(
        self, name: str, files: Files, *, gguf: Path | None = None, subfolder: str = "", variant: str | None = None
    ) -> None:
        self.name = name
        self.gguf = gguf
        self.revision = files.revision
        self.subfolder = subfolder
        self._files = files
        self._prefix = f"{subfolder}/" if subfolder else ""
        self._variant = variant

    def __repr__(self) -> str:
        return f"Checkpoint({self.name!r}, revision={self.revision!r})"

    def file(self, filename: str) -> Path | None:
        """Returns the local path of a file of the checkpoint, or None where there is none of that name.

        Raises:
            CheckpointError: the name leads out of the checkpoint's folder, or the file cannot be downloaded.
        """
        if not is_plain_relative(filename):
            raise CheckpointError(f"{self.name}: refused: {filename!r} leads out of the checkpoint's folder.")
        return None if self.gguf else self._files.get(self._prefix + filename)

    def within(self, subfolder: str) -> "Checkpoint":
        """Returns the same files seen from another folder, whose path begins at the outermost one, "".

        Raises:
            CheckpointError: the path leads out of the checkpoint's folder.
        """
        if subfolder and not is_plain_relative(subfolder):
            raise CheckpointError(f"{self.name}: refused: {subfolder!r} leads out of the checkpoint's folder.")
        return Checkpoint(self.name, self._files, gguf=self.gguf, subfolder=subfolder)

    def read_json(self, filename: str) -> dict[str, Any] | None:
        """Returns the object in a JSON file of the checkpoint, or None where there is no such file.

        Raises:
            CheckpointError: the file is not a JSON object.
        """
        path = self.file(filename)
        return None if path is None else read_json(path)

    def weights(self) -> TensorSource:
        """Opens the weights: the GGUF file, ``model.safetensors``, ``pytorch_model.bin``, or the shards of an index.

        Safetensors are preferred. Of a ``pytorch_model.bin`` nothing is run.

        Raises:
            CheckpointError: there are none, only formats that are not read, or they are damaged.
        """
        if self.gguf:
            from jaxpipe.checkpoint.gguf import GGUFFile

            return GGUFFile(self.gguf).source()
        single, index = _with_variant(WEIGHTS, self._variant), _with_variant(INDEX, self._variant)
        if path := self.file(single):
            return SafetensorsFile(path)
        if path := self.file(index):
            return open_index(path, self.file)
        if path := self.file(_with_variant(TORCH_WEIGHTS, self._variant)):
            return _open_torch(path)
        if path := self.file(_with_variant(TORCH_INDEX, self._variant)):
            return open_index(path, self.file, _open_torch, ".bin")
        raise self._no_weights(single, index)

    def _no_weights(self, single: str, index: str) -> CheckpointError:
        inside = [name.removeprefix(self._prefix) for name in self._files.listing() if name.startswith(self._prefix)]
        place = f"{self._files.where}{f', folder {self._prefix!r}' if self._prefix else ''}"
        found = [name for name in inside if "/" not in name]
        if ggufs := [name for name in inside if name.endswith(".gguf")]:
            return CheckpointError(f"{place} has no {single!r}; for a GGUF file give its own path: {_listed(ggufs)}.")
        others = [name for name in inside if name.endswith(".safetensors") or TORCH_SHARD.fullmatch(name)]
        if not others and (unread := [name for name in found if UNREAD.fullmatch(name)]):
            torch_weights = _with_variant(TORCH_WEIGHTS, self._variant)
            return CheckpointError(
                f"{place} has neither {single!r} nor {torch_weights!r}, only {_listed(unread)}: refused, and nothing "
                "of it was read. Convert it to safetensors first: where the author is trusted, load and save it with "
                "Transformers (`AutoModel.from_pretrained(...).save_pretrained(DIR)` writes safetensors), or use "
                "https://huggingface.co/spaces/safetensors/convert; some repositories hold converted weights under "
                "another revision=."
            )
        hint = f"It has weights under other names (subfolder=, variant=): {_listed(others)}."
        if not others:
            hint = f"It has: {_listed(found) or 'no files'}."
        return CheckpointError(f"{place} has neither {single!r} nor {index!r}. {hint}")


def _with_variant(name: str, variant: str | None) -> str:
    """``model.safetensors`` -> ``model.fp16.safetensors``; of an index the variant stands before ``.json``."""
    stem, _, ending = name.rpartition(".")
    return f"{stem}.{variant}.{ending}" if variant else name


def _open_torch(path: Path) -> TensorSource:
    from jaxpipe.checkpoint.torch_file import TorchFile

    return TorchFile(path)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


def resolve(
    name_or_path: "str | os.PathLike[str] | Checkpoint",
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    subfolder: str = "",
    variant: str | None = None,
) -> Checkpoint:
    """Finds a model's files; weights and other files are opened or downloaded when they are asked for.

    Args:
        name_or_path: a directory, a ``.gguf`` file, ``package://NAME/path``, or a Hub id; a `Checkpoint` is returned
            as it is.
        revision: of a Hub repository: a branch, tag or commit, pinned here to one commit.
        token: for private and gated repositories.
        cache_dir: the Hub's cache, where not the usual one.
        local_files_only: use the Hub's cache and no network.
        force_download: download again what the cache holds.
        subfolder: the folder of the repository or directory that holds the model.
        variant: for weights named ``model.<variant>.safetensors``.

    Raises:
        CheckpointError: there is no such model; the message says what was sought and what would do.
    """
    if isinstance(name_or_path, Checkpoint):
        return name_or_path
    subfolder = subfolder.strip("/")
    if subfolder and not is_plain_relative(subfolder):
        raise CheckpointError(f"subfolder={subfolder!r} must be a plain path inside the checkpoint, without '..'.")
    if variant is not None and not re.fullmatch(r"[\w.-]+", variant):
        raise CheckpointError(f"variant={variant!r} is not a part of a file name such as 'fp16'.")
    name = os.fspath(name_or_path)
    if not name or "\0" in name:
        raise CheckpointError(f"{name!r} names no model; give a directory, a .gguf file or a Hub id.")
    local = package_path(name) if name.startswith(SCHEME) else Path(name).expanduser()
    if local.is_dir():
        _check_subfolder(local, subfolder)
        return _checkpoint(name, DirectoryFiles(local), subfolder, variant)
    if local.is_file():
        if local.suffix.lower() != ".gguf":
            raise CheckpointError(f"{name!r} is a file but not .gguf; give the directory that holds the model's files.")
        return Checkpoint(name, DirectoryFiles(local.parent), gguf=local)
    if not isinstance(name_or_path, str) or local.suffix.lower() == ".gguf" or not HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"{name!r}: there is no such file or directory (looked at {str(local.absolute())!r}), "
            "and it cannot be a Hub id, which is 'user/repo'."
        )
    files = HubFiles(
        name,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    return _checkpoint(name, files, subfolder, variant)


def _checkpoint(name: str, files: Files, subfolder: str, variant: str | None) -> Checkpoint:
    """Makes a checkpoint; in a sentence-transformers directory, of the folder that holds its transformer."""
    checkpoint = Checkpoint(name, files, subfolder=subfolder, variant=variant)
    path = None if subfolder else files.get(MODULES)
    # The root of old directories has a config.json that says the version alone.
    if path is None or "model_type" in (checkpoint.read_json("config.json") or {}):
        return checkpoint
    for module in read_json(path, list):
        kind, folder = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        if str(kind).endswith(".Transformer") and isinstance(folder, str) and folder:
            if not is_plain_relative(folder):
                raise CheckpointError(f"{path}: refused: {folder!r} leads out of the checkpoint's folder.")
            return Checkpoint(name, files, subfolder=folder, variant=variant)
    return checkpoint


def _check_subfolder(directory: Path, subfolder: str) -> None:
    if subfolder and not (directory / subfolder).is_dir():
        folders = sorted(path.name for path in directory.iterdir() if path.is_dir())
        raise CheckpointError(f"{str(directory)!r} has no folder {subfolder!r}; it has: {_listed(folders) or 'none'}.")
