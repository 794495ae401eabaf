"""Configs of mixtures of experts as the Hub has them, what is refused, and weights that nothing reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM
from jaxpipe.checkpoint.build import Blueprint
from jaxpipe.checkpoint.fused import split_fused
from jaxpipe.checkpoint.names import match
from jaxpipe.checkpoint.safetensors import SafetensorsFile
from jaxpipe.checkpoint.source import TensorInfo
from jaxpipe.common.errors import CheckpointError, ConfigError, WeightsError
from jaxpipe.models.registry import CAUSAL_LM, architecture
from tests.parity.cases import CASES, Case
from tests.parity.cases import CAUSAL_LM as HEAD
from tests.parity.harness import batch, check_close, make

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
        ("mixtral", {"num_local_experts": 0}, ["num_local_experts=0", "not a positive"]),
        ("qwen3_moe", {"num_experts_per_tok": 0}, ["num_experts_per_tok=0", "not a positive"]),
        ("qwen3_moe", {"decoder_sparse_step": 0}, ["decoder_sparse_step=0", "not a positive"]),
        ("deepseek_v3", {"n_group": 0}, ["n_group=0", "not a positive"]),
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


SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 36,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "head_dim": 6,
    "num_key_value_heads": 3,
    "initializer_range": 0.4,
}
DEEPSEEK: dict[str, Any] = {
    "num_key_value_heads": 6,
    "moe_intermediate_size": 12,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "q_lora_rank": 8,
    "kv_lora_rank": 9,
    "qk_rope_head_dim": 4,
    "head_dim": 4,
    "qk_nope_head_dim": 3,
    "v_head_dim": 5,
}
QWEN2: dict[str, Any] = {"num_experts": 3, "moe_intermediate_size": 12, "num_experts_per_tok": 2}
# Sizes of nothing that Transformers takes: no experts at all, none in any layer, or none beside those chosen.
NONE: dict[str, tuple[str, dict[str, Any]]] = {
    "no_experts": ("qwen2_moe", {"num_experts": 0, "max_window_layers": 0, "moe_intermediate_size": 0}),
    "no_shared_expert": ("qwen2_moe", {**QWEN2, "shared_expert_intermediate_size": 0}),
    "no_experts_and_no_step": (
        "qwen3_moe",
        {"num_experts": 0, "num_experts_per_tok": 0, "decoder_sparse_step": 0},
    ),
    "no_layer_with_experts": (
        "qwen3_moe",
        {"mlp_only_layers": [0, 1], "moe_intermediate_size": 0, "decoder_sparse_step": 0},
    ),
    "no_shared_experts": ("deepseek_v3", {**DEEPSEEK, "first_k_dense_replace": 1, "n_shared_experts": 0}),
    "no_layer_beyond_the_first": (
        "deepseek_v3",
        {**DEEPSEEK, "first_k_dense_replace": 2, "n_routed_experts": 0, "n_group": 0, "num_experts_per_tok": 0},
    ),
}


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", NONE)
def test_experts_left_out(name: str, tmp_path: Path):
    model_type, own = NONE[name]
    made = make(Case(model_type, HEAD, name, {**SIZES, **own}), tmp_path)
    ids, mask = batch(made.case, "right")
    found = made.ours(ids, mask).logits
    check_close(found, made.oracle(input_ids=ids, attention_mask=mask).logits, mask)


@pytest.mark.oracle
@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "granitemoe"])
def test_experts_in_one_tensor(model_type: str, tmp_path: Path):
    """As Transformers 5 has them in memory, and writes them where it is asked to."""
    made = make(CASES[model_type][0][0], tmp_path / "hub")
    made.model.save_pretrained(tmp_path / "new", save_original_format=False)
    fused, original = (SafetensorsFile(tmp_path / name / "model.safetensors") for name in ("new", "hub"))
    assert set(fused.infos) != set(original.infos)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids, mask = batch(made.case, "right")
    found, wanted = model(ids, mask).logits, made.oracle(input_ids=ids, attention_mask=mask).logits
    check_close(found, wanted, mask)
    # What is saved is the Hub's form.
    model.save_pretrained(tmp_path / "again")
    again = SafetensorsFile(tmp_path / "again" / "model.safetensors")
    assert set(again.infos) == set(original.infos)
    assert all(np.array_equal(again.read(name), original.read(name)) for name in original.infos)


class Whole:
    """A source of tensors in memory."""

    def __init__(self, **tensors: np.ndarray):
        self.metadata: dict[str, Any] = {}
        self.tensors = {f"model.layers.0.mlp.{name}": array for name, array in tensors.items()}
        file = Path("model.safetensors")
        self.infos = {name: TensorInfo(name, x.shape, x.dtype, file) for name, x in self.tensors.items()}

    def read(self, name: str, index: Any = None) -> np.ndarray:
        return self.tensors[name][index or ()]

    def close(self) -> None:
        self.tensors = {}


def test_parts_of_experts_in_one_tensor():
    both = np.arange(3 * 10 * 4, dtype=np.float32).reshape(3, 10, 4)
    known = architecture("qwen3_moe")
    source = split_fused(Whole(**{"experts.gate_up_proj": both, "gate.weight": both[0]}), known)
    layer = "model.layers.0.mlp"
    assert len(source.infos) == 7
    assert np.array_equal(source.read(f"{layer}.gate.weight"), both[0])
    assert source.infos[f"{layer}.experts.2.up_proj.weight"].shape == (5, 4)
    assert np.array_equal(source.read(f"{layer}.experts.2.up_proj.weight"), both[2, 5:])
    part = source.read(f"{layer}.experts.1.gate_proj.weight", (slice(1, 4), slice(2, 3)))
    assert np.array_equal(part, both[1, 1:4, 2:3])
    with pytest.raises(KeyError, match=r"no tensor 'model.layers.0.mlp.experts.gate_up_proj'"):
        source.read(f"{layer}.experts.gate_up_proj")
    twice = Whole(**{"experts.gate_up_proj": both, "experts.0.up_proj.weight": both[0, 5:]})
    with pytest.raises(CheckpointError, match=r"is also a part of 'model\.layers\.0\.mlp\.experts\.gate_up_proj'"):
        split_fused(twice, known)
    plain = Whole(**{"experts.0.up_proj.weight": both[0, 5:]})
    assert split_fused(plain, known) is plain
    source.close()


@pytest.mark.oracle
def test_too_few_experts_in_one_tensor(tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    made = make(CASES["qwen3_moe"][0][0], tmp_path)
    made.model.save_pretrained(tmp_path, save_original_format=False)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({k: x[:4] if "experts" in k else x for k, x in tensors.items()}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"missing: .*experts\.4\.(down|gate|up)_proj\.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
