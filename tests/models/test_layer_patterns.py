"""Which layers slide and which rotate, as configs of decoders spell it in all their dialects."""

from typing import Any

import pytest

from jaxpipe.auto import AutoConfig
from jaxpipe.common.errors import ConfigError

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
YARN = {"factor": 8.0, "original_max_position_embeddings": 64, "attention_factor": 1.2}


def kinds(model_type: str, **values: Any) -> str:
    """The layers' kinds as one letter each."""
    config = AutoConfig.for_model(model_type, **{**SMALL, **values})
    return "".join("S" if kind == "sliding_attention" else "F" for kind in config.layer_types)


@pytest.mark.parametrize(
    ("model_type", "values", "wanted"),
    [
        ("qwen2", {}, "FFFFFF"),
        ("qwen2", {"sliding_window": 4, "max_window_layers": 2}, "FFFFFF"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}, "FFSSSS"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 5}, "FFFFFS"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, "SSSSSS"),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 4, "no_rope_layer_interval": 2}, "FSFSFS"),
        ("smollm3", {"sliding_window": 4}, "FFFFFF"),
        ("olmo3", {}, "SSSFSS"),
        ("exaone4", {}, "SSSFSS"),
        ("exaone4", {"sliding_window_pattern": "LLLG"}, "SSSFSF"),
        ("exaone4", {"sliding_window_pattern": None}, "FFFFFF"),
        ("exaone4", {"sliding_window": None}, "FFFFFF"),
    ],
)
def test_layer_types(model_type: str, values: dict[str, Any], wanted: str):
    assert kinds(model_type, **values) == wanted


def test_rotary_layers_of_smollm3():
    assert AutoConfig.for_model("smollm3", **SMALL).no_rope_layers == [1, 1, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("model_type", "values", "named"),
    [
        ("qwen2", {"layer_types": ["sliding_attention"] * 6}, "sliding_window"),
        ("qwen2", {"use_mrope": True}, "use_mrope"),
        ("qwen3", {"layer_types": ["full_attention"] * 5}, "5 entries"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers has 2"),
        ("exaone4", {"sliding_window_pattern": "LLX"}, "'LLX'"),
        ("stablelm", {"head_dim": 16}, "hidden_size=32"),
        ("starcoder2", {"mlp_type": "gated"}, "mlp_type"),
    ],
)
def test_refused(model_type: str, values: dict[str, Any], named: str):
    with pytest.raises(ConfigError) as error:
        AutoConfig.for_model(model_type, **{**SMALL, **values})
    assert named in str(error.value)


def test_scaling_of_olmo3_is_about_the_full_layers():
    config = AutoConfig.for_model("olmo3", **SMALL, rope_theta=7e5, rope_scaling={"rope_type": "yarn", **YARN})
    assert config.rope_parameters == {
        "full_attention": {"rope_type": "yarn", "rope_theta": 7e5, **YARN},
        "sliding_attention": {"rope_type": "default", "rope_theta": 7e5},
    }


def test_partial_rotation_of_stablelm():
    assert AutoConfig.for_model("stablelm", **SMALL).rope_parameters["partial_rotary_factor"] == 0.25
    half = AutoConfig.for_model("stablelm", **SMALL, partial_rotary_factor=0.5, rope_theta=500)
    assert half.rope_parameters == {"rope_type": "default", "rope_theta": 500, "partial_rotary_factor": 0.5}


def test_rope_of_ministral3():
    plain = AutoConfig.for_model("ministral3", **SMALL).rope_parameters
    assert plain["rope_type"] == plain["type"] == "yarn" and plain["llama_4_scaling_beta"] == 0.1
    given = {"rope_type": "yarn", "rope_theta": 1e6, "llama_4_scaling_beta": 0.3, **YARN}
    assert AutoConfig.for_model("ministral3", **SMALL, rope_parameters=given).rope_parameters == given


@pytest.mark.parametrize("model_type", ["mistral", "ministral3", "qwen3"])
def test_null_sizes_follow_from_the_others(model_type: str):
    config = AutoConfig.for_model(model_type, **{**SMALL, "num_key_value_heads": None, "head_dim": None})
    assert (config.num_key_value_heads, config.head_dim) == (4, 8)
