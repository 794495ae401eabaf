"""Auto classes: which weights make up which head, and what is said where they do not."""

import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpipe import auto
from jaxpipe.auto import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from jaxpipe.common.errors import CheckpointError, ConfigError, WeightsError
from jaxpipe.model import PreTrainedModel

AutoClassifier = auto.AutoModelForSequenceClassification

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "gpt2": {"vocab_size": 61, "n_embd": 24, "n_head": 3, "n_layer": 2, "n_positions": 20},
    "bert": {
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 20,
    },
}
IDS = np.arange(3, 15).reshape(2, 6)
Edit = Callable[[dict[str, np.ndarray]], None]


def saved(directory: Path, model_type: str, cls: Any, edit: Edit | None = None, **config: Any) -> PreTrainedModel:
    """Saves a random model, its tensors edited, and returns it."""
    model = cls.from_config(AutoConfig.for_model(model_type, **CONFIGS[model_type], **config), seed=1)
    model.save_pretrained(directory)
    if edit is not None:
        tensors = load_file(directory / "model.safetensors")
        edit(tensors)
        save_file(tensors, directory / "model.safetensors")
    return model


def edit_config(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rename(rule: Callable[[str], str]) -> Edit:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            tensors[rule(name)] = tensors.pop(name)

    return edit


# Heads and bases


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_head_loads_into_its_base_and_back(model_type: str, tmp_path: Path):
    tied = {"tie_word_embeddings": True}
    head = saved(tmp_path / "head", model_type, AutoModelForCausalLM, **tied)
    base = AutoModel.from_pretrained(tmp_path / "head")
    base.save_pretrained(tmp_path / "base")
    assert not any(n.startswith(("model.", "transformer.")) for n in load_file(tmp_path / "base/model.safetensors"))
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert np.array_equal(again(IDS).logits, head(IDS).logits)
    assert info == {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}


def test_weights_of_other_heads_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    saved(tmp_path, "bert", AutoModelForMaskedLM)
    with caplog.at_level(logging.WARNING, logger="jaxpipe"):
        model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    transform = "cls.predictions.transform"
    assert info["unexpected_keys"] == {
        "cls.predictions.bias",
        *(f"{transform}.{layer}.{kind}" for layer in ("dense", "LayerNorm") for kind in ("weight", "bias")),
    }
    assert info["missing_keys"] == {"pooler.dense.weight", "pooler.dense.bias"}
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and "cls.predictions.bias" in messages[0] and "no pooler" in messages[1]
    out = model(IDS)
    assert out.pooler_output is None and "pooler_output" not in out


def test_the_untied_head_of_a_causal_model_is_reported_by_its_base(tmp_path: Path):
    saved(tmp_path, "llama", AutoModelForCausalLM)
    _, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["unexpected_keys"] == {"lm_head.weight"}


def test_half_a_pooler_is_an_error(tmp_path: Path):
    saved(tmp_path, "bert", AutoModel, lambda tensors: tensors.pop("pooler.dense.bias"))
    with pytest.raises(WeightsError, match=r"missing: pooler\.dense\.bias"):
        AutoModel.from_pretrained(tmp_path)


def test_a_classifier_is_never_made_up(tmp_path: Path):
    saved(tmp_path, "bert", AutoModelForMaskedLM)
    with pytest.raises(WeightsError) as error:
        AutoClassifier.from_pretrained(tmp_path)
    for name in ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"):
        assert f"missing: {name}" in str(error.value)
    assert str(tmp_path) in str(error.value) and "BertForSequenceClassification" in str(error.value)


def test_number_of_labels_comes_from_the_config(tmp_path: Path):
    saved(tmp_path, "bert", AutoClassifier, id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    model = AutoClassifier.from_pretrained(tmp_path)
    assert model(IDS).logits.shape == (2, 3) and model.config.id2label[2] == "c"
    with pytest.raises(WeightsError, match=r"classifier\.weight is \(3, 24\) in the checkpoint, \(2, 24\) here"):
        AutoClassifier.from_pretrained(tmp_path, id2label={0: "a", 1: "b"}, label2id=None)


@pytest.mark.parametrize(("model_type", "cls"), [("llama", AutoModelForMaskedLM), ("bert", AutoModelForCausalLM)])
def test_heads_that_an_architecture_does_not_have(model_type: str, cls: Any, tmp_path: Path):
    saved(tmp_path, model_type, AutoModel)
    with pytest.raises(ConfigError, match=f"'{model_type}' has no head for .* language model; it has: base model"):
        cls.from_pretrained(tmp_path)


# Weights that are wrong


def test_one_error_lists_everything(tmp_path: Path):
    def edit(tensors: dict[str, np.ndarray]) -> None:
        del tensors["model.layers.0.self_attn.k_proj.weight"], tensors["model.norm.weight"]
        tensors["model.layers.1.mlp.down_proj.weight"] = np.zeros((40, 24), np.float32)
        tensors["model.layers.1.self_attn.q_norm.weight"] = np.zeros(6, np.float32)
        tensors["model.layers.2.input_layernorm.weight"] = np.zeros(24, np.float32)
        tensors["embed_tokens.weight"] = tensors["model.embed_tokens.weight"] + 1
        tensors["score.weight"] = np.zeros((2, 24), np.float32)

    saved(tmp_path, "llama", AutoModelForCausalLM, edit)
    with pytest.raises(WeightsError) as error:
        AutoModelForCausalLM.from_pretrained(tmp_path)
    lines = [line.strip() for line in str(error.value).splitlines()]
    for line in (
        "missing: model.layers.0.self_attn.k_proj.weight",
        "missing: model.norm.weight",
        "shape: model.layers.1.mlp.down_proj.weight is (40, 24) in the checkpoint, (24, 40) here",
        "unexpected: model.layers.1.self_attn.q_norm.weight, inside a module that is computed",
        "unexpected: model.layers.2.input_layernorm.weight, inside a module that is computed",
    ):
        assert line in lines
    assert any(line.startswith("duplicate: model.embed_tokens.weight is given by") for line in lines)
    assert "score.weight" not in str(error.value)


def test_wrong_width_is_a_mismatch(tmp_path: Path):
    saved(tmp_path, "gpt2", AutoModelForCausalLM)
    edit_config(tmp_path, n_inner=50)
    with pytest.raises(WeightsError, match=r"transformer\.h\.0\.mlp\.c_fc\.weight is \(24, 96\).*\(24, 50\) here"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


# Old and odd names


def test_gpt2_of_the_first_days(tmp_path: Path):
    """Without the prefix, and with the causal masks saved as weights."""

    def edit(tensors: dict[str, np.ndarray]) -> None:
        rename(lambda name: name.removeprefix("transformer."))(tensors)
        for layer in range(2):
            tensors[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 20, 20), np.float32))
            tensors[f"h.{layer}.attn.masked_bias"] = np.asarray(-1e4, np.float32)
        tensors["lm_head.weight"] = tensors["wte.weight"].copy()

    model = saved(tmp_path, "gpt2", AutoModelForCausalLM, edit)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert np.array_equal(loaded(IDS).logits, model(IDS).logits)
    assert not info["unexpected_keys"]


def test_gamma_and_beta(tmp_path: Path):
    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    model = saved(tmp_path, "bert", AutoModelForMaskedLM, rename(old))
    assert np.array_equal(AutoModelForMaskedLM.from_pretrained(tmp_path)(IDS).logits, model(IDS).logits)


def test_bert_as_it_was_pretrained(tmp_path: Path):
    """With pooler, next-sentence head, buffers, and copies of what is tied."""

    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors["bert.pooler.dense.weight"] = np.zeros((24, 24), np.float32)
        tensors["bert.pooler.dense.bias"] = np.zeros(24, np.float32)
        tensors["cls.seq_relationship.weight"] = np.zeros((2, 24), np.float32)
        tensors["cls.seq_relationship.bias"] = np.zeros(2, np.float32)
        tensors["bert.embeddings.position_ids"] = np.arange(20)[None]
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].copy()
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].copy()

    model = saved(tmp_path, "bert", AutoModelForMaskedLM, edit)
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert np.array_equal(loaded(IDS).logits, model(IDS).logits)
    assert info["unexpected_keys"] == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
    }
    assert AutoModel.from_pretrained(tmp_path)(IDS).pooler_output is not None


# Tied weights


def test_only_the_copy_of_a_tied_weight(tmp_path: Path):
    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias") + 3

    model = saved(tmp_path, "bert", AutoModelForMaskedLM, edit)
    assert np.allclose(AutoModelForMaskedLM.from_pretrained(tmp_path)(IDS).logits, model(IDS).logits + 3, atol=1e-5)


def test_a_head_that_contradicts_the_tie_is_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    untied = saved(tmp_path, "llama", AutoModelForCausalLM)
    edit_config(tmp_path, tie_word_embeddings=True)
    with caplog.at_level(logging.WARNING, logger="jaxpipe"):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "lm_head.weight" in caplog.text and "differ" in caplog.text
    assert np.array_equal(loaded(IDS).logits, untied(IDS).logits)
    assert loaded.config.tie_word_embeddings is False


def test_an_untied_config_without_a_head_is_an_error(tmp_path: Path):
    saved(tmp_path, "llama", AutoModelForCausalLM, tie_word_embeddings=True)
    edit_config(tmp_path, tie_word_embeddings=False)
    with pytest.raises(WeightsError, match=r"missing: lm_head\.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


# Arguments and files


def test_dtypes(tmp_path: Path):
    saved(tmp_path, "llama", AutoModel)
    assert AutoModel.from_pretrained(tmp_path).dtype == np.float32
    assert AutoModel.from_pretrained(tmp_path, dtype="auto").dtype == np.float32
    assert str(AutoModel.from_pretrained(tmp_path, torch_dtype="bfloat16").dtype) == "bfloat16"
    assert AutoModel.from_pretrained(tmp_path, dtype=np.float16).dtype == np.float16
    with pytest.raises(ValueError, match="float99"):
        AutoModel.from_pretrained(tmp_path, dtype="float99")


def test_arguments(tmp_path: Path):
    saved(tmp_path, "llama", AutoModel)
    AutoModel.from_pretrained(tmp_path, trust_remote_code=True, low_cpu_mem_usage=True, attn_implementation="sdpa")
    with pytest.raises(TypeError, match=r"unknown argument 'device_mapp'.*Did you mean 'device_map'"):
        AutoModel.from_pretrained(tmp_path, device_mapp="auto")
    with pytest.raises(ValueError, match="attn_implementation='fast' is not known"):
        AutoModel.from_pretrained(tmp_path, attn_implementation="fast")
    assert AutoModel.from_pretrained(tmp_path, rms_norm_eps=0.5).config.rms_norm_eps == 0.5
    config = AutoConfig.from_pretrained(tmp_path, rms_norm_eps=0.25)
    assert AutoModel.from_pretrained(tmp_path, config=config).config.rms_norm_eps == 0.25


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt"])
def test_pickles_are_refused_and_not_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "repository", "llama", AutoModel)
    (tmp_path / "repository" / "model.safetensors").unlink()
    (tmp_path / "repository" / name).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match=name):
        AutoModel.from_pretrained(tmp_path / "repository")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("{", CheckpointError, r"config\.json"),
        ("[1]", CheckpointError, r"config\.json"),
        ('{"model_type": "lama"}', ConfigError, "'lama' is not supported; .*bert.*gpt2.*llama.*Did you mean"),
        ('{"hidden_size": 3}', ConfigError, "there is no key 'model_type'"),
        ('{"model_type": 3}', ConfigError, "model_type 3 is not supported"),
        ('{"model_type": "../llama"}', ConfigError, "is not supported"),
        ('{"model_type": "registry"}', ConfigError, "'registry' is not supported"),
    ],
)
def test_configs_that_are_none(text: str, error: type[Exception], named: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(text)
    for load in (AutoConfig.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(error, match=named):
            load(tmp_path)


def test_no_config(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        AutoModel.from_pretrained(tmp_path)
