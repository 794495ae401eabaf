"""Which architectures there are, by the names of the files."""

import importlib
import pkgutil
from pathlib import Path

import pytest

import jaxpipe.models
from jaxpipe.common.errors import ConfigError
from jaxpipe.models import registry


def test_files_are_named_as_their_architectures():
    for module in pkgutil.iter_modules(jaxpipe.models.__path__):
        importlib.import_module(f"jaxpipe.models.{module.name}")
    for model_type in registry.model_types():
        assert registry.architecture(model_type).model_type == model_type
    assert set(registry.SHARED) < {module.name for module in pkgutil.iter_modules(jaxpipe.models.__path__)}


def test_a_broken_file_is_in_no_others_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken_one.py").write_text("raise RuntimeError('broken')")
    monkeypatch.setattr(jaxpipe.models, "__path__", [*jaxpipe.models.__path__, str(tmp_path)])
    assert {"broken_one", "llama", "xlm-roberta"} <= set(registry.model_types())
    with pytest.raises(ConfigError, match=r"'lama' is not supported; supported: albert, .*broken_one.*'llama'"):
        registry.architecture("lama")
    spec = registry.gguf_spec("qwen2")
    assert spec is not None and spec.model_type == "qwen2"
    with pytest.raises(RuntimeError, match="broken"):
        registry.architecture("broken_one")
