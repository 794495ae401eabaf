"""Configs: both dialects of config.json, what is refused, and that no key of the oracle's is overlooked."""

import json
import logging
from typing import Any

import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModel, AutoModelForCausalLM
from jaxpipe.common.errors import ConfigError
from jaxpipe.common.logging import warn_once
from jaxpipe.models import registry
from jaxpipe.models.config import INERT, REFUSED, ModelConfig

TYPES = registry.model_types()
# Keys of the oracle's that are read under another name or dialect.
READ_OTHERWISE = {"num_labels", "torch_dtype", "use_return_dict"}

LLAMA: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# The same model in the dialects of version 4 (two spellings) and 5.
DIALECTS = [
    {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}, "torch_dtype": "bfloat16"},
    {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}, "torch_dtype": "torch.bfloat16"},
    {**LLAMA, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}, "dtype": "bfloat16"},
]


def config_class(model_type: str) -> type[ModelConfig]:
    return registry.architecture(model_type).config


@pytest.mark.oracle
@pytest.mark.parametrize("model_type", TYPES)
def test_every_key_of_the_oracle_stands_in_one_list(model_type: str):
    import dataclasses

    import transformers

    theirs = transformers.AutoConfig.for_model(model_type)
    ours = config_class(model_type)
    lists = {
        "fields": ours.keys() | set(ours.attribute_map),
        "inert": (INERT - ours.keys()) | ours.inert,
        "refused": {*REFUSED, *ours.refused},
    }
    keys = {*theirs.to_dict(), *(field.name for field in dataclasses.fields(theirs))}
    found = {key: [name for name, keys in lists.items() if key in keys] for key in keys - READ_OTHERWISE}
    assert {key: names for key, names in found.items() if len(names) != 1} == {}


@pytest.mark.oracle
@pytest.mark.parametrize("model_type", TYPES)
def test_defaults_are_the_oracles(model_type: str):
    import transformers

    theirs, ours = transformers.AutoConfig.for_model(model_type).to_dict(), AutoConfig.for_model(model_type).to_dict()
    assert different(ours, theirs) == {}


def different(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The keys of both whose values are not equal; of a config within a config, those of its keys."""
    found = {}
    for key in set(ours) & set(theirs):
        pair = ours[key], theirs[key]
        inside = all(isinstance(value, dict) and "model_type" in value for value in pair)
        unequal = different(*pair) if inside else {key: pair} if pair[0] != pair[1] else {}
        found |= unequal
    return found


@pytest.mark.parametrize("model_type", TYPES)
def test_lists_do_not_overlap(model_type: str):
    ours = config_class(model_type)
    assert not ours.keys() & ours.inert
    assert not (INERT | ours.inert) & {*REFUSED, *ours.refused}
    assert set(ours.attribute_map.values()) <= ours.keys()
    assert not set(ours.attribute_map) & ours.keys()


@pytest.mark.parametrize("model_type", TYPES)
def test_round_trip(model_type: str):
    config = AutoConfig.for_model(model_type, id2label={"0": "no", "1": "maybe", "2": "yes"}, problem_type="regression")
    again = config_class(model_type).from_dict(json.loads(config.to_json_string()))
    assert again.to_dict() == config.to_dict()
    assert again.num_labels == 3 and again.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert again.label2id == {"no": 0, "maybe": 1, "yes": 2} and again.problem_type == "regression"


def test_dialects_give_the_same_config_and_logits():
    configs = [AutoConfig.for_model("llama", **values) for values in DIALECTS]
    assert configs[0].to_dict() == configs[1].to_dict() == configs[2].to_dict()
    assert configs[0].rope_parameters == {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}
    assert configs[0].dtype == "bfloat16"
    ids = np.arange(3, 43)[None]
    logits = [np.asarray(AutoModelForCausalLM.from_config(c, seed=1, dtype="float32")(ids).logits) for c in configs]
    assert np.array_equal(logits[0], logits[2])
    plain = AutoConfig.for_model("llama", **LLAMA, rope_theta=5e5)
    assert not np.allclose(logits[0], AutoModelForCausalLM.from_config(plain, seed=1)(ids).logits)


def test_legacy_rope_keys():
    assert AutoConfig.for_model("llama", **LLAMA).rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    null = AutoConfig.for_model("llama", **LLAMA, rope_theta=None, rope_scaling=None, rope_parameters=None)
    assert null.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    linear = AutoConfig.for_model("llama", **LLAMA, rope_scaling={"type": "linear", "factor": 2})
    assert linear.rope_parameters == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2}


@pytest.mark.parametrize(
    ("model_type", "values", "named"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, ["position_embedding_type", "relative_key", "absolute"]),
        ("bert", {"is_decoder": True}, ["is_decoder"]),
        ("bert", {"add_cross_attention": True}, ["add_cross_attention"]),
        ("bert", {"hidden_act": "geluu"}, ["hidden_act", "geluu", "Did you mean 'gelu'"]),
        ("gpt2", {"activation_function": "softmax"}, ["activation_function", "softmax"]),
        ("gpt2", {"add_cross_attention": True}, ["add_cross_attention"]),
        ("gpt2", {"n_embd": 30, "n_head": 4}, ["n_embd=30", "n_head=4"]),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "gptq"]),
        ("llama", {"quantization": {"bits": 4}}, ["quantization"]),
        ("llama", {"pruned_heads": {"0": [1]}}, ["pruned_heads"]),
        ("llama", {"rope_scaling": {"type": "spiral", "factor": 2.0}}, ["rope_type", "spiral", "linear"]),
        ("llama", {"rope_scaling": {"type": "linear"}}, ["linear", "'factor'"]),
        ("llama", {"rope_scaling": {"type": "llama3", **LLAMA3, "factor": "big"}}, ["llama3", "'factor'", "'big'"]),
        ("llama", {"rope_scaling": "linear"}, ["rope", "'linear'"]),
        ("llama", {"rope_theta": -1.0}, ["rope_theta", "-1.0"]),
        ("llama", {"hidden_act": "swiglu"}, ["hidden_act", "swiglu"]),
        ("llama", {"num_attention_heads": 6, "num_key_value_heads": 4}, ["num_attention_heads=6", "4"]),
        ("llama", {"hidden_size": "wide"}, ["hidden_size", "'wide'"]),
        ("llama", {"hidden_size": 12.5}, ["hidden_size", "12.5"]),
        ("llama", {"num_hidden_layers": "x", "vocab_size": [1]}, ["num_hidden_layers", "vocab_size"]),
        ("llama", {"hidden_size": -8}, ["hidden_size=-8"]),
        ("llama", {"num_attention_heads": 0}, ["num_attention_heads=0"]),
        ("llama", {"dtype": "float99"}, ["float99"]),
        ("gpt3", {}, ["gpt3", "gpt2", "llama", "bert"]),
    ],
)
def test_refused(model_type: str, values: dict[str, Any], named: list[str]):
    with pytest.raises(ValueError) as error:
        AutoConfig.for_model(model_type, **values)
    for part in named:
        assert part in str(error.value)


def test_neutral_values_of_refused_keys_pass():
    values = {"position_embedding_type": "absolute", "is_decoder": False, "quantization_config": None}
    config = AutoConfig.for_model("bert", **values, pruned_heads={})
    assert config.to_dict()["position_embedding_type"] == "absolute"


def test_odd_heads_cannot_be_rotated():
    config = AutoConfig.for_model("llama", **{**LLAMA, "head_dim": 7})
    with pytest.raises(ConfigError, match="7 of the 7 dimensions"):
        AutoModel.from_config(config)


def test_unknown_key_is_warned_about_once_and_kept(caplog: pytest.LogCaptureFixture):
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="jaxpipe"):
        config = AutoConfig.for_model("llama", **LLAMA, sliding_widow=4)
        AutoConfig.for_model("llama", **LLAMA, sliding_widow=4, attention_dropout=0.1, transformers_version="4.1")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and "'sliding_widow'" in messages[0]
    assert config.sliding_widow == 4 and config.to_dict()["sliding_widow"] == 4


def test_attribute_map():
    config = AutoConfig.for_model("gpt2", hidden_size=24, num_attention_heads=3, num_hidden_layers=5)
    assert (config.n_embd, config.n_head, config.n_layer) == (24, 3, 5)
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (24, 3, 5)
    assert config.max_position_embeddings == config.n_positions == 1024
    assert "hidden_size" not in config.to_dict()
    with pytest.raises(AttributeError, match="no attribute 'widths'"):
        _ = config.widths


def test_num_labels():
    assert AutoConfig.for_model("bert").num_labels == 2
    five = AutoConfig.for_model("bert", num_labels=5)
    assert five.num_labels == 5 and five.id2label[4] == "LABEL_4" and five.label2id["LABEL_4"] == 4


def test_a_config_of_another_type_is_refused():
    with pytest.raises(ConfigError, match=r"'gpt2'.*LlamaConfig"):
        config_class("llama").from_dict({"model_type": "gpt2"})
