"""Contrastive search gives what Transformers 4.49.0 gave, and what the rule says for other architectures."""

import itertools
import logging
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from jaxpipe.common.logging import warn_once
from jaxpipe.generation.config import GenerationConfig, resolve
from jaxpipe.generation.run import Run
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.streamers import BaseStreamer
from jaxpipe.model import PreTrainedModel
from jaxpipe.sharding.mesh import use_mesh
from tests.generation.frozen_contrast import Load, cases, check, loaded  # noqa: F401

SIZES = {"vocab_size": 47, "num_hidden_layers": 2, "eos_token_id": None, "initializer_range": 0.5}
WIDTHS = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
SEARCH = {"penalty_alpha": 0.6, "top_k": 4}
OTHERS: dict[str, dict[str, Any]] = {
    "qwen3": {**WIDTHS, "head_dim": 6},
    "gemma3_text": {**WIDTHS, "head_dim": 6, "sliding_window": 16, "layer_types": ["sliding_attention"] * 2},
    "mamba2": {"hidden_size": 16, "num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8},
}


def make(model_type: str, seed: int = 0, **more: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, **SIZES, **more)
    return AutoModelForCausalLM.from_config(config, seed=seed)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make("llama", **WIDTHS)


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedModel:
    config = AutoConfig.for_model("gpt2", vocab_size=47, n_embd=16, n_head=2, n_layer=1, n_positions=20)
    return AutoModelForCausalLM.from_config(config, seed=0)


def prompt(length: int, rows: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 47, (rows, length))


def new_tokens(model: PreTrainedModel, ids: np.ndarray, mask: Any = None, **settings: Any) -> np.ndarray:
    return np.asarray(model.generate(ids, mask, **settings))[:, ids.shape[1] :]


def reference(model: PreTrainedModel, row: Sequence[int], new: int, alpha: float, top_k: int) -> list[int]:
    """The search of one prompt as arXiv 2202.06417 has it, each step a call without a cache on whole rows."""
    tokens, longest = [int(token) for token in row], len(row) + new

    def run(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.zeros((top_k, longest), np.int64)
        ids[: len(rows), : len(rows[0])] = rows  # what stands behind the tokens is not seen
        out: Any = model(ids, output_hidden_states=True)
        states = np.asarray(out.hidden_states[-1], np.float64)[: len(rows), : len(rows[0])]
        return np.asarray(out.logits, np.float64)[: len(rows), len(rows[0]) - 1], states

    for _ in range(new):
        logits, _ = run([tokens])
        probabilities = np.exp(logits[0] - logits[0].max())
        probabilities /= probabilities.sum()
        candidates = np.argsort(-probabilities)[:top_k]
        _, states = run([[*tokens, int(token)] for token in candidates])
        units = states / np.linalg.norm(states, axis=-1, keepdims=True)
        penalty = np.einsum("ksd,kd->ks", units[:, :-1], units[:, -1]).max(axis=1)
        value = (1 - alpha) * probabilities[candidates] - alpha * penalty
        tokens.append(int(candidates[value.argmax()]))
    return tokens[len(row) :]


@pytest.mark.parametrize(("model_type", "case"), cases("contrastive", {"llama": (4, 8), "t5": (0,)}))
def test_the_answers_are_those_of_version_4_49(
    model_type: str,
    case: dict[str, Any],
    loaded: Load,  # noqa: F811
) -> None:
    check(loaded(model_type), model_type, case)


@pytest.mark.full
@pytest.mark.parametrize("model_type", OTHERS)
def test_other_architectures_follow_the_rule(model_type: str) -> None:
    model = make(model_type, **OTHERS[model_type])
    ids, mask = prompt(9, rows=2, seed=3), np.ones((2, 9), np.int64)
    mask[1, :4] = 0
    found = new_tokens(model, ids, mask, **SEARCH, max_new_tokens=24)
    for row, keep, answer in zip(ids, mask, found, strict=True):
        assert reference(model, row[keep == 1], 24, 0.6, 4) == answer.tolist()


@pytest.mark.full
def test_a_cache_that_grows_forgets_nothing(model: PreTrainedModel) -> None:
    ids = prompt(5, seed=1)
    found = new_tokens(model, ids, **SEARCH, max_new_tokens=150)
    assert reference(model, ids[0], 150, 0.6, 4) == found[0].tolist()


def test_a_row_depends_on_its_own_prompt_alone(model: PreTrainedModel) -> None:
    ids, mask = prompt(9, rows=3, seed=5), np.ones((3, 9), np.int64)
    mask[1, :5], mask[2, 6:], mask[2, 2] = 0, 0, 0
    together = new_tokens(model, ids, mask, **SEARCH, max_new_tokens=8)
    for row, keep, answer in zip(ids, mask, together, strict=True):
        np.testing.assert_array_equal(new_tokens(model, row[None, keep == 1], **SEARCH, max_new_tokens=8)[0], answer)


@pytest.mark.full
def test_a_row_of_an_encoder_decoder_depends_on_its_own_input_alone() -> None:
    shape = {"d_model": 24, "d_kv": 7, "num_heads": 3, "d_ff": 40, "num_layers": 2, "vocab_size": 47}
    config = AutoConfig.for_model("t5", **shape, decoder_start_token_id=0, eos_token_id=None, tie_word_embeddings=False)
    t5 = AutoModelForSeq2SeqLM.from_config(config, seed=1)
    ids, mask = prompt(9, rows=2), np.ones((2, 9), np.int64)
    mask[1, 4:] = 0
    together = np.asarray(t5.generate(ids, mask, **SEARCH, max_new_tokens=8))
    alone = np.asarray(t5.generate(ids[1:, :4], **SEARCH, max_new_tokens=8))
    np.testing.assert_array_equal(together[1:], alone)
    assert not (together == np.asarray(t5.generate(ids, mask, max_new_tokens=8))).all()


class Kept(BaseStreamer):
    def __init__(self) -> None:
        self.given: list[list[int]] = []
        self.ended = 0

    def put(self, value: Any) -> None:
        self.given.append(np.asarray(value).reshape(-1).tolist())

    def end(self) -> None:
        self.ended += 1


def test_streams_and_stopping_criteria_see_every_token(model: PreTrainedModel) -> None:
    ids = prompt(6, seed=2)
    whole = new_tokens(model, ids, **SEARCH, max_new_tokens=9)[0].tolist()
    streamer = Kept()
    model.generate(ids, **SEARCH, max_new_tokens=9, streamer=streamer)
    assert streamer.given == [ids[0].tolist(), *([token] for token in whole)]
    assert streamer.ended == 1

    def third(input_ids: np.ndarray, *_: Any, **__: Any) -> Any:
        return np.full(len(input_ids), input_ids.shape[1] >= 6 + 3)

    assert new_tokens(model, ids, **SEARCH, max_new_tokens=9, stopping_criteria=[third])[0].tolist() == whole[:3]


def test_what_is_ruled_out_is_never_chosen(model: PreTrainedModel) -> None:
    """With weight on the similarity alone, a token of probability 0 would often be the best of the candidates."""
    ids = prompt(6, rows=2, seed=4)
    settings = {"penalty_alpha": 1.0, "top_k": 6, "max_new_tokens": 6}
    found = new_tokens(model, ids, **settings, prefix_allowed_tokens_fn=lambda row, tokens: [3 + len(tokens)])
    np.testing.assert_array_equal(found, np.tile(np.arange(9, 15), (2, 1)))
    allowed = [5, 6]
    found = new_tokens(model, ids, **settings, suppress_tokens=[i for i in range(47) if i not in allowed])
    assert np.isin(found, allowed).all()


def test_scores_and_logits_are_those_of_the_steps(model: PreTrainedModel) -> None:
    ids, mask = prompt(7, rows=2, seed=6), np.ones((2, 7), np.int64)
    mask[1, :3] = 0
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out: Any = model.generate(ids, mask, **SEARCH, **asked, max_new_tokens=4, suppress_tokens=[5])
    sequences = np.asarray(out.sequences)
    assert len(out.scores) == len(out.logits) == 4
    for row in range(2):
        whole: Any = model(sequences[row : row + 1, mask[row].argmin() if row == 0 else 3 :])
        wanted = np.asarray(whole.logits)[0, -5:-1]
        np.testing.assert_allclose([step[row] for step in out.logits], wanted, atol=1e-4)
        np.testing.assert_allclose([np.delete(step[row], 5) for step in out.scores], np.delete(wanted, 5, 1), atol=1e-4)
        assert all(np.isneginf(step[row, 5]) for step in out.scores)


def test_another_alpha_and_other_lengths_compile_nothing(model: PreTrainedModel) -> None:
    model.generate(prompt(5), **SEARCH, max_new_tokens=4)
    decode = model._generator.strategies._made["contrastive"].decode
    before = decode._cache_size()
    for alpha, length in itertools.product((0.1, 1.0), (3, 8)):
        model.generate(prompt(length), penalty_alpha=alpha, top_k=4, max_new_tokens=7)
    assert decode._cache_size() == before


def test_a_step_copies_no_cache(model: PreTrainedModel) -> None:
    generator = model._generator
    settled = Settled(prompt_length=20, max_new_tokens=90, penalty_alpha=0.5, candidates=4)
    with use_mesh(model.mesh):
        prompts = generator.prompts(prompt(20, rows=2), None, model.generation_config, None, {})
        run = Run(generator, prompts, settled, range(2), 0)
        compiled = run._decode.lower(generator.leaves, run.state, run._choice, np.int32(3)).compile()
    state: Any = run.state
    keys, units = state.cache.layers[0].keys, state.units
    assert keys.shape[0] == 8 and units.shape == (2, keys.shape[1], WIDTHS["hidden_size"])
    for shape in (keys.shape, units.shape):
        assert not re.findall(rf"= f32\[{','.join(map(str, shape))}\]\S* copy\(", compiled.as_text())
    in_place = sum(x.nbytes for x in jax.tree.leaves((state.cache.layers, units)))
    assert compiled.memory_analysis().alias_size_in_bytes >= in_place


def test_settings_that_cannot_be_are_errors(model: PreTrainedModel, gpt2: PreTrainedModel) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"penalty_alpha": 1.5}, r"penalty_alpha=1.5 \(argument of generate\): expected a number from 0"),
        ({"penalty_alpha": -0.1}, "penalty_alpha=-0.1"),
        ({"penalty_alpha": "x"}, "penalty_alpha='x'"),
        ({"penalty_alpha": 0.5, "top_k": 48}, "top_k=48 .* but the vocabulary has 47"),
        ({"penalty_alpha": 0.5}, "top_k=50 .* but the vocabulary has 47"),
        ({**SEARCH, "dola_layers": "low"}, "penalty_alpha=0.6 with top_k=4 .* and dola_layers='low' .* exclude"),
        ({**SEARCH, "guidance_scale": 2.0}, "penalty_alpha=0.6 .* and guidance_scale=2.0 .* exclude"),
        ({**SEARCH, "prompt_lookup_num_tokens": 2}, "penalty_alpha=0.6 .* prompt_lookup_num_tokens=2"),
        ({**SEARCH, "num_return_sequences": 2}, "num_return_sequences=2 with greedy"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            model.generate(prompt(4), max_new_tokens=2, **settings)
    # The last token is read too.
    assert gpt2.generate(prompt(16), max_new_tokens=4, **SEARCH).shape == (1, 20)
    with pytest.raises(ValueError, match=r"need 21 positions in contrastive search, .* max_new_tokens to at most 3"):
        gpt2.generate(prompt(17), max_new_tokens=4, **SEARCH)


def test_what_does_not_act_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="jaxpipe")
    few = "contrastive search needs top_k of at least 2"
    other = "contrastive search needs do_sample=False and num_beams=1"
    ignored: list[tuple[dict[str, Any], str]] = [
        ({"top_k": 1}, few),
        ({"top_k": None}, few),
        ({"num_beams": 2}, other),
        ({"do_sample": True}, other),
    ]
    for settings, reason in ignored:
        warn_once.cache_clear()
        caplog.clear()
        settled = resolve(None, None, {"penalty_alpha": 0.6, "max_new_tokens": 2, **settings}, prompt_length=3)
        assert f"penalty_alpha=0.6 is ignored: {reason}" in caplog.text
        assert (settled.candidates, settled.penalty_alpha) == (0, 0.0)
    warn_once.cache_clear()
    caplog.clear()
    settled = resolve(None, None, {"penalty_alpha": 0.6, "max_new_tokens": 2}, prompt_length=3)
    assert (settled.candidates, settled.penalty_alpha) == (50, 0.6)
    # What a checkpoint brings along is not the user's.
    defaults = GenerationConfig(penalty_alpha=0.6, do_sample=True)
    assert resolve(None, defaults, {"max_new_tokens": 2}, prompt_length=3).candidates == 0
    assert resolve(None, defaults, {"max_new_tokens": 2, "do_sample": False}, prompt_length=3).candidates == 50
    assert not caplog.text
