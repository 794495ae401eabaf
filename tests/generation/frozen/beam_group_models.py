"""Tiny checkpoints for the searches that Transformers 5 no longer has, the same on every machine.

`write` fills a checkpoint, which either side has saved, with weights drawn by numpy from their names; `prompts` draws
the inputs. Both Transformers 4.49.0 and jaxpipe load what it leaves.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

VOCABULARY = 48
NEW = 10

_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _DECODER,
    "qwen2": _DECODER,
    "mixtral": _DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    "t5": {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "eos_token_id": None,
    },
    "bart": {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 64,
        "decoder_start_token_id": 2,
        "bos_token_id": None,
        "eos_token_id": None,
        "forced_eos_token_id": None,
    },
}
SEQ2SEQ = ("t5", "bart")

_TABLES = ("shared", "embed", "wte", "wpe", "relative_attention_bias")


def write(directory: Path) -> None:
    """Overwrites the weights of a saved checkpoint by drawn ones."""
    path = directory / "model.safetensors"
    save_file({name: _drawn(name, x.shape) for name, x in load_file(path).items()}, path, metadata={"format": "pt"})


def _drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if "norm" in name or ".ln_" in name:
        drawn = 0.2 * drawn + float(name.endswith("weight"))
    elif "logits_bias" in name or len(shape) == 1:
        drawn = 0.2 * drawn
    elif any(part in name for part in _TABLES):
        drawn = 0.6 * drawn
    else:
        drawn = 1.4 * drawn / np.sqrt(min(shape))
    return drawn.astype(np.float32)


def prompts(model_type: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns three prompts of different lengths, ids (3, 9) and mask (3, 9); decoders have the padding on the left."""
    rng = np.random.default_rng(zlib.crc32(model_type.encode()))
    ids, mask = np.zeros((2, 3, 9), np.int64)
    for row, length in enumerate((9, 4, 7)):
        place = slice(0, length) if model_type in SEQ2SEQ else slice(9 - length, 9)
        ids[row, place], mask[row, place] = rng.integers(3, VOCABULARY, length), 1
    return ids, mask
