"""`PreTrainedModel`: what a call takes and refuses, its pure function, and saving."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from jaxpipe.auto import AutoModelForSequenceClassification as AutoClassifier
from jaxpipe.model import PreTrainedModel

LLAMA: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
BERT: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
}
GPT2: dict[str, Any] = {"vocab_size": 61, "n_embd": 24, "n_head": 3, "n_layer": 1, "n_positions": 20}
IDS = np.arange(3, 15).reshape(2, 6)


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA))


@pytest.fixture(scope="module")
def bert() -> PreTrainedModel:
    return AutoModel.from_config(AutoConfig.for_model("bert", **BERT))


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **GPT2))


def with_id(value: int, row: int = 1, column: int = 4) -> np.ndarray:
    ids = IDS.copy()
    ids[row, column] = value
    return ids


# Inputs


@pytest.mark.parametrize(
    "ids", [IDS, IDS.tolist(), IDS.astype(np.int64), IDS.astype(np.uint8), jnp.asarray(IDS)], ids=lambda x: str(type(x))
)
def test_kinds_of_arrays(llama: PreTrainedModel, ids: Any):
    out = llama(input_ids=ids, attention_mask=np.ones((2, 6), bool))
    assert out.logits.shape == (2, 6, 61) and out.logits.dtype == jnp.float32
    assert np.array_equal(out.logits, llama(IDS).logits)
    assert out[0] is out.logits and out["logits"] is out.logits and list(out) == ["logits"]


@pytest.mark.parametrize(
    ("given", "error", "named"),
    [
        ({"input_ids": with_id(61)}, ValueError, r"input_ids\[1, 4\] is 61.*0 to 60"),
        ({"input_ids": with_id(-1, 0, 2)}, ValueError, r"input_ids\[0, 2\] is -1.*0 to 60"),
        ({"input_ids": with_id(2**40)}, ValueError, r"input_ids\[1, 4\] is 1099511627776"),
        ({"input_ids": IDS[0]}, ValueError, r"input_ids must be integers of shape \(batch, length\).*\(6,\)"),
        ({"input_ids": IDS[None]}, ValueError, r"input_ids.*\(1, 2, 6\)"),
        ({"input_ids": IDS.astype(np.float32)}, ValueError, "input_ids.*float32"),
        ({"input_ids": [[1.5, 2.5]]}, ValueError, "input_ids.*float64"),
        ({"input_ids": [["a", "b"]]}, ValueError, "input_ids"),
        ({"input_ids": np.zeros((0, 4), int)}, ValueError, r"input_ids.*at least 1.*\(0, 4\)"),
        ({"input_ids": np.zeros((2, 0), int)}, ValueError, r"input_ids.*at least 1.*\(2, 0\)"),
        ({"input_ids": [[1, 2], [3]]}, ValueError, "input_ids has rows of different lengths; pad them"),
        ({"input_ids": None}, ValueError, "LlamaForCausalLM needs input_ids"),
        ({"input_ids": IDS, "attention_mask": np.ones((2, 5), int)}, ValueError, r"attention_mask.*\(2, 5\).*\(2, 6\)"),
        ({"input_ids": IDS, "attention_mask": np.ones((1, 6), int)}, ValueError, r"attention_mask.*\(1, 6\).*\(2, 6\)"),
        ({"input_ids": IDS, "attention_mask": np.ones((2, 6))}, ValueError, "attention_mask.*float64"),
        ({"input_ids": IDS, "position_ids": np.zeros((2, 7), int)}, ValueError, r"position_ids.*\(2, 7\)"),
        ({"input_ids": IDS, "token_type_ids": np.zeros((2, 6), int)}, TypeError, "no input 'token_type_ids'"),
        ({"input_ids": IDS, "attention_masks": IDS}, TypeError, "'attention_masks'.*Did you mean 'attention_mask'"),
        ({"input_ids": IDS, "labels": IDS}, TypeError, "no input 'labels'.*input_ids, attention_mask, position_ids"),
    ],
)
def test_refused_inputs(llama: PreTrainedModel, given: dict[str, Any], error: type[Exception], named: str):
    with pytest.raises(error, match=named):
        llama(**given)


def test_learned_positions_and_token_types_have_limits(bert: PreTrainedModel, gpt2: PreTrainedModel):
    positions, types = np.tile(np.arange(6), (2, 1)), np.zeros((2, 6), int)
    for model in (bert, gpt2):
        model(IDS, position_ids=positions + 14)
        with pytest.raises(ValueError, match=r"position_ids\[0, 5\] is 20.*0 to 19"):
            model(IDS, position_ids=positions + 15)
        with pytest.raises(ValueError, match=r"21 tokens.*learned positions for 20.*truncat"):
            model(np.ones((1, 21), int))
        model(np.ones((1, 20), int))
    with pytest.raises(ValueError, match=r"token_type_ids\[0, 0\] is 2.*0 to 1"):
        bert(IDS, token_type_ids=types + 2)
    assert not np.allclose(bert(IDS, token_type_ids=types + 1)[0], bert(IDS)[0])
    assert np.array_equal(bert(IDS, token_type_ids=types)[0], bert(IDS)[0])


def test_one_row_of_positions_serves_all(bert: PreTrainedModel):
    positions = np.arange(6)[None] + 3
    assert np.allclose(bert(IDS, position_ids=positions)[0], bert(IDS, position_ids=np.repeat(positions, 2, 0))[0])


def test_rotary_positions_have_no_limit(llama: PreTrainedModel):
    assert np.isfinite(llama(IDS, position_ids=np.tile(np.arange(6), (2, 1)) + 10**5).logits).all()


def test_generate_needs_a_language_model_head(bert: PreTrainedModel):
    with pytest.raises(TypeError, match=r"BertModel.*AutoModelForCausalLM"):
        bert.generate(IDS)
    with pytest.raises(TypeError, match=r"LlamaModel.*AutoModelForCausalLM"):
        AutoModel.from_config(AutoConfig.for_model("llama", **LLAMA)).generate(IDS)


def test_generate_refuses_what_does_not_fit_learned_positions(gpt2: PreTrainedModel):
    assert gpt2.generate(IDS, max_new_tokens=15, do_sample=False, eos_token_id=None).shape == (2, 21)
    with pytest.raises(ValueError, match=r"6 tokens.*max_new_tokens=16.*learned 20.*at most 15"):
        gpt2.generate(IDS, max_new_tokens=16, do_sample=False)
    with pytest.raises(ValueError, match=r"input_ids\[1, 4\] is 61"):
        gpt2.generate(with_id(61), max_new_tokens=2)


# The model as an object


def test_describes_itself(llama: PreTrainedModel):
    assert repr(llama).startswith("LlamaForCausalLM('', 10,800 parameters, float32, cpu mesh")
    embedding, layer = 61 * 24, 24 * 24 * 2 + 24 * 12 * 2 + 3 * 24 * 40 + 2 * 24
    assert llama.num_parameters() == embedding + 2 * layer + 24
    assert str(llama.dtype) == "float32" and llama.device == jax.devices()[0] and llama.mesh.size == 1
    assert "embed_tokens" in str(llama.sharding_plan)
    assert type(llama.module).__name__ == "LlamaForCausalLM" and llama.module.lm_head is None


def test_pure_function(llama: PreTrainedModel):
    fn, weights = llama.functional()
    want = llama(IDS).logits
    assert np.allclose(jax.jit(fn)(weights, input_ids=jnp.asarray(IDS)).logits, want, atol=1e-5)
    each = jax.vmap(lambda row: fn(weights, input_ids=row[None]).logits[0])(jnp.asarray(IDS))
    assert np.allclose(each, want, atol=1e-5)
    gradient = jax.grad(lambda w: jnp.mean(fn(w, input_ids=jnp.asarray(IDS)).logits ** 2))(weights)
    assert set(gradient) == set(weights)
    assert all(np.abs(g).max() > 0 for g in gradient.values())
    with pytest.raises(TypeError, match=r"tracer.*functional"):
        jax.jit(lambda ids: llama(ids).logits)(jnp.asarray(IDS))


def test_seeds_make_different_weights():
    config = AutoConfig.for_model("bert", **BERT)
    first, same, other = (AutoClassifier.from_config(config, seed=seed)(IDS).logits for seed in (0, 0, 1))
    assert np.array_equal(first, same) and not np.allclose(first, other)


def test_dtype_of_the_computation():
    config = AutoConfig.for_model("bert", **BERT, dtype="float16")
    assert AutoModelForMaskedLM.from_config(config).dtype == np.float32  # on CPU, dtype="auto" is float32
    half = AutoModelForMaskedLM.from_config(config, dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16 and half(IDS).logits.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in half.functional()[1].values()} == {np.dtype(jnp.bfloat16)}


def test_saving_to_a_file_is_refused(llama: PreTrainedModel, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        llama.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_save_in_shards_and_load(tmp_path, dtype: str):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA), dtype=dtype, seed=5)
    model.save_pretrained(tmp_path / "new" / "directory", max_shard_size=5000)
    files = {path.name for path in (tmp_path / "new" / "directory").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors.index.json"} < files
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "directory", dtype=dtype)
    assert again.config.to_dict() == model.config.to_dict()
    for (name, saved), (_, loaded) in zip(model.functional()[1].items(), again.functional()[1].items(), strict=True):
        assert saved.dtype == loaded.dtype and np.array_equal(saved, loaded), name
