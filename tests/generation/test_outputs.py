"""What `generate` returns with return_dict_in_generate, without the oracle."""

from typing import Any

import numpy as np
import pytest

from jaxpipe import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from jaxpipe.generation.outputs import compute_transition_scores

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZES, "num_key_value_heads": 2, "vocab_size": 61, "initializer_range": 0.5, "eos_token_id": None}
MAMBA = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 1, "expand": 2, "head_dim": 8, "num_heads": 8,
    "state_size": 8, "n_groups": 1, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
T5 = {
    "vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "eos_token_id": None,
    "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
ALL = {"output_hidden_states": True, "output_attentions": True, "return_dict_in_generate": True, "pad_token_id": 0}
IDS = np.array([[0, 0, 5, 7, 9], [3, 4, 5, 6, 7]])
MASK = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA), dtype="float32", device_map="cpu")


def test_they_change_nothing_else(model: Any) -> None:
    call = {"max_new_tokens": 4, "do_sample": True, "seed": 2, "output_scores": True}
    found = model.generate(IDS, MASK, **call, **ALL)
    plain = model.generate(IDS, MASK, **call, **{**ALL, "output_hidden_states": False, "output_attentions": False})
    np.testing.assert_array_equal(found.sequences, plain.sequences)
    np.testing.assert_allclose(found.scores, plain.scores, atol=1e-5)
    assert plain.hidden_states is None
    assert plain.attentions is None
    assert found.keys()[:4] == ["sequences", "scores", "attentions", "hidden_states"]
    ignored = model.generate(IDS, MASK, **call, **{**ALL, "return_dict_in_generate": False})
    np.testing.assert_array_equal(ignored, plain.sequences)


def test_they_are_those_of_the_whole_text(model: Any) -> None:
    found = model.generate(IDS, MASK, max_new_tokens=4, do_sample=False, **ALL)
    whole = model(found.sequences[1:], output_hidden_states=True, output_attentions=True)
    for step in range(4):
        start, end = (0, 5) if step == 0 else (4 + step, 5 + step)
        for layer in range(3):
            own = np.asarray(whole.hidden_states[layer])[:, start:end]
            np.testing.assert_allclose(found.hidden_states[step][layer][1:], own, atol=2e-4)
        for layer in range(2):
            own = np.asarray(whole.attentions[layer])[:, :, start:end, :end]
            np.testing.assert_allclose(found.attentions[step][layer][1:], own, atol=1e-5)
            weights = found.attentions[step][layer][0]
            assert not weights[..., :2].any()  # padding
            np.testing.assert_allclose(weights[:, 2 if step == 0 else 0 :].sum(-1), 1.0, atol=1e-5)
            assert not found.attentions[0][layer][0, :, :2].any()


def test_a_row_alone(model: Any) -> None:
    together = model.generate(IDS, MASK, max_new_tokens=3, do_sample=False, **ALL)
    alone = model.generate(IDS[:1, 2:], max_new_tokens=3, do_sample=False, **ALL)
    for step in range(3):
        for own, other in zip(together.hidden_states[step], alone.hidden_states[step], strict=True):
            np.testing.assert_allclose(own[:1, -other.shape[1] :], other, atol=1e-4)
        for own, other in zip(together.attentions[step], alone.attentions[step], strict=True):
            np.testing.assert_allclose(own[:1, :, -other.shape[2] :, 2:], other, atol=1e-5)


def test_calls_do_not_compile_anew(model: Any) -> None:
    recording = model._generator._recording
    model.generate(IDS, MASK, max_new_tokens=3, do_sample=False, **ALL)
    before = recording.prefill._cache_size(), recording.decode._cache_size()
    model.generate(IDS[:, 1:], MASK[:, 1:], max_new_tokens=5, do_sample=False, **ALL)
    assert (recording.prefill._cache_size(), recording.decode._cache_size()) == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
        ({"dola_layers": "low"}, "dola_layers"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, "num_beam_groups=2"),
    ],
)
def test_strategies_without_them(model: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"output_hidden_states=True does not go with {words}"):
        model.generate(IDS, MASK, max_new_tokens=3, **settings, **ALL)


def test_a_model_without_attention() -> None:
    config = AutoConfig.for_model("mamba2", **MAMBA)
    model = AutoModelForCausalLM.from_config(config, dtype="float32", device_map="cpu")
    with pytest.raises(ValueError, match="'mamba2' has no attention"):
        model.generate(IDS, MASK, max_new_tokens=3, **ALL)
    found = model.generate(IDS, MASK, max_new_tokens=3, do_sample=False, **{**ALL, "output_attentions": False})
    assert [[x.shape for x in step] for step in found.hidden_states] == [[(2, 5, 32)] * 2, *[[(2, 1, 32)] * 2] * 2]


def test_an_encoder_decoder_with_beams() -> None:
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **T5), dtype="float32", device_map="cpu")
    found = model.generate(IDS, MASK, max_new_tokens=3, num_beams=2, output_scores=True, **ALL)
    assert type(found).__name__ == "GenerateBeamEncoderDecoderOutput"
    assert found.encoder_attentions[0].shape == (2, 4, 5, 5)
    assert [step[0].shape for step in found.cross_attentions] == [(4, 4, 1, 5)] * 3
    assert [step[0].shape for step in found.decoder_attentions] == [(4, 4, 1, n) for n in (1, 2, 3)]
    scores = model.compute_transition_scores(found.sequences, found.scores, found.beam_indices)
    np.testing.assert_allclose(scores.sum(axis=1) / 3, found.sequences_scores, rtol=1e-5)


def test_transition_scores() -> None:
    scores = [np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]) * n) for n in (1, 2)]
    ids = np.array([[2, 0, 1], [2, 1, 1]])
    np.testing.assert_allclose(compute_transition_scores(ids, scores), np.log([[0.5, 0.5], [0.8, 1.6]]), rtol=1e-6)
    found = compute_transition_scores(ids, scores, normalize_logits=True)
    np.testing.assert_allclose(found, np.log([[0.5, 0.25], [0.8, 0.8]]), rtol=1e-5)
    beams = compute_transition_scores(ids, scores, [[1, 0], [0, -1]])
    np.testing.assert_allclose(beams, [[np.log(0.1), np.log(0.5)], [np.log(0.25), 0.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("sequences", "beam_indices", "words"),
    [
        ([[2, 0, 1]], None, "pass beam_indices"),
        ([[2, 0, 1], [2, 1, 1]], [[1, 2], [0, 0]], "rows up to 2"),
        ([[2, 0, 1], [2, 1, 1]], [[1, 0, 1], [0, 0, 1]], "3 tokens"),
        ([[2, 0, 3], [2, 1, 1]], None, "0 to 2"),
    ],
)
def test_what_does_not_belong_together(sequences: Any, beam_indices: Any, words: str) -> None:
    scores = [np.zeros((2, 3), np.float32)] * 2
    with pytest.raises(ValueError, match=words):
        compute_transition_scores(sequences, scores, beam_indices)
    with pytest.raises(ValueError, match="output_scores=True"):
        compute_transition_scores(sequences, (), beam_indices)
