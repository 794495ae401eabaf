"""GGUF files of decoders, their tensors named as the gguf package names those of the Hub."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpipe.auto import AutoModelForCausalLM
from tests.parity.cases import CAUSAL_LM, Case
from tests.parity.harness import check_close, make

pytestmark = pytest.mark.oracle
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 36,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 77,
    "initializer_range": 0.4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": {"rms_norm_eps": 1e-3, "tie_word_embeddings": True},
    "qwen3": {"rms_norm_eps": 1e-3, "head_dim": 10},
    "starcoder2": {"norm_epsilon": 1e-3},
}


def write_gguf(path: Path, model: Any, architecture: str) -> None:
    """Writes a model as llama.cpp's converter does for architectures whose tensors it does not reorder."""
    import gguf

    config = model.config
    names = gguf.get_tensor_name_map(
        next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config.num_hidden_layers
    )
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(config.norm_epsilon)
    for name, weight in model.named_parameters():  # a tied head comes once
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None, name
        writer.add_tensor(known, weight.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("model_type", CONFIGS)
def test_equals_transformers(model_type: str, tmp_path: Path):
    case = Case(model_type, CAUSAL_LM, "gguf", {**SIZES, **CONFIGS[model_type]})
    made = make(case, tmp_path / "hub")
    write_gguf(tmp_path / "model.gguf", made.model, model_type)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model.gguf")
    assert model.config.model_type == model_type
    ids = np.random.default_rng(0).integers(0, 61, (2, 19))
    check_close(model(ids)[0], made.oracle(input_ids=ids).logits)
