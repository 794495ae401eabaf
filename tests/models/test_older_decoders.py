"""GPT-NeoX, BLOOM, Falcon, GPT-J, GPT-Neo and OPT: configs and weights as old repositories hold them."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM
from jaxpipe.checkpoint.safetensors import SafetensorsFile, write_safetensors
from jaxpipe.common.errors import ConfigError
from jaxpipe.common.logging import warn_once

# Keys of repositories on the Hub, beside the sizes.
PYTHIA = {
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "use_parallel_residual": True,
    "torch_dtype": "float16",
    "attention_probs_dropout_prob": 0,
    "hidden_dropout_prob": 0,
    "use_cache": True,
}
BLOOM = {
    "apply_residual_connection_post_layernorm": False,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "masked_softmax_fusion": True,
    "n_embed": 48,
    "n_inner": None,
    "n_layer": 2,
    "num_attention_heads": 3,
    "offset_alibi": 100,
    "pretraining_tp": 1,
    "seq_length": 2048,
    "skip_bias_add": True,
    "skip_bias_add_qkv": False,
    "unk_token_id": 0,
}
FALCON = {
    "alibi": False,
    "apply_residual_connection_post_layernorm": False,
    "bias": False,
    "hidden_dropout": 0.0,
    "multi_query": True,
    "new_decoder_architecture": False,
    "num_kv_heads": 3,
    "parallel_attn": True,
    "torch_dtype": "bfloat16",
}
GPT_NEO = {
    "attention_dropout": 0,
    "attention_layers": ["global", "local"],
    "attention_types": [[["global", "local"], 1]],
    "embed_dropout": 0,
    "gradient_checkpointing": False,
    "num_heads": 3,
    "num_layers": 2,
    "summary_type": "cls_index",
}
GPTJ = {"n_embd": 48, "n_head": 3, "n_layer": 2, "rotary": True, "rotary_dim": 4, "scale_attn_weights": True}
OPT = {"_remove_final_layer_norm": False, "activation_dropout": 0.0, "layerdrop": 0.0, "prefix": "</s>"}
SIZES = {"vocab_size": 61, "hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("gpt_neox", {**SIZES, **PYTHIA}),
        ("bloom", {"vocab_size": 61, **BLOOM}),
        ("falcon", {**SIZES, **FALCON}),
        ("gpt_neo", {"vocab_size": 61, "hidden_size": 48, **GPT_NEO}),
        ("gptj", {"vocab_size": 61, **GPTJ}),
        ("opt", {**SIZES, "ffn_dim": 50, **OPT}),
    ],
)
def test_keys_of_old_repositories_are_known(model_type: str, values: dict[str, Any], caplog: pytest.LogCaptureFixture):
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="jaxpipe"):
        config = AutoConfig.for_model(model_type, **values)
    assert not caplog.records
    assert config.hidden_size == 48 and config.num_attention_heads == 3 and config.num_hidden_layers == 2


def test_rotary_keys_of_gpt_neox():
    old = AutoConfig.for_model("gpt_neox", **SIZES, rotary_pct=0.5, rotary_emb_base=500)
    new = {"rope_type": "default", "rope_theta": 500, "partial_rotary_factor": 0.5}
    assert old.rope_parameters == AutoConfig.for_model("gpt_neox", **SIZES, rope_parameters=new).rope_parameters == new
    assert not {"rotary_pct", "rotary_emb_base"} & set(old.to_dict())
    assert AutoConfig.for_model("gpt_neox").rope_parameters["partial_rotary_factor"] == 0.25


@pytest.mark.parametrize(
    ("model_type", "values", "named"),
    [
        ("opt", {"hidden_size": 50}, ["hidden_size=50", "num_attention_heads=12"]),
        ("opt", {"_remove_final_layer_norm": True}, ["_remove_final_layer_norm"]),
        ("opt", {"layer_norm_elementwise_affine": False}, ["layer_norm_elementwise_affine"]),
        ("opt", {"activation_function": "rellu"}, ["activation_function", "rellu", "relu"]),
        ("gpt_neox", {"hidden_size": 50}, ["hidden_size=50", "num_attention_heads=64"]),
        ("bloom", {"hidden_size": 50}, ["hidden_size=50", "n_head=8"]),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 3}, ["num_kv_heads=3"]),
        ("falcon", {"num_ln_in_parallel_attn": 2}, ["num_ln_in_parallel_attn", "new_decoder_architecture"]),
        ("falcon", {"apply_residual_connection_post_layernorm": True}, ["apply_residual_connection_post_layernorm"]),
        ("gptj", {"rotary_dim": 512}, ["rotary_dim=512"]),
        ("gptj", {"tie_word_embeddings": True}, ["tie_word_embeddings", "bias"]),
        ("gpt_neo", {"num_layers": 3}, ["attention_types", "3 layers"]),
        ("gpt_neo", {"attention_types": [[["wide"], 24]]}, ["attention_types", "wide"]),
        ("gpt_neo", {"attention_types": [["global"]]}, ["attention_types", "'global'"]),
    ],
)
def test_refused(model_type: str, values: dict[str, Any], named: list[str]):
    with pytest.raises(ConfigError) as error:
        AutoConfig.for_model(model_type, **values)
    for part in named:
        assert part in str(error.value)


def buffer(name: str) -> tuple[str, np.ndarray]:
    return name, np.ones((1, 1, 4, 4), np.float32)


# model_type -> config, the pattern and replacement of names as old files have them, and buffers beside them.
OLD: dict[str, tuple[dict[str, Any], tuple[str, str], list[tuple[str, np.ndarray]]]] = {
    "gpt_neox": (
        {**SIZES, "intermediate_size": 50},
        (r"^embed_out\.", "lm_head."),
        [
            buffer("gpt_neox.layers.0.attention.bias"),
            buffer("gpt_neox.layers.1.attention.masked_bias"),
            buffer("gpt_neox.layers.1.attention.rotary_emb.inv_freq"),
        ],
    ),
    "bloom": ({"vocab_size": 61, **BLOOM}, (r"^transformer\.", ""), []),
    "gpt_neo": (
        {"vocab_size": 61, "hidden_size": 48, "max_position_embeddings": 64, **GPT_NEO},
        (r"^$", ""),
        [
            buffer("transformer.h.0.attn.attention.bias"),
            buffer("transformer.h.1.attn.attention.masked_bias"),
        ],
    ),
    "gptj": (
        {"vocab_size": 61, **GPTJ},
        (r"^$", ""),
        [buffer("transformer.h.0.attn.bias"), buffer("transformer.h.0.attn.masked_bias")],
    ),
    "opt": ({**SIZES, "ffn_dim": 50, "max_position_embeddings": 64}, (r"^model\.decoder\.", "decoder."), []),
    "mamba2": (
        {"vocab_size": 61, "hidden_size": 16, "num_heads": 4, "head_dim": 8, "n_groups": 2, "num_hidden_layers": 2},
        (r"^backbone\.embeddings\.", "backbone.embedding."),
        [],
    ),
}


@pytest.mark.parametrize("model_type", OLD)
def test_weights_of_old_repositories(model_type: str, tmp_path: Path):
    values, (pattern, replacement), buffers = OLD[model_type]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values), dtype="float32", seed=1)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    file = SafetensorsFile(path)
    tensors = {re.sub(pattern, replacement, name): np.array(file.read(name)) for name in file.infos}
    assert pattern == "^$" or set(tensors) != set(file.infos)
    file.close()
    write_safetensors(path, [*tensors.items(), *buffers])
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for ours, theirs in zip(again.functional()[1].items(), model.functional()[1].items(), strict=True):
        assert ours[0] == theirs[0]
        assert np.array_equal(ours[1], theirs[1]), ours[0]
