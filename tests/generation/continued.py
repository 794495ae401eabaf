"""Tiny random decoders of every kind of cache, prompts of several lengths, and how two answers are compared."""

from typing import Any

import numpy as np

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM
from jaxpipe.model import PreTrainedModel

VOCABULARY = 89
LENGTHS = (37, 5, 21)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
    "max_position_embeddings": 256,
    "eos_token_id": None,
}
LAYERS = ["sliding_attention", "full_attention"]
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.5, "n_positions": 256}
BOTH = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 8,
    "num_layers": 1,
    "num_heads": 4,
    "eos_token_id": None,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
"""Of an encoder-decoder, T5."""

# Architectures whose attention differs in what a chunk has to see.
CASES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "gpt2": {**GPT2, "eos_token_id": None},  # learned positions
    "qwen3": {**SIZES, "head_dim": 8},
    "gemma2": {**SIZES, "head_dim": 8, "sliding_window": 10, "layer_types": LAYERS, "query_pre_attn_scalar": 8},
    "gemma3_text": {**SIZES, "head_dim": 8, "sliding_window": 10, "layer_types": LAYERS, "query_pre_attn_scalar": 8},
    "gpt_oss": {
        **SIZES,
        "head_dim": 8,
        "sliding_window": 10,
        "layer_types": LAYERS,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },  # sinks
    "mixtral": {**SIZES, "num_local_experts": 4},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.5},
    "deepseek_v3": {
        **SIZES,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 12,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    },  # latents
    "mamba2": {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "expand": 2,
        "num_heads": 4,
        "head_dim": 8,
        "n_groups": 2,
        "state_size": 6,
        "chunk_size": 4,
        "initializer_range": 0.3,
        "eos_token_id": None,
    },  # a state
}


def made(name: str, *, device_map: Any = None, seed: int = 1, **changes: Any) -> PreTrainedModel:
    """Makes a random model of one of the `CASES`."""
    config = AutoConfig.for_model(name, **{**CASES[name], **changes})
    config.eos_token_id = None
    return AutoModelForCausalLM.from_config(config, seed=seed, device_map=device_map)


def padded(lengths: tuple[int, ...], side: str = "left", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random ids (B, T) and their mask; row i is the same whatever the others are."""
    ids = np.zeros((len(lengths), max(lengths)), np.int32)
    mask = np.zeros_like(ids)
    for i, length in enumerate(lengths):
        place = slice(max(lengths) - length, None) if side == "left" else slice(length)
        ids[i, place] = np.random.default_rng((seed, i)).integers(1, VOCABULARY, length)
        mask[i, place] = 1
    return ids, mask


def ask(model: PreTrainedModel, ids: np.ndarray, mask: np.ndarray | None, **settings: Any) -> Any:
    """Generates 6 tokens with their logits."""
    given = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **settings}
    return model.generate(ids, mask, return_dict_in_generate=True, output_logits=True, **given)


def same(found: Any, wanted: Any) -> None:
    """Checks that ids are equal, and logits to 1e-5 of the largest."""
    np.testing.assert_array_equal(found.sequences, wanted.sequences)
    assert len(found.logits) == len(wanted.logits)
    largest = max(float(np.abs(step).max()) for step in wanted.logits)
    for ours, other in zip(found.logits, wanted.logits, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5 * max(largest, 1.0))
