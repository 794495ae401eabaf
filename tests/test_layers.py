"""The rooms of the package import only from those below them, and some names stay in their room."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxpipe"

# Top to bottom; rooms of one line stand side by side and do not import each other.
LAYERS = [
    {"cli", "serving"},
    {"pipelines"},
    {"training"},
    {"auto"},
    {"model"},
    {"generation"},
    {"tokenization"},
    {"checkpoint"},
    {"models"},
    {"nn"},
    {"kernels", "quantization"},
    {"sharding"},
    {"common"},
]
HEIGHT = {room: len(LAYERS) - index for index, rooms in enumerate(LAYERS) for room in rooms}
# The public names re-export every room; the command starts the top one.
ENTRANCES = {"__init__", "__main__"}
MESH_AXES = {"data", "fsdp", "tensor", "sequence", "expert"}

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def files_of(*rooms: str) -> list[Path]:
    return [path for path in FILES if room_of(path) in rooms]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import of jaxpipe, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "jaxpipe")
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module == "jaxpipe":
                yield from ((node.lineno, f"jaxpipe.{alias.name}") for alias in node.names)
            elif module.startswith(("jaxpipe.", ".")):
                yield node.lineno, module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and str(name.value).startswith("jaxpipe."):
                yield node.lineno, str(name.value)


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and value of every string that is not a docstring."""
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value


def breaches(room: str, tree: ast.AST) -> list[str]:
    """Imports of a room that reach beside or above it."""
    found = []
    for line, name in imports(tree):
        if name.startswith("."):
            found.append(f"line {line}: relative import {name}")
            continue
        target = name.split(".")[1]
        if target == room or target == "__version__":
            continue
        if target not in HEIGHT:
            found.append(f"line {line}: {name} is in no layer")
        elif HEIGHT[target] >= HEIGHT[room]:
            found.append(f"line {line}: {room} imports {name}")
    return found


def test_every_file_has_a_layer():
    unknown = {room_of(path) for path in FILES} - set(HEIGHT) - ENTRANCES
    assert not unknown, f"These rooms stand in no layer of tests/test_layers.py: {sorted(unknown)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_below(path: Path):
    if room_of(path) not in ENTRANCES:
        assert not breaches(room_of(path), tree_of(path))


@pytest.mark.parametrize(
    "code",
    [
        "from jaxpipe.auto import AutoModel",
        "import jaxpipe.pipelines.base",
        "from jaxpipe import model",
        "from jaxpipe import pipeline",
        "def late():\n    from jaxpipe.model import PreTrainedModel",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from jaxpipe.model import PreTrainedModel",
        "import importlib\nimportlib.import_module('jaxpipe.model')",
        "from ..model import PreTrainedModel",
    ],
)
def test_a_breach_is_found(code: str):
    assert breaches("generation", ast.parse(code))


def test_an_import_from_below_is_no_breach():
    assert not breaches("generation", ast.parse("from jaxpipe.common.errors import nearest\nimport jaxpipe.nn.linear"))


def test_no_model_name_outside_models():
    """What a checkpoint's architecture needs is said in its model file, and looked up there."""
    names = {path.stem for path in files_of("models")} - {"__init__", "registry", "config", "decoder", "table"}
    found = []
    for path in files_of("checkpoint", "generation", "sharding"):
        for line, value in strings(tree_of(path)):
            if value in names:
                found.append(f"{path.relative_to(PACKAGE)}:{line}: {value!r}")
        for line, name in imports(tree_of(path)):
            if name.split(".")[-1] in names:
                found.append(f"{path.relative_to(PACKAGE)}:{line}: {name}")
    assert not found


def test_no_mesh_axis_in_definitions():
    """Model files and layers name logical axes; sharding/rules.py alone translates them."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {value!r}"
        for path in files_of("models", "nn")
        for line, value in strings(tree_of(path))
        if value in MESH_AXES
    ]
    assert not found


def test_definitions_know_nothing_of_loading_or_generating():
    """Held by the layers too; said once more because it is what makes a model file readable alone."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in files_of("models", "nn")
        for line, name in imports(tree_of(path))
        if name.split(".")[1] in ("checkpoint", "generation", "tokenization", "model", "auto", "pipelines")
    ]
    assert not found
