"""``import jaxpipe`` is cheap, and no module of it touches a device."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxpipe

ROOT = Path(__file__).parents[1]
# What a module may need, but the bare import must not: each costs tenths of a second.
HEAVY = [
    "jax", "jaxlib", "flax", "optax", "orbax", "numpy", "ml_dtypes", "safetensors", "huggingface_hub", "tokenizers",
    "jinja2", "pydantic", "typer", "rich", "yaml", "gguf", "torch", "transformers",
]  # fmt: skip


def python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy():
    loaded = json.loads(
        python(
            "import sys; before = set(sys.modules); import jaxpipe, json\n"
            "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
        )
    )
    assert "jaxpipe" in loaded
    assert not set(loaded) & set(HEAVY)


def test_public_names_resolve():
    for name in jaxpipe.__all__:
        assert getattr(jaxpipe, name) is not None
        assert name in dir(jaxpipe)


def test_type_checkers_see_the_names_that_load():
    """The TYPE_CHECKING imports, ``__all__`` and the table of locations say the same."""
    tree = ast.parse((ROOT / "jaxpipe" / "__init__.py").read_text())
    seen = {
        alias.name: node.module
        for block in ast.walk(tree)
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == jaxpipe._LOCATIONS
    assert {*seen, "__version__"} == set(jaxpipe.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'AutoModelForEverything'"):
        _ = jaxpipe.AutoModelForEverything


def test_no_module_initialises_a_backend():
    paths = (ROOT / "jaxpipe").rglob("*.py")
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    modules = sorted(names - {"jaxpipe.__main__"})
    assert "jaxpipe.common.errors" in modules
    started = python(
        "import importlib\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized())"
    )
    assert started.split() == ["False"]
