"""Classifier-free guidance as users call it, on tiny models with random weights."""

import itertools
import logging
import re
from typing import Any

import jax
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from jaxpipe.common.logging import info_once
from jaxpipe.generation.guidance import guide
from jaxpipe.generation.run import Run
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.streamers import BaseStreamer
from jaxpipe.model import PreTrainedModel
from jaxpipe.sharding.mesh import use_mesh

VOCABULARY = 31
COMMON = {"vocab_size": VOCABULARY, "eos_token_id": None, "initializer_range": 0.5}
WIDTHS = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
OTHERS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 24, "n_head": 4, "n_layer": 2, "n_positions": 40},
    "gemma3_text": {
        **WIDTHS,
        "head_dim": 6,
        "sliding_window": 16,
        "layer_types": ["sliding_attention"] * 2,
        "num_hidden_layers": 2,
    },
    "mamba2": {
        "hidden_size": 16,
        "num_heads": 4,
        "head_dim": 8,
        "state_size": 8,
        "n_groups": 2,
        "chunk_size": 8,
        "num_hidden_layers": 2,
    },
}


def make(model_type: str, **more: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **COMMON, **more), seed=0)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make("llama", **WIDTHS, num_hidden_layers=2)


def prompt(length: int, rows: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, VOCABULARY, (rows, length))


def new_tokens(model: PreTrainedModel, ids: np.ndarray, mask: Any = None, **settings: Any) -> np.ndarray:
    return np.asarray(model.generate(ids, mask, **settings))[:, ids.shape[1] :]


def ragged(rows: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts with padding on the left, on the right and in the midst."""
    ids, mask = prompt(length, rows, seed), np.ones((rows, length), np.int64)
    mask[1, :3], mask[2, length - 2 :], mask[2, 2] = 0, 0, 0
    return ids, mask


def log_probabilities(model: PreTrainedModel, rows: list[list[int]]) -> np.ndarray:
    """(R, V) after rows, each on its own."""
    out = np.zeros((len(rows), VOCABULARY))
    for i, row in enumerate(rows):
        ids = np.array([[*row, *[0] * (32 - len(row))]])  # what stands behind the tokens is not seen
        logits: Any = model(ids)
        out[i] = jax.nn.log_softmax(np.asarray(logits.logits)[0, len(row) - 1])
    return out


def reference(model: PreTrainedModel, row: list[int], negative: list[int], scale: float, new: int) -> list[int]:
    answer: list[int] = []
    for _ in range(new):
        own, other = log_probabilities(model, [[*row, *answer], [*negative, *answer]])
        answer.append(int((scale * (own - other) + other).argmax()))
    return answer


@pytest.mark.parametrize("model_type", ["llama", *(pytest.param(name, marks=pytest.mark.full) for name in OTHERS)])
def test_answers_follow_the_rule(model_type: str, model: PreTrainedModel) -> None:
    model = model if model_type == "llama" else make(model_type, **OTHERS[model_type])
    (ids, mask), (negative, negative_mask) = ragged(3, 9, 1), ragged(3, 14, 2)
    masked = {"negative_prompt_ids": negative, "negative_prompt_attention_mask": negative_mask}
    for scale, given in ((2.5, masked), (-0.5, masked), (1.7, {})):
        found = new_tokens(model, ids, mask, guidance_scale=scale, max_new_tokens=6, **given)
        for i, answer in enumerate(found):
            row = ids[i][mask[i] == 1].tolist()
            other = negative[i][negative_mask[i] == 1].tolist() if given else row[-1:]
            assert reference(model, row, other, scale, 6) == answer.tolist()


def test_scale_0_continues_the_negative_prompt(model: PreTrainedModel) -> None:
    ids, negative = prompt(4, rows=2, seed=3), prompt(9, rows=2, seed=4)
    plain = new_tokens(model, negative, max_new_tokens=6)
    found = new_tokens(model, ids, negative_prompt_ids=negative, guidance_scale=0.0, max_new_tokens=6)
    np.testing.assert_array_equal(found, plain)
    # Draws depend on the position in the row, so the prompts have to be of one length.
    settings = {"do_sample": True, "seed": 5, "max_new_tokens": 6, "item_indices": [3, 4]}
    found = new_tokens(model, ids, negative_prompt_ids=negative[:, :4], guidance_scale=0.0, **settings)
    np.testing.assert_array_equal(found, new_tokens(model, negative[:, :4], **settings))


@pytest.mark.full
@pytest.mark.parametrize("settings", [{"max_new_tokens": 150}, {"num_beams": 3, "num_return_sequences": 2}])
def test_scale_0_with_a_cache_that_grows_and_with_beams(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    ids, negative = prompt(4, rows=2, seed=3), prompt(20, rows=2, seed=4)
    settings = {"max_new_tokens": 6, **settings}
    found = new_tokens(model, ids, negative_prompt_ids=negative, guidance_scale=0.0, **settings)
    np.testing.assert_array_equal(found, new_tokens(model, negative, **settings))


def test_scale_1_and_none_are_plain(model: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    ids = prompt(5, rows=2)
    caplog.set_level(logging.INFO, logger="jaxpipe")
    info_once.cache_clear()
    plain = new_tokens(model, ids, max_new_tokens=5)
    for scale in (1, 1.0, None):
        found = new_tokens(model, ids, negative_prompt_ids=ids[:, :2], guidance_scale=scale, max_new_tokens=5)
        np.testing.assert_array_equal(found, plain)
    assert caplog.text.count("negative_prompt_ids have no effect") == 1
    assert list(model._generator.strategies._made) in ([], ["guided"])


def test_a_row_depends_on_its_own_prompts_alone(model: PreTrainedModel) -> None:
    (ids, mask), (negative, negative_mask) = ragged(3, 9, 6), ragged(3, 7, 7)
    settings = {"guidance_scale": 3.0, "max_new_tokens": 7, "do_sample": True, "seed": 2, "num_return_sequences": 2}
    names = ("negative_prompt_ids", "negative_prompt_attention_mask")
    together = new_tokens(model, ids, mask, **settings, **dict(zip(names, (negative, negative_mask), strict=True)))
    assert together.shape == (6, 7)
    for i in range(3):
        own = negative[i][None, negative_mask[i] == 1]
        alone = new_tokens(model, ids[i][None, mask[i] == 1], **settings, negative_prompt_ids=own, item_indices=[i])
        np.testing.assert_array_equal(alone, together[2 * i : 2 * i + 2])


def test_padding_of_negative_prompts_is_inferred(model: PreTrainedModel) -> None:
    ids, negative = prompt(5, rows=2), np.array([[0, 0, 4, 5], [6, 7, 8, 9]])
    settings = {"guidance_scale": 2.0, "max_new_tokens": 5}
    mask = {"negative_prompt_attention_mask": (negative != 0).astype(int)}
    wanted = new_tokens(model, ids, negative_prompt_ids=negative, **mask, **settings)
    found = new_tokens(model, ids, negative_prompt_ids=negative, pad_token_id=0, **settings)
    np.testing.assert_array_equal(found, wanted)
    # Where padding ends rows too, it is no padding.
    both = guide(
        model._generator.prompts(ids, None, model.generation_config, None, {}),
        negative,
        None,
        {"input_ids": VOCABULARY},
        Settled(5, 3, guidance_scale=2.0, eos_token_ids=(0,), pad_token_id=0),
    )
    assert [len(row) for row in both.negative] == [4, 4]  # type: ignore[attr-defined]


def test_scores_and_logits_are_the_prompts_own(model: PreTrainedModel) -> None:
    ids, negative = prompt(5, rows=2, seed=1), prompt(3, rows=2, seed=2)
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out: Any = model.generate(ids, negative_prompt_ids=negative, guidance_scale=2.0, max_new_tokens=3, **asked)
    new = np.asarray(out.sequences)[:, 5:]
    for step in range(3):
        own, other = (
            log_probabilities(model, np.concatenate([x, new[:, :step]], axis=1).tolist()) for x in (ids, negative)
        )
        np.testing.assert_allclose(jax.nn.log_softmax(out.logits[step]), own, atol=1e-4)
        np.testing.assert_allclose(out.scores[step], 2 * own - other, atol=2e-4)


def test_streams_and_stopping_criteria_see_every_token(model: PreTrainedModel) -> None:
    ids, settings = prompt(6, seed=2), {"guidance_scale": 1.5, "max_new_tokens": 6}
    whole = new_tokens(model, ids, **settings)[0].tolist()
    given: list[int] = []

    class Kept(BaseStreamer):
        def put(self, value: Any) -> None:
            given.extend(np.asarray(value).reshape(-1).tolist())

        def end(self) -> None:
            given.append(-1)

    model.generate(ids, **settings, streamer=Kept())
    assert given == [*ids[0].tolist(), *whole, -1]

    def third(input_ids: np.ndarray, *_: Any, **__: Any) -> Any:
        return np.full(len(input_ids), input_ids.shape[1] >= 6 + 3)

    assert new_tokens(model, ids, **settings, stopping_criteria=[third])[0].tolist() == whole[:3]


def test_another_scale_and_other_lengths_compile_nothing(model: PreTrainedModel) -> None:
    model.generate(prompt(5), guidance_scale=1.5, max_new_tokens=4)
    made = model._generator.strategies._made["guided"]
    sizes = made.prefill._cache_size(), made.decode._cache_size()
    for scale, length in itertools.product((0.1, 7.0), (3, 8)):
        negative = prompt(length + 2)
        model.generate(prompt(length), guidance_scale=scale, negative_prompt_ids=negative, max_new_tokens=7)
    assert (made.prefill._cache_size(), made.decode._cache_size()) == sizes


def test_a_step_reads_both_rows_at_once_and_copies_no_cache(model: PreTrainedModel) -> None:
    generator, settled = model._generator, Settled(prompt_length=20, max_new_tokens=90, guidance_scale=2.0)
    with use_mesh(model.mesh):
        prompts = generator.prompts(prompt(20, rows=2), None, model.generation_config, None, {})
        prompts = guide(prompts, None, None, model.config.limits(), settled)
        run = Run(generator, prompts, settled, range(2), 0)
        compiled = run._decode.lower(generator.leaves, run.state, run._choice, np.int32(3)).compile()
    keys = run.state.cache.layers[0].keys
    assert keys.shape[0] == 4 and run.state.tokens.shape[0] == 2
    assert not re.findall(rf"= f32\[{','.join(map(str, keys.shape))}\]\S* copy\(", compiled.as_text())
    cache = sum(x.nbytes for x in jax.tree.leaves(run.state.cache.layers))
    assert compiled.memory_analysis().alias_size_in_bytes >= cache


def test_settings_that_cannot_be_are_errors(model: PreTrainedModel) -> None:
    ids = prompt(4, rows=2)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"guidance_scale": "x"}, r"guidance_scale='x' \(argument of generate\): expected a finite number"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"guidance_scale": True}, "guidance_scale=True"),
        ({"negative_prompt_ids": ids[:1]}, "negative_prompt_ids has 1 rows for 2 rows of input_ids"),
        ({"negative_prompt_ids": ids + 40}, r"negative_prompt_ids\[0, 0\] is \d+; accepted are 0 to 30"),
        ({"negative_prompt_ids": [[1], [2, 3]]}, "negative_prompt_ids has rows of different lengths"),
        ({"negative_prompt_ids": ids, "negative_prompt_attention_mask": np.ones((2, 3), int)}, r"has shape \(2, 3\)"),
        ({"negative_prompt_ids": ids, "negative_prompt_attention_mask": np.zeros((2, 4), int)}, "no token in row 0"),
        ({"negative_prompt_attention_mask": np.ones((2, 4), int)}, "is given without negative_prompt_ids"),
        ({"prompt_lookup_num_tokens": 2}, "guidance_scale=2.0"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            model.generate(ids, max_new_tokens=2, **{"guidance_scale": 2.0, **settings})


def test_models_that_cannot_are_refused() -> None:
    shape = {"d_model": 12, "d_kv": 4, "num_heads": 3, "d_ff": 16, "num_layers": 1, "vocab_size": VOCABULARY}
    t5 = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **shape, decoder_start_token_id=0), seed=0)
    with pytest.raises(ValueError, match=r"guidance_scale=2.0 is for decoders"):
        t5.generate(prompt(4), max_new_tokens=2, guidance_scale=2.0)
    gpt2 = make("gpt2", n_embd=8, n_head=2, n_layer=1, n_positions=12)
    with pytest.raises(ValueError, match=r"A prompt of 10 tokens and max_new_tokens=4 need 13 positions"):
        gpt2.generate(prompt(3), max_new_tokens=4, guidance_scale=2.0, negative_prompt_ids=prompt(10))
