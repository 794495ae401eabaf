"""GGUF files of Falcon, whose joined projections are taken apart, and of T5, whose versions they do not name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from jaxpipe.auto import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from jaxpipe.checkpoint.gguf import GGUFFile
from jaxpipe.common.errors import CheckpointError
from tests.checkpoint.gguf_files import random, write
from tests.parity.cases import CAUSAL_LM, SEQ2SEQ_LM, Case
from tests.parity.harness import check_close, make

IDS = np.random.default_rng(0).integers(3, 61, (2, 19))
FALCON: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 36,
    "num_attention_heads": 6,
    "num_hidden_layers": 2,
    "ffn_hidden_size": 50,
    "initializer_range": 0.4,
    "layer_norm_epsilon": 1e-3,
}
FALCONS: dict[str, dict[str, Any]] = {
    "one_kv_head": {"tie_word_embeddings": False},
    "groups_and_two_norms": {"new_decoder_architecture": True, "num_kv_heads": 3},
    "groups_and_one_norm": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
}
T5: dict[str, Any] = {
    "vocab_size": 61,
    "d_model": 36,
    "d_kv": 10,
    "num_heads": 3,
    "d_ff": 50,
    "num_layers": 3,
    "relative_attention_num_buckets": 8,
    "layer_norm_epsilon": 1e-3,
    "decoder_start_token_id": 0,
}
T5S: dict[str, tuple[str, dict[str, Any]]] = {
    "version_1_0": ("t5", {}),
    "version_1_0_with_its_head_once_more": ("t5", {}),
    "version_1_1": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 2}),
    "umt5": ("umt5", {"feed_forward_proj": "gated-gelu"}),
}


def regrouped(weight: np.ndarray, heads: int, kv_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of Falcon's groups: all queries, all keys, all values."""
    groups = weight.reshape(kv_heads, heads // kv_heads + 2, -1, weight.shape[1])
    parts = [groups[:, :-2], groups[:, -2], groups[:, -1]]
    return np.concatenate([part.reshape(-1, weight.shape[1]) for part in parts])


def named(kind: gguf.MODEL_ARCH, layers: int, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights under the names that the gguf package gives them."""
    names = gguf.get_tensor_name_map(kind, layers)
    found = {names.get_name(name, try_suffixes=(".weight", ".bias")): weight for name, weight in weights.items()}
    assert None not in found and len(found) == len(weights)
    return found  # type: ignore[return-value]


def write_falcon(path: Path, config: Any, weights: Mapping[str, np.ndarray], kv_heads: int) -> Path:
    heads = config.num_attention_heads
    tensors: dict[str, Any] = named(gguf.MODEL_ARCH.FALCON, config.num_hidden_layers, weights)
    for name in tensors:
        if "attn_qkv" in name:
            tensors[name] = regrouped(tensors[name], heads, kv_heads)

    def metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_context_length(2048)
        writer.add_tensor_data_layout("jploski")
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.ffn_hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_head_count(heads)
        writer.add_head_count_kv(kv_heads)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)

    return write(path, tensors, metadata, "falcon")


def write_t5(path: Path, config: Any, weights: Mapping[str, np.ndarray]) -> Path:
    def metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_context_length(512)
        writer.add_embedding_length(config.d_model)
        writer.add_feed_forward_length(config.d_ff)
        writer.add_block_count(config.num_layers)
        writer.add_decoder_block_count(config.num_decoder_layers)
        writer.add_head_count(config.num_heads)
        writer.add_key_length(config.d_kv)
        writer.add_value_length(config.d_kv)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        writer.add_relative_attn_buckets_count(config.relative_attention_num_buckets)
        writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
        writer.add_decoder_start_token_id(config.decoder_start_token_id)
        writer.add_eos_token_id(1)
        writer.add_pad_token_id(0)

    return write(path, named(gguf.MODEL_ARCH.T5, config.num_layers, weights), metadata, "t5")


@pytest.mark.oracle
@pytest.mark.parametrize("name", FALCONS)
def test_falcon_equals_transformers(name: str, tmp_path: Path):
    own = FALCONS[name]
    made = make(Case("falcon", CAUSAL_LM, "gguf", {**FALCON, **own}), tmp_path / "hub")
    weights = {name: weight.detach().numpy() for name, weight in made.model.named_parameters()}
    path = write_falcon(tmp_path / "model.gguf", made.model.config, weights, own.get("num_kv_heads", 1))
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.config.model_type == "falcon"
    for key, value in {**FALCON, **own}.items():
        assert key == "initializer_range" or getattr(model.config, key) == value, key
    check_close(model(IDS)[0], made.oracle(input_ids=IDS).logits)
    # Any rows and columns are those of the whole, through the groups.
    source, key = GGUFFile(path).source(), "transformer.h.1.self_attention.query_key_value.weight"
    assert np.array_equal(source.read(key), weights[key])
    assert np.array_equal(source.read(key, (slice(5, 21), slice(3, 30))), weights[key][5:21, 3:30])


@pytest.mark.oracle
@pytest.mark.parametrize("name", T5S)
def test_t5_equals_transformers(name: str, tmp_path: Path):
    model_type, own = T5S[name]
    made = make(Case(model_type, SEQ2SEQ_LM, "gguf", {**T5, **own}), tmp_path / "hub")
    weights = {name: weight.detach().numpy() for name, weight in made.model.named_parameters()}
    if name.endswith("once_more"):
        weights["lm_head.weight"] = weights["shared.weight"]
    model = AutoModelForSeq2SeqLM.from_pretrained(write_t5(tmp_path / "model.gguf", made.model.config, weights))
    assert model.config.model_type == model_type
    for key, value in {**T5, **own}.items():
        assert getattr(model.config, key) == value, key
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS[:, :7]}
    check_close(model(**inputs)[0], made.oracle(**inputs).logits)
    given = {"max_new_tokens": 6, "do_sample": False}
    theirs = made.oracle_greedy(IDS, np.ones_like(IDS), max_new_tokens=6, eos_token_id=1, pad_token_id=0)
    assert np.array_equal(np.asarray(model.generate(IDS, **given)), theirs)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 4), (6, 0), (5, 1)])
def test_falcon_of_other_heads(heads: int, kv_heads: int, tmp_path: Path):
    def metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_head_count(heads)
        writer.add_head_count_kv(kv_heads)

    tensors = {"blk.0.attn_qkv.weight": random(48, 36)}
    with pytest.raises(CheckpointError, match=f"attn_qkv.*does not hold {heads} query heads and {kv_heads} key"):
        GGUFFile(write(tmp_path / "x.gguf", tensors, metadata, "falcon")).source()
