"""What torch.save writes, in both formats, against what torch.load reads; and a model of it against safetensors."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpipe.auto import AutoModelForMaskedLM
from jaxpipe.checkpoint.resolve import resolve
from jaxpipe.checkpoint.torch_file import TorchFile

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

FORMATS = [(True, 2), (True, 4), (False, 2), (False, 5)]
DTYPES = [
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64",
    "uint16", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip


@pytest.fixture(params=FORMATS, ids=lambda param: f"{'zip' if param[0] else 'stream'}-{param[1]}")
def save(request: pytest.FixtureRequest):
    import torch

    def write(value: Any, path: Path) -> TorchFile:
        torch.save(value, path, _use_new_zipfile_serialization=request.param[0], pickle_protocol=request.param[1])
        return TorchFile(path)

    return write


def raw(tensor: Any) -> np.ndarray:
    """The tensor's bits as integers, which numpy can hold whatever the dtype is."""
    import torch

    wide = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(wide[tensor.element_size()]).numpy()


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view({1: "u1", 2: "i2", 4: "i4", 8: "i8"}[array.dtype.itemsize])


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(tmp_path: Path, save, dtype: str) -> None:
    import torch

    tensor = torch.randn(5, 3, dtype=torch.float64).mul(9).to(getattr(torch, dtype))
    source = save({"w": tensor, "part": tensor[1:4, ::2], "turned": tensor.T}, tmp_path / "w.bin")
    assert source.infos["w"].dtype.name == dtype
    for name, expected in (("w", tensor), ("part", tensor[1:4, ::2]), ("turned", tensor.T)):
        assert np.array_equal(bits(source.read(name)), raw(expected)), name
    assert np.array_equal(bits(source.read("turned", (slice(1, 3), slice(2, 5)))), raw(tensor.T[1:3, 2:5]))


def test_state_dict_of_a_module(tmp_path: Path, save) -> None:
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3, bias=False))
    module[2].weight = torch.nn.Parameter(module[0].weight.T)
    module.register_buffer("positions", torch.arange(5).expand(2, -1))
    state = module.state_dict()
    source = save(state, tmp_path / "w.bin")
    assert {name: info.shape for name, info in source.infos.items()} == {k: tuple(v.shape) for k, v in state.items()}
    for name, tensor in state.items():
        assert np.array_equal(source.read(name), tensor.numpy()), name


def test_parameters_attributes_and_training_state(tmp_path: Path, save) -> None:
    import torch

    marked, tied = torch.nn.Parameter(torch.randn(4)), torch.nn.Parameter(torch.randn(2, 2))
    marked.mark = {"x": 1}  # type: ignore[attr-defined]
    plain = torch.randn(3)
    plain.mark = "y"  # type: ignore[attr-defined]
    weights = {"marked": marked, "plain": plain, "a": tied, "b": tied, "scalar": torch.tensor(1.5)}
    optimiser = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": plain}}, "param_groups": [{"betas": (0.9, 0.99)}]}
    state = {"epoch": 3, "lr": 1e-3, "state_dict": weights, "optimizer": optimiser, "size": marked.shape}
    state |= {"device": torch.device("cpu"), "dtype": torch.bfloat16, "list": [1, None, True, "x", (1, 2, 3, 4)]}
    source = save(state, tmp_path / "w.bin")
    assert list(source.infos) == list(weights)
    assert all(np.array_equal(source.read(name), tensor.detach().numpy()) for name, tensor in weights.items())


def test_zip_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    import torch

    torch.save({"w": torch.arange(6.0)}, tmp_path / "w.bin")
    array = TorchFile(tmp_path / "w.bin").read("w")
    assert array.tolist() == list(range(6)) and not array.flags.writeable and not array.flags.owndata


@pytest.mark.parametrize("kind", ["quantised", "sparse", "meta", "conjugated", "module", "namespace", "numpy"])
def test_what_is_no_plain_tensor_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    import argparse

    import torch

    make, message = {
        "quantised": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "_rebuild_qtensor"),
        "sparse": (lambda: torch.eye(2).to_sparse(), "_rebuild_sparse_tensor"),
        "meta": (lambda: torch.empty(2, device="meta"), "_rebuild_meta_tensor_no_storage"),
        "conjugated": (lambda: torch.ones(2, dtype=torch.complex64).conj(), "conjugated"),
        "module": (lambda: torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        "namespace": (lambda: argparse.Namespace(lr=1), "argparse.Namespace"),
        "numpy": (lambda: np.ones(2), "numpy"),
    }[kind]
    torch.save({"w": torch.ones(2), "x": make()}, tmp_path / "w.bin")
    from jaxpipe.common.errors import CheckpointError

    with pytest.raises(CheckpointError, match=rf"w\.bin: refused: .*{message}"):
        TorchFile(tmp_path / "w.bin")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, list[Any]]:
    """A tiny BERT of the oracle, its directory with safetensors, and the weights that are loaded from there."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=131, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=40,
    )  # fmt: skip
    model = BertForMaskedLM(config).eval()
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    return model, folder, jax.tree.leaves(AutoModelForMaskedLM.from_pretrained(folder).functional()[1])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_model_of_torch_files_is_that_of_safetensors(tmp_path: Path, bert: Any, zipped: bool, shards: int) -> None:
    import torch

    model, folder, expected = bert
    state = model.state_dict()
    # As old checkpoints have it: buffers too, the tied head, and norms by their older names.
    state = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in state.items()}
    state = {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in state.items()}
    state["bert.embeddings.position_ids"] = torch.arange(40).expand((1, -1))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    names, mapping = list(state), {}
    for shard in range(shards):
        file = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        part = {name: state[name] for name in names[shard::shards]}
        torch.save(part, tmp_path / file, _use_new_zipfile_serialization=zipped)
        mapping |= dict.fromkeys(part, file)
    if shards > 1:
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": mapping}))
    assert len(resolve(tmp_path).weights().infos) == len(state)
    loaded = jax.tree.leaves(AutoModelForMaskedLM.from_pretrained(tmp_path).functional()[1])
    assert len(loaded) == len(expected) > 20
    assert all(np.array_equal(ours, reference) for ours, reference in zip(loaded, expected, strict=True))
