"""DoLa gives what Transformers 4.49.0 gave, and what the rule says for other architectures."""

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from jaxpipe.generation.dola import LayerContrast, early_layers
from jaxpipe.generation.run import Run
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.step import StepState
from jaxpipe.generation.streamers import BaseStreamer
from jaxpipe.model import PreTrainedModel
from jaxpipe.sharding.mesh import use_mesh
from tests.generation.frozen_contrast import Load, cases, check, loaded  # noqa: F401

VOCABULARY = 23
WIDTHS = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
COMMON = {"vocab_size": VOCABULARY, "eos_token_id": None, "initializer_range": 0.5}


def make(model_type: str, layers: int = 4, **more: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, **COMMON, **WIDTHS, num_hidden_layers=layers, **more)
    return AutoModelForCausalLM.from_config(config, seed=0)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make("llama")


def prompt(length: int, rows: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, VOCABULARY, (rows, length))


def new_tokens(model: PreTrainedModel, ids: np.ndarray, mask: Any = None, **settings: Any) -> np.ndarray:
    return np.asarray(model.generate(ids, mask, **settings))[:, ids.shape[1] :]


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def contrast(last: np.ndarray, early: np.ndarray) -> tuple[np.ndarray, int]:
    """Scores (V,) of logits (V,) and (n, V), and the early layer, as version 4.49 computes them for one prompt."""
    last, early = log_softmax(last), log_softmax(early)
    mean = (np.exp(last) + np.exp(early)) / 2
    divergence = np.mean([(mean * (np.log(mean) - x)).mean(-1) for x in (last, early)], axis=0)
    index = int(divergence.argmax())
    return np.where(last >= last.max() + np.log(0.1), last - early[index], -np.inf), index


@pytest.mark.parametrize(("model_type", "case"), cases("dola", {"deep llama": (0, 7, 9, 10), "deep gemma2": (2,)}))
def test_the_answers_are_those_of_version_4_49(
    model_type: str,
    case: dict[str, Any],
    loaded: Load,  # noqa: F811
) -> None:
    check(loaded(model_type), model_type, case)


@pytest.mark.full
@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        ("qwen3", {"head_dim": 6, "tie_word_embeddings": True}),
        ("gemma3_text", {"head_dim": 6, "sliding_window": 8, "layer_types": ["sliding_attention"] * 4}),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": True}),
    ],
)
def test_other_architectures_follow_the_rule(model_type: str, more: dict[str, Any]) -> None:
    model = make(model_type, **more)
    _, weights = model.functional()
    head = np.asarray(next(x for name, x in weights.items() if "embed_tokens" in name), np.float64)
    head = head if head.shape[0] == VOCABULARY else head.T
    tokens, chosen = prompt(7, seed=2)[0].tolist(), set()
    found = new_tokens(model, np.array([tokens]), max_new_tokens=12, dola_layers=[1, 2, 3])[0]
    for token in found:
        ids = np.array([[*tokens, *[0] * (19 - len(tokens))]])  # what stands behind the tokens is not seen
        out: Any = model(ids, output_hidden_states=True)
        at = len(tokens) - 1
        early = np.stack([np.asarray(out.hidden_states[layer], np.float64)[0, at] for layer in (1, 2, 3)]) @ head.T
        scores, layer = contrast(np.asarray(out.logits, np.float64)[0, at], early)
        chosen.add(layer)
        assert scores.argmax() == token
        tokens.append(int(token))
    assert len(chosen) > 1


def test_scores_of_random_logits() -> None:
    logits = 3 * np.random.default_rng(0).standard_normal((5, 4, VOCABULARY))
    logits[0, 2] = logits[0, 0]  # no difference at all
    state = StepState(jnp.zeros((5, 3), jnp.int32), jnp.ones((5, 3), bool), jnp.full((5,), 3), jnp.int32(0))
    found = LayerContrast()(jnp.asarray(logits.reshape(20, -1), jnp.float32), state)
    wanted, layers = zip(*(contrast(row[0], row[1:]) for row in logits), strict=True)
    np.testing.assert_allclose(found, np.stack(wanted), atol=1e-4)
    assert len(set(layers)) > 1
    # Far apart, where probabilities underflow.
    steep = jnp.asarray(np.eye(VOCABULARY, dtype=np.float32)[[0, 1, 0]] * 500)
    scores = LayerContrast()(steep, StepState(state.tokens[:1], state.valid[:1], state.prompt_lengths[:1], state.step))
    assert int(scores.argmax()) == 0 and float(scores[0, 0]) == 500.0


@pytest.mark.parametrize(
    ("asked", "layers", "tied", "wanted"),
    [
        ("low", 32, False, range(0, 16, 2)),
        ("low", 32, True, range(2, 16, 2)),
        ("high", 32, True, range(16, 32, 2)),
        ("low", 40, False, range(0, 20, 2)),
        ("high", 40, False, range(20, 40, 2)),
        ("low", 64, False, range(0, 20, 2)),
        ("low", 64, True, range(2, 20, 2)),
        ("high", 64, False, range(44, 64, 2)),
        ("high", 41, False, range(21, 41, 2)),
        ("low", 4, True, [2]),
        ("low", 2, True, [1]),
        ("low", 2, False, [0]),
        ("low", 1, True, [0]),
        ("high", 1, True, [0]),
        ("high", 3, True, [1]),
        ((3, 1), 4, True, [3, 1]),
    ],
)
def test_early_layers(asked: Any, layers: int, tied: bool, wanted: Any) -> None:
    assert early_layers(asked, layers, tied) == tuple(wanted)


def test_a_row_depends_on_its_own_prompt_alone(model: PreTrainedModel) -> None:
    """Each row has a layer of its own, too."""
    ids, mask = prompt(9, rows=3, seed=5), np.ones((3, 9), np.int64)
    mask[1, :5], mask[2, 6:], mask[2, 2] = 0, 0, 0
    together = new_tokens(model, ids, mask, dola_layers=[0, 1, 2, 3], max_new_tokens=10)
    for row, keep, answer in zip(ids, mask, together, strict=True):
        alone = new_tokens(model, row[None, keep == 1], dola_layers=[0, 1, 2, 3], max_new_tokens=10)
        np.testing.assert_array_equal(alone[0], answer)
    assert not (together == new_tokens(model, ids, mask, max_new_tokens=10)).all()


def test_draws_have_the_distribution_of_the_scores(model: PreTrainedModel) -> None:
    count, settings = 4096, {"do_sample": True, "dola_layers": "low", "max_new_tokens": 1, "top_k": 0}
    asked = {"return_dict_in_generate": True, "output_scores": True}
    out: Any = model.generate(
        prompt(6, seed=9), num_return_sequences=count, seed=3, temperature=3.0, **settings, **asked
    )
    expected = np.exp(log_softmax(np.asarray(out.scores[0][0], np.float64))) * count
    assert np.sum(expected > 20) >= 3
    drawn = np.bincount(np.asarray(out.sequences)[:, -1], minlength=VOCABULARY)
    assert not drawn[expected == 0].any()
    kept = expected > 0
    statistic = np.sum((drawn - expected)[kept] ** 2 / expected[kept])
    freedom = kept.sum() - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)
    again = model.generate(prompt(6, seed=9), num_return_sequences=count, seed=3, temperature=3.0, **settings)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(out.sequences))


def test_streams_and_return_sequences(model: PreTrainedModel) -> None:
    ids, settings = prompt(6, seed=2), {"dola_layers": [1], "max_new_tokens": 6}
    whole = new_tokens(model, ids, **settings)[0].tolist()

    given: list[int] = []

    class Kept(BaseStreamer):
        def put(self, value: Any) -> None:
            given.extend(np.asarray(value).reshape(-1).tolist())

        def end(self) -> None:
            given.append(-1)

    model.generate(ids, **settings, streamer=Kept())
    assert given == [*ids[0].tolist(), *whole, -1]
    assert new_tokens(model, ids, **settings, do_sample=True, num_return_sequences=3, seed=1).shape == (3, 6)


def test_lengths_and_calls_compile_nothing_again(model: PreTrainedModel) -> None:
    model.generate(prompt(5), dola_layers=[2], max_new_tokens=4)
    before = dict(model._generator.strategies._made)
    sizes = {key: made.decode._cache_size() for key, made in before.items()}
    for length, asked in itertools.product((3, 8), ([2], (2, 2))):
        model.generate(prompt(length), dola_layers=asked, max_new_tokens=7)
    assert {key: made.decode._cache_size() for key, made in model._generator.strategies._made.items()} == sizes


def test_a_step_copies_no_cache(model: PreTrainedModel) -> None:
    generator, settled = model._generator, Settled(prompt_length=20, max_new_tokens=90, dola_layers=(0, 1))
    with use_mesh(model.mesh):
        prompts = generator.prompts(prompt(20, rows=2), None, model.generation_config, None, {})
        run = Run(generator, prompts, settled, range(2), 0)
        compiled = run._decode.lower(generator.leaves, run.state, run._choice, np.int32(3)).compile()
    keys = run.state.cache.layers[0].keys
    assert not re.findall(rf"= f32\[{','.join(map(str, keys.shape))}\]\S* copy\(", compiled.as_text())
    cache = sum(x.nbytes for x in jax.tree.leaves(run.state.cache.layers))
    assert compiled.memory_analysis().alias_size_in_bytes >= cache


def test_settings_that_cannot_be_are_errors(model: PreTrainedModel) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        (
            {"dola_layers": "middle"},
            r'dola_layers=\'middle\' \(argument of generate\): expected "low", "high", or a list',
        ),
        ({"dola_layers": []}, r"dola_layers=\[\]"),
        ({"dola_layers": [0, -1]}, r"dola_layers=\[0, -1\]"),
        ({"dola_layers": [1.5]}, r"dola_layers=\[1.5\]"),
        ({"dola_layers": 3}, "dola_layers=3"),
        ({"dola_layers": True}, "dola_layers=True"),
        ({"dola_layers": [0, 4]}, r"dola_layers=\[0, 4\]: expected layers from 0, the embedding, to 3"),
        ({"dola_layers": "low", "num_beams": 2}, r"dola_layers='low' \(DoLa\) cannot be combined with num_beams=2"),
        ({"dola_layers": "low", "prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens=2"),
        ({"dola_layers": "low", "penalty_alpha": 0.6, "top_k": 4}, "exclude each other"),
        ({"dola_layers": "low", "guidance_scale": 2}, "exclude each other"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            model.generate(prompt(4), max_new_tokens=2, **settings)


def test_models_that_cannot_are_refused() -> None:
    shape = {"d_model": 12, "d_kv": 4, "num_heads": 3, "d_ff": 16, "num_layers": 1, "vocab_size": VOCABULARY}
    t5 = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **shape, decoder_start_token_id=0), seed=0)
    with pytest.raises(ValueError, match="'t5' has an encoder"):
        t5.generate(prompt(4), max_new_tokens=2, dola_layers="low")
    sizes = {"hidden_size": 16, "num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 2, "num_hidden_layers": 2}
    mamba2 = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba2", **COMMON, **sizes), seed=0)
    with pytest.raises(ValueError, match="'mamba2' has recurrent layers"):
        mamba2.generate(prompt(4), max_new_tokens=2, dola_layers="low")
    sizes = {"hidden_size": 16, "ffn_dim": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = AutoConfig.for_model("opt", vocab_size=VOCABULARY, **sizes, word_embed_proj_dim=8)
    with pytest.raises(ValueError, match=r"states have different widths, \[8, 16\]"):
        AutoModelForCausalLM.from_config(config, seed=0).generate(prompt(4), max_new_tokens=2, dola_layers=[1])
    shallow = make("llama", layers=3, tie_word_embeddings=True)
    with pytest.raises(ValueError, match='dola_layers="low" leaves no layer of a model with 3 layers'):
        shallow.generate(prompt(4), max_new_tokens=2, dola_layers="low")
