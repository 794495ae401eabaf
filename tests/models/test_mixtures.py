"""Configs of mixtures of experts as the Hub has them, what is refused, and weights that nothing reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpipe.auto import AutoConfig
from jaxpipe.checkpoint.build import Blueprint
from jaxpipe.checkpoint.names import match
from jaxpipe.checkpoint.source import TensorInfo
from jaxpipe.common.errors import ConfigError
from jaxpipe.models.registry import CAUSAL_LM, architecture

YARN: dict[str, Any] = {"factor": 40, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}
# Keys as version 4 wrote them.
LEGACY: dict[str, dict[str, Any]] = {
    "mixtral": {"rope_theta": 1e6, "sliding_window": None, "torch_dtype": "bfloat16"},
    "qwen3_moe": {"rope_theta": 1e7, "rope_scaling": None, "head_dim": 128, "num_experts": 16, "max_window_layers": 48},
    "qwen2_moe": {"rope_theta": 1e6, "use_sliding_window": False, "max_window_layers": 21},
    "gpt_oss": {
        "rope_theta": 150000,
        "rope_scaling": {**YARN, "factor": 32.0, "rope_type": "yarn", "truncate": False},
        "initial_context_length": 4096,
        "experts_per_token": 4,
    },
    "deepseek_v3": {
        "rope_theta": 10000,
        "rope_scaling": {**YARN, "type": "yarn", "mscale": 1.0, "mscale_all_dim": 1.0},
        "max_position_embeddings": 163840,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "ep_size": 1,
    },
    "granitemoe": {"rope_theta": 10000.0, "rope_scaling": None, "attention_multiplier": 0.015625},
}


@pytest.mark.oracle
@pytest.mark.parametrize("model_type", LEGACY)
def test_older_keys_are_read_as_the_oracle_reads_them(model_type: str):
    import transformers

    ours = AutoConfig.for_model(model_type, **LEGACY[model_type]).to_dict()
    theirs = transformers.AutoConfig.for_model(model_type, **LEGACY[model_type]).to_dict()
    aliases = {"type"}  # of rope_type, which both have
    for key in (set(ours) & set(theirs)) - {"dtype"}:
        if key == "rope_parameters":
            theirs[key] = {name: value for name, value in theirs[key].items() if name not in aliases}
        assert ours[key] == theirs[key], key


@pytest.mark.parametrize(
    ("model_type", "values", "named"),
    [
        ("gpt_oss", {"quantization_config": {"quant_method": "mxfp4"}}, ["quantization_config", "mxfp4"]),
        ("gpt_oss", {"layer_types": ["chunked_attention"] * 36}, ["layer_types", "chunked_attention"]),
        ("deepseek_v3", {"quantization_config": {"quant_method": "fp8"}}, ["quantization_config", "fp8"]),
        ("deepseek_v3", {"scoring_func": "softmax"}, ["scoring_func", "softmax", "sigmoid"]),
        ("deepseek_v3", {"topk_method": "greedy"}, ["topk_method", "greedy"]),
        ("deepseek_v3", {"moe_layer_freq": 2}, ["moe_layer_freq"]),
        ("deepseek_v3", {"n_group": 7}, ["n_routed_experts=256", "n_group=7"]),
        ("deepseek_v3", {"num_key_value_heads": 8}, ["num_key_value_heads=8", "128"]),
        ("mixtral", {"num_local_experts": 2, "num_experts_per_tok": 3}, ["num_experts_per_tok=3", "2"]),
        ("deepseek_v3", {"topk_group": 9}, ["topk_group=9", "n_group=8"]),
        ("deepseek_v3", {"topk_group": 1, "num_experts_per_tok": 33}, ["num_experts_per_tok=33", "32"]),
        ("qwen2_moe", {"hidden_act": "silo"}, ["hidden_act", "silo", "silu"]),
    ],
)
def test_refused(model_type: str, values: dict[str, Any], named: list[str]):
    with pytest.raises(ConfigError) as error:
        AutoConfig.for_model(model_type, **values)
    for part in named:
        assert part in str(error.value)


def test_the_module_that_predicts_ahead_is_left_out():
    """Layer 61 of DeepSeek V3 is no layer of the decoder."""
    config = AutoConfig.for_model("deepseek_v3", num_hidden_layers=1, hidden_size=64, n_routed_experts=16)
    blueprint = Blueprint(architecture("deepseek_v3"), CAUSAL_LM, config, np.dtype(np.float32))
    wanted = blueprint.entries()
    info = TensorInfo("", (), np.dtype(np.float32), Path("model.safetensors"))
    infos = {name: replace(info, name=name, shape=shape) for e in wanted for name, shape in e.tensors.items()}
    ahead = {f"model.layers.61.{name}": info for name in ("eh_proj.weight", "embed_tokens.weight", "mlp.gate.weight")}
    found = match(wanted, {**infos, **ahead}, blueprint.architecture)
    found.check("here", "DeepseekV3ForCausalLM")
    assert not found.unexpected
    found = match(wanted, {**infos, "model.layers.60.mlp.gate.weight": info}, blueprint.architecture)
    assert found.inside == ["model.layers.60.mlp.gate.weight"]
