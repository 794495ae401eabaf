"""GGUF files of any content for the tests, and what is known of two architectures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from jaxpipe.common.gguf_spec import GGUFSpec

LLAMA = GGUFSpec(
    architecture="llama",
    model_type="llama",
    tensors={
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "blk.{bid}.attn_norm": "model.layers.{bid}.input_layernorm",
        "blk.{bid}.attn_q": "model.layers.{bid}.self_attn.q_proj",
        "blk.{bid}.attn_k": "model.layers.{bid}.self_attn.k_proj",
        "blk.{bid}.attn_v": "model.layers.{bid}.self_attn.v_proj",
        "blk.{bid}.attn_output": "model.layers.{bid}.self_attn.o_proj",
        "blk.{bid}.ffn_norm": "model.layers.{bid}.post_attention_layernorm",
        "blk.{bid}.ffn_gate": "model.layers.{bid}.mlp.gate_proj",
        "blk.{bid}.ffn_up": "model.layers.{bid}.mlp.up_proj",
        "blk.{bid}.ffn_down": "model.layers.{bid}.mlp.down_proj",
    },
    flags={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"},
    transforms={
        r".*\.self_attn\.q_proj\.(weight|bias)": "unpermute_heads",
        r".*\.self_attn\.k_proj\.(weight|bias)": "unpermute_kv_heads",
    },
)
GPT2 = GGUFSpec(
    architecture="gpt2",
    model_type="gpt2",
    tensors={
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
        "blk.{bid}.attn_norm": "transformer.h.{bid}.ln_1",
        "blk.{bid}.attn_qkv": "transformer.h.{bid}.attn.c_attn",
        "blk.{bid}.attn_output": "transformer.h.{bid}.attn.c_proj",
        "blk.{bid}.ffn_norm": "transformer.h.{bid}.ln_2",
        "blk.{bid}.ffn_up": "transformer.h.{bid}.mlp.c_fc",
        "blk.{bid}.ffn_down": "transformer.h.{bid}.mlp.c_proj",
    },
    config_keys={
        "context_length": "n_positions",
        "embedding_length": "n_embd",
        "block_count": "n_layer",
        "feed_forward_length": "n_inner",
        "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
    },
    transforms={r".*\.(c_attn|c_proj|c_fc)\.weight": "transpose"},
)

RANDOM = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def write(
    path: Path,
    tensors: dict[str, np.ndarray | tuple[np.ndarray, Type]],
    metadata: Callable[[gguf.GGUFWriter], Any] | None = None,
    architecture: str = "llama",
) -> Path:
    """Writes a file as llama.cpp's converter does; a tensor given with a type is bytes of that type."""
    writer = gguf.GGUFWriter(path, architecture)
    if metadata:
        metadata(writer)
    for name, value in tensors.items():
        array, kind = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_keys(writer: gguf.GGUFWriter) -> None:
    writer.add_context_length(2048)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(16)


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of Q and K: the halves of each head, by turns."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def random_blocks(kind: Type, rows: int, blocks: int) -> np.ndarray:
    size = gguf.GGML_QUANT_SIZES[kind][1]
    return RANDOM.integers(0, 256, (rows, blocks * size)).astype(np.uint8)
