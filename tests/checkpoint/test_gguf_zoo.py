"""GGUF files of Gemma and Phi-3: norms stored with one added, joined projections, LongRoPE's factors as tensors."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM
from jaxpipe.checkpoint.gguf import GGUFFile
from tests.checkpoint.gguf_files import random, write
from tests.parity.cases import CAUSAL_LM, Case
from tests.parity.harness import check_close, make

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
GEMMA: dict[str, Any] = {**SIZES, "head_dim": 10, "query_pre_attn_scalar": 10, "sliding_window": 5}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.25, 1.5],
    "long_factor": [1.5, 3.0, 7.0],
    "attention_factor": 1.25,
}
# GGUF's architecture -> the Hub's type, its config, and GGUF's keys beyond those that all have.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma": ("gemma", {**SIZES, "head_dim": 10}, {}),
    "gemma2": (
        "gemma2",
        {**GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 9.0},
        {"attention.sliding_window": 5, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 9.0},
    ),
    "gemma3": (
        "gemma3_text",
        {
            **GEMMA,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        {"attention.sliding_window": 5, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "phi3": (
        "phi3",
        {**SIZES, "original_max_position_embeddings": 8, "rope_parameters": LONGROPE, "sliding_window": 7},
        {
            "attention.sliding_window": 7,
            "rope.scaling.original_context_length": 8,
            "rope.scaling.attn_factor": 1.25,
            "rope.dimension_count": 6,
        },
    ),
}


def write_gguf(
    path: Path, architecture: str, config: Any, weights: dict[str, np.ndarray], keys: dict[str, Any]
) -> Path:
    """Writes a model as llama.cpp's converter does."""
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    tensors: dict[str, Any] = {}
    for name, weight in weights.items():
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None, name
        tensors[known] = weight + 1 if "gemma" in architecture and name.endswith("norm.weight") else weight
    if architecture == "phi3":
        rope = config.rope_parameters
        tensors["rope_factors_long.weight"] = np.asarray(rope["long_factor"], np.float32)
        tensors["rope_factors_short.weight"] = np.asarray(rope["short_factor"], np.float32)

    def metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        rope = config.rope_parameters
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
        if getattr(config, "head_dim", None):
            writer.add_key_length(config.head_dim)
        for key, value in keys.items():
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(f"{architecture}.{key}", value)

    return write(path, tensors, metadata, architecture)


@pytest.mark.oracle
@pytest.mark.parametrize("architecture", CASES)
def test_equals_transformers(architecture: str, tmp_path: Path):
    model_type, values, keys = CASES[architecture]
    made = make(Case(model_type, CAUSAL_LM, "gguf", values), tmp_path / "hub")
    weights = {name: weight.detach().numpy() for name, weight in made.model.named_parameters()}
    path = write_gguf(tmp_path / "model.gguf", architecture, made.model.config, weights, keys)
    model = AutoModelForCausalLM.from_pretrained(path)
    for key, value in values.items():
        if key not in ("initializer_range", "rope_parameters", "pad_token_id", "eos_token_id"):
            assert getattr(model.config, key) == value, key
    assert model.config.model_type == model_type
    assert model.config.rope_parameters == AutoConfig.for_model(model_type, **values).rope_parameters
    ids = np.random.default_rng(0).integers(0, 61, (2, 19))
    check_close(model(ids)[0], made.oracle(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("architecture", "layers", "scalar"),
    [("gemma2", 26, 256), ("gemma2", 46, 144), ("gemma3", 34, 256), ("gemma3", 62, 144)],
)
def test_the_scale_of_the_largest_gemma(architecture: str, layers: int, scalar: int, tmp_path: Path):
    """Files do not hold it; only the largest of a family divides its width by the heads instead."""

    def metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_block_count(layers)
        writer.add_embedding_length(4608)
        writer.add_head_count(32)
        writer.add_key_length(256)

    path = write(tmp_path / "x.gguf", {"token_embd.weight": random(4, 8)}, metadata, architecture)
    assert GGUFFile(path).config()["query_pre_attn_scalar"] == scalar


def test_phi3_without_a_window(tmp_path: Path):
    def metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_sliding_window(0)

    path = write(tmp_path / "x.gguf", {"token_embd.weight": random(4, 8)}, metadata, "phi3")
    assert GGUFFile(path).config()["sliding_window"] is None
