from pathlib import Path

import pytest

from jaxpipe.checkpoint.safetensors import write_safetensors
from tests.checkpoint.model_files import ARRAYS


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    write_safetensors(folder / "model.safetensors", ARRAYS.items())
    return folder
