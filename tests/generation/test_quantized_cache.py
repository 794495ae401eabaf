"""Generation with keys and values in 8 bits."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from jaxpipe.generation.inputs import Prompts
from jaxpipe.generation.layers import Layer
from jaxpipe.generation.run import Run
from jaxpipe.generation.settle import Settled, settle
from jaxpipe.model import PreTrainedModel
from jaxpipe.nn.quantized_cache import QuantizedKVLayer
from jaxpipe.sharding.mesh import use_mesh

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.15,
    "eos_token_id": None,
}
INT8 = {"cache_implementation": "quantized"}
FP8 = {**INT8, "cache_config": {"dtype": "float8_e4m3fn"}}
# Root mean square of what logits may be off those of the exact cache, as a part of their spread.
ERROR = {"int8": 0.02, "float8_e4m3fn": 0.1}
TYPES = [(INT8, "int8"), (FP8, "float8_e4m3fn")]


def make(name: str = "llama", **sizes: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**SIZES, **sizes}), seed=1)


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return make()


def prompts() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    ids, mask = np.zeros((2, 3, 20), int)
    for i, (length, place) in enumerate([(3, slice(17, None)), (11, slice(0, 11)), (20, slice(0, 20))]):
        ids[i, place], mask[i, place] = random.integers(1, VOCABULARY, length), 1
    return ids, mask


def settled(**settings: Any) -> Settled:
    layers = [Layer({"max_new_tokens": 3, **settings}, "the call", by_user=True)]
    return settle(layers, prompt_length=4, max_positions=None)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        (None, "int8"),
        ({}, "int8"),
        ({"dtype": "int8"}, "int8"),
        ({"dtype": jnp.int8}, "int8"),
        ({"dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
        ({"dtype": jnp.float8_e4m3fn}, "float8_e4m3fn"),
        ({"nbits": 8}, "int8"),
        ({"backend": "hqq", "nbits": 8, "q_group_size": None}, "int8"),
        ({"backend": "quanto", "nbits": 8}, "int8"),
        ({"backend": "fp8"}, "float8_e4m3fn"),
        ({"backend": "fp8", "dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
    ],
)
def test_accepted_forms(config: Any, dtype: str) -> None:
    assert settled(cache_implementation="quantized", cache_config=config).cache_dtype == dtype


@pytest.mark.parametrize("kind", [None, "static", "dynamic", "hybrid", "sliding_window"])
def test_other_caches_are_the_exact_one(kind: str | None) -> None:
    assert settled(cache_implementation=kind, cache_config={"nbits": 4}).cache_dtype is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache_implementation": "offloaded"}, "cache_implementation='offloaded'.*'quantized'.*'static'"),
        ({"cache_implementation": "quantised"}, "cache_implementation='quantised'"),
        ({**INT8, "cache_config": {"backend": "quanto", "nbits": 4}}, r"cache_config\['nbits'\]=4.*8 bits"),
        ({**INT8, "cache_config": {"nbits": 2}}, r"cache_config\['nbits'\]=2"),
        ({**INT8, "cache_config": {"nbits": 8, "q_group_size": 64}}, r"cache_config\['q_group_size'\]=64"),
        ({**INT8, "cache_config": {"residual_length": 128}}, r"cache_config\['residual_length'\]=128"),
        ({**INT8, "cache_config": {"axis_key": 0}}, r"cache_config\['axis_key'\]=0"),
        ({**INT8, "cache_config": {"backend": "bnb"}}, r"cache_config\['backend'\]='bnb'.*'hqq'"),
        ({**INT8, "cache_config": {"dtype": "int4"}}, r"cache_config\['dtype'\]='int4'.*'int8'"),
        ({**INT8, "cache_config": {"dtype": "big"}}, r"cache_config\['dtype'\]='big'"),
        ({**INT8, "cache_config": {"backend": "fp8", "dtype": "int8"}}, "'fp8' is float8_e4m3fn.*int8"),
        ({**INT8, "cache_config": {"backend": "fp8", "nbits": 8}}, r"cache_config\['nbits'\]=8.*'fp8'"),
        ({**INT8, "cache_config": {"bits": 8}}, "unknown key 'bits'"),
        ({**INT8, "cache_config": "int8"}, "cache_config='int8'.*a dict"),
    ],
)
def test_bad_settings_raise_before_anything_compiles(llama: PreTrainedModel, settings: dict, message: str) -> None:
    before = llama._generator.prefill._cache_size()
    with pytest.raises(ValueError, match=message):
        llama.generate([[1, 2]], max_new_tokens=3, **settings)
    assert llama._generator.prefill._cache_size() == before


def error_of(model: PreTrainedModel, settings: dict) -> float:
    """Root mean square error of the logits of new tokens, of which both caches hold the same, by their spread."""
    ids, mask = prompts()
    given = {"max_new_tokens": 8, "return_dict_in_generate": True, "output_logits": True, "pad_token_id": 0}
    forced = {"sequence_bias": [[[7], 1e4]], **given}
    exact, stored = (model.generate(ids, mask, **forced, **s) for s in ({}, settings))
    np.testing.assert_array_equal(exact.sequences, stored.sequences)
    np.testing.assert_allclose(exact.logits[0], stored.logits[0], atol=1e-4)  # a prompt attends to its exact keys
    difference = np.subtract(exact.logits[1:], stored.logits[1:])
    return float(np.sqrt(np.mean(difference**2)) / np.std(exact.logits[1:]))


@pytest.mark.parametrize(("settings", "dtype"), TYPES)
def test_logits_are_near_those_of_the_exact_cache(llama: PreTrainedModel, settings: dict, dtype: str) -> None:
    assert 0 < error_of(llama, settings) < ERROR[dtype]


def test_greedy_ids_are_those_of_the_exact_cache_where_the_best_token_is_clear(llama: PreTrainedModel) -> None:
    ids, mask = prompts()
    given = {"max_new_tokens": 30, "return_dict_in_generate": True, "output_logits": True, "pad_token_id": 0}
    exact, stored = (llama.generate(ids, mask, **given, **s) for s in ({}, INT8))
    best = np.sort(np.stack(exact.logits, axis=1), axis=-1)  # (B, N, V)
    clear = best[..., -1] - best[..., -2] > 0.1 * best.std()
    new = [np.asarray(out.sequences)[:, ids.shape[1] :] for out in (exact, stored)]
    compared = [len(row) if row.all() else int(np.argmin(row)) for row in clear]
    assert sum(compared) > 30
    for row, other, count in zip(*new, compared, strict=True):
        np.testing.assert_array_equal(row[:count], other[:count])


@pytest.mark.full
def test_beams_score_as_with_the_exact_cache(llama: PreTrainedModel) -> None:
    ids, mask = prompts()
    given = {"max_new_tokens": 6, "num_beams": 3, "return_dict_in_generate": True, "output_scores": True}
    exact, stored = (llama.generate(ids, mask, pad_token_id=0, **given, **s) for s in ({}, INT8))
    np.testing.assert_allclose(stored.sequences_scores, exact.sequences_scores, atol=0.05)


@pytest.mark.parametrize(("settings", "dtype"), TYPES)
def test_layers_are_in_8_bits(llama: PreTrainedModel, settings: dict, dtype: str) -> None:
    generator = llama._generator
    with use_mesh(llama.mesh):
        given = Settled(prompt_length=20, max_new_tokens=8, cache_dtype=settled(**settings).cache_dtype)
        run = Run(generator, Prompts.of(*prompts()), given, range(3), 0)
    for layer in run.state.cache.layers:
        assert isinstance(layer, QuantizedKVLayer) and layer.keys.dtype == layer.values.dtype == dtype


MLA = {
    "kv_lora_rank": 8,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "first_k_dense_replace": 2,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("gpt2", {}),
        ("gemma2", {}),
        ("mixtral", {"num_local_experts": 4}),
        ("falcon", {"alibi": True}),
        ("deepseek_v3", MLA),
    ],
)
@pytest.mark.parametrize(("settings", "dtype"), TYPES)
def test_architectures(name: str, sizes: dict, settings: dict, dtype: str) -> None:
    model = make(name, **sizes)
    # A token may be sent to another expert.
    assert 0 < error_of(model, settings) < ERROR[dtype] * (4 if name == "mixtral" else 1)


@pytest.mark.full
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_decoders_own_tokens_of_an_encoder_decoder(name: str) -> None:
    sizes = {"vocab_size": VOCABULARY, "d_model": 32, "decoder_start_token_id": 2, "eos_token_id": None}
    if name == "t5":
        sizes |= {"d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "initializer_factor": 1.0}
    else:
        layers = {
            f"{half}_{part}": n for half in ("encoder", "decoder") for part, n in (("layers", 2), ("ffn_dim", 48))
        }
        heads = {f"{half}_attention_heads": 4 for half in ("encoder", "decoder")}
        sizes |= {**layers, **heads, "init_std": 0.15, "forced_eos_token_id": None}
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(name, **sizes), seed=1)
    assert 0 < error_of(model, INT8) < ERROR["int8"]


def test_a_model_without_keys_and_values_has_nothing_to_quantise() -> None:
    sizes = {"hidden_size": 16, "num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1, "num_hidden_layers": 1}
    config = AutoConfig.for_model("mamba2", vocab_size=VOCABULARY, eos_token_id=None, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=r"cache_implementation=.quantized.: .mamba2. keeps no keys and values"):
        model.generate([[1, 2]], max_new_tokens=2, **INT8)
