"""Tiny checkpoints for contrastive search and DoLa, the same on every machine: weights drawn by numpy from their names.

Both Transformers 4.49.0 and jaxpipe load what `write` leaves of a checkpoint that either has saved.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

VOCABULARY = 61
NEW = 14

_IDS = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
_DECODER = {
    **_IDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
_GPT2 = {**_IDS, "n_embd": 32, "n_head": 4, "n_positions": 64, "n_layer": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _DECODER,
    "gpt2": _GPT2,
    "qwen2": _DECODER,
    "mixtral": _DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2},
    # Caps the scores of the last layer, not those of early ones.
    "gemma2": _DECODER
    | {
        "tie_word_embeddings": True,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 20.0,
    },
    "t5": {
        **_IDS,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    },
    "bart": {
        **_IDS,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 64,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
    },
}
SEQ2SEQ = ("t5", "bart")
# With layers enough for DoLa to choose from.
CONFIGS |= {
    f"deep {model_type}": CONFIGS[model_type] | {"n_layer" if model_type == "gpt2" else "num_hidden_layers": 6}
    for model_type in ("llama", "gpt2", "qwen2", "gemma2")
}
_TABLES = ("shared", "embed", "wte", "wpe", "relative_attention_bias", "lm_head")


def write(directory: Path) -> None:
    """Overwrites the weights of a saved checkpoint by drawn ones."""
    path = directory / "model.safetensors"
    save_file({name: _drawn(name, x.shape) for name, x in load_file(path).items()}, path, metadata={"format": "pt"})


def _drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if "norm" in name or ".ln_" in name:
        drawn = 0.2 * drawn + float(name.endswith("weight"))
    elif len(shape) == 1 or "logits_bias" in name:
        drawn = 0.2 * drawn
    elif any(part in name for part in _TABLES):
        drawn = 0.5 * drawn
    else:
        drawn = 1.2 * drawn / np.sqrt(min(shape))
    return drawn.astype(np.float32)


def prompts(model_type: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns three prompts, ids (3, 11) and mask (3, 11), of different lengths with the padding on the left.

    Encoder-decoders get no padding: 4.49.0 does not tell their decoder of it.
    """
    rng = np.random.default_rng(zlib.crc32(model_type.encode()))
    ids, mask = np.zeros((2, 3, 11), np.int64)
    for row, length in enumerate((11, 11, 11) if model_type in SEQ2SEQ else (11, 5, 8)):
        ids[row, 11 - length :], mask[row, 11 - length :] = rng.integers(3, VOCABULARY, length), 1
    return ids, mask
