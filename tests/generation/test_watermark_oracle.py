"""Watermarks of green tokens and of SynthID are those of Transformers, and each finds the other's."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import jaxpipe
from jaxpipe.generation import torch_random
from jaxpipe.generation.greenlist import GreenListBias, green_lists
from jaxpipe.generation.step import StepState
from jaxpipe.generation.synthid import SynthID, SynthIDTextWatermarkLogitsProcessor
from jaxpipe.generation.watermark_detector import (
    BayesianDetectorConfig,
    BayesianDetectorModel,
    SynthIDTextWatermarkDetector,
    WatermarkDetector,
)
from jaxpipe.generation.watermarking import SynthIDTextWatermarkingConfig, WatermarkingConfig
from tests.parity.cases import CASES, CAUSAL_LM, SEQ2SEQ_LM, Case
from tests.parity.harness import Made, batch, made  # noqa: F401

pytestmark = pytest.mark.oracle

V = 131
KEYS = [654, 400, 836, 123, 340, 443, 2**62 + 11, -5]
GREENS = [
    {},
    {"context_width": 3, "hashing_key": 2**40 + 7, "greenlist_ratio": 0.6, "bias": 4.0},
    {"seeding_scheme": "selfhash"},
    {"seeding_scheme": "selfhash", "context_width": 4, "hashing_key": 2**62 + 3, "greenlist_ratio": 0.5},
]
TABLE = {"sampling_table_size": 1009, "sampling_table_seed": 7}
SYNTHIDS = [
    {"ngram_len": 5, "keys": KEYS},
    {
        "ngram_len": 3,
        "keys": KEYS[:3],
        "sampling_table_size": 1009,
        "sampling_table_seed": 7,
        "context_history_size": 6,
    },
    {"ngram_len": 4, "keys": KEYS, "skip_first_ngram_calls": True, "debug_mode": True, "context_history_size": 3},
]


@pytest.mark.parametrize("seed", [0, 1, 15485863, 2**32 - 1, 2**40 + 17])
def test_draws_of_torch(seed: int) -> None:
    import torch

    def generator() -> Any:
        return torch.Generator().manual_seed(seed)

    for size in (1, 2, 7, 131, 5000):
        wanted = torch.randperm(size, generator=generator()).numpy()
        np.testing.assert_array_equal(torch_random.randperm(seed, size), wanted)
        count = max(size // 4, 1)
        np.testing.assert_array_equal(torch_random.randperm(seed, size, count), wanted[:count])
        for value in range(0, size, max(size // 50, 1)):
            for first in (count, size):
                found = torch_random.is_among_first(seed, size, first, value)
                assert found == (value in wanted[:first])
    wanted = torch.randint(0, 2, (3000,), generator=generator()).numpy()
    np.testing.assert_array_equal(torch_random.randint(seed, 2, 3000), wanted)


def their_config(ours: Any) -> Any:
    import transformers

    return getattr(transformers, type(ours).__name__)(**ours.to_dict())


def step_state(rows: list[list[int]], new: int) -> StepState:
    """The state with `new` new tokens, on slots with a gap between prompts of different lengths and them."""
    longest = max(map(len, rows)) - new
    tokens, valid = np.zeros((len(rows), 40), np.int32), np.zeros((len(rows), 40), bool)
    for i, row in enumerate(rows):
        columns = [*range(len(row) - new), *range(longest + 2, longest + 2 + new)]
        tokens[i, columns], valid[i, columns] = row, True
    lengths = np.asarray([len(row) - new for row in rows], np.int32)
    arrays = [jax.numpy.asarray(x) for x in (tokens, valid, lengths)]
    return StepState(arrays[0], arrays[1], arrays[2], jax.numpy.int32(new))


@pytest.mark.parametrize("entries", GREENS, ids=str)
def test_scores_with_green_tokens(entries: dict[str, Any]) -> None:
    import torch

    config = WatermarkingConfig(**entries)
    processor: Any = their_config(config).construct_processor(V, "cpu")
    rng = np.random.default_rng(len(str(entries)))
    rows = [rng.integers(0, V, length).tolist() for length in (9, 6, 3)]
    scores = rng.normal(size=(3, V)).astype(np.float32)
    scores[0, ::3] = -np.inf
    found = jax.jit(lambda x, state: GreenListBias.of(config, V)(x, state))(scores, step_state(rows, 0))
    for i, row in enumerate(rows):
        if len(row) < config.context_width:
            wanted = scores[i : i + 1]
        else:
            wanted = processor(torch.tensor([row]), torch.tensor(scores[i : i + 1])).numpy()
        np.testing.assert_array_equal(found[i : i + 1], wanted)
        assert (np.asarray(found[i]) != scores[i]).any() == (len(row) >= config.context_width)


@pytest.mark.parametrize("entries", SYNTHIDS, ids=str)
def test_scores_with_synthid(entries: dict[str, Any]) -> None:
    import torch

    config = SynthIDTextWatermarkingConfig(**entries)
    config.validate()
    processor: Any = their_config(config).construct_processor(V, "cpu")
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, V, 4).tolist(), rng.integers(0, V, 4).tolist()]
    ours = jax.jit(lambda x, state: SynthID.of(config)(x, state))
    same = 0
    for step in range(24):
        scores = rng.normal(size=(2, V)).astype(np.float32) * 3
        scores[:, :20] = -np.inf
        wanted = processor(torch.tensor(rows), torch.tensor(scores)).numpy()
        found = np.asarray(ours(scores, step_state([rows[0], rows[1][1:]], step)))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found.argmax(axis=1), wanted.argmax(axis=1))
        same += int((wanted == (np.ones_like(scores) if config.debug_mode else scores)).all(axis=1).sum())
        # Of few different tokens, so that contexts come again.
        rows = [[*row, int(rng.integers(0, 2))] for row in rows]
    assert 0 < same < 48


def first(model_type: str) -> Case:
    return next(case for row in CASES[model_type] for case in row if case.head in (CAUSAL_LM, SEQ2SEQ_LM))


def both(checkpoint: Made, config: Any, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """What both generate with a watermark."""
    import torch

    ids, mask = batch(checkpoint.case, "none")
    settings = {"max_new_tokens": 24, "eos_token_id": None, "pad_token_id": 1, "do_sample": False, **settings}
    with torch.no_grad():
        wanted = checkpoint.model.generate(
            torch.tensor(ids), attention_mask=torch.tensor(mask), watermarking_config=their_config(config), **settings
        )
    return checkpoint.ours.generate(ids, mask, watermarking_config=config, **settings), wanted.numpy()


CALLS = [
    ("llama", WatermarkingConfig(bias=6.0), {}),
    ("llama", SynthIDTextWatermarkingConfig(4, KEYS), {"renormalize_logits": True}),
    *(
        pytest.param(*row, marks=pytest.mark.full)
        for row in (
            ("gpt2", WatermarkingConfig(bias=5.0, seeding_scheme="selfhash", context_width=2), {}),
            ("t5", WatermarkingConfig(bias=5.0), {"num_beams": 3, "num_return_sequences": 2}),
            ("t5", SynthIDTextWatermarkingConfig(4, KEYS), {}),
            ("bart", WatermarkingConfig(bias=5.0, seeding_scheme="selfhash"), {"repetition_penalty": 1.4}),
            ("gemma3_text", WatermarkingConfig(bias=6.0), {}),
            ("qwen3", SynthIDTextWatermarkingConfig(3, KEYS[:4]), {}),
        )
    ),
]


@pytest.mark.parametrize(
    ("model_type", "config", "settings"),
    CALLS,
    ids=lambda value: type(value).__name__ if hasattr(value, "to_dict") else str(value),
)
def test_generate(model_type: str, config: Any, settings: dict[str, Any], made: Callable[[Case], Made]) -> None:  # noqa: F811
    checkpoint = made(first(model_type))
    found, wanted = both(checkpoint, config, **settings)
    np.testing.assert_array_equal(found, wanted)
    plain = checkpoint.ours.generate(
        batch(checkpoint.case, "none")[0], max_new_tokens=24, eos_token_id=None, pad_token_id=1, **settings
    )
    assert (np.asarray(plain) != found).any()


def detected(detector: Any, ids: Any) -> Any:
    return detector(ids, return_dict=True)


UNIQUE = {"ignore": True, "seeding_scheme": "selfhash", "context_width": 2}


@pytest.mark.parametrize(
    "entries", [*GREENS[::3], *(pytest.param(row, marks=pytest.mark.full) for row in (*GREENS[1:3], UNIQUE))], ids=str
)
def test_each_detects_the_other(entries: dict[str, Any], made: Callable[[Case], Made]) -> None:  # noqa: F811
    import torch
    import transformers

    entries = dict(entries)
    ignore = entries.pop("ignore", False)
    checkpoint = made(first("llama"))
    config = WatermarkingConfig(**{**entries, "bias": 30.0})
    ids, mask = batch(checkpoint.case, "none")
    settings = {"max_new_tokens": 60, "do_sample": True, "eos_token_id": None, "pad_token_id": 1}
    ours = np.asarray(checkpoint.ours.generate(ids, mask, watermarking_config=config, seed=1, **settings))[:, 23:]
    torch.manual_seed(0)
    with torch.no_grad():
        theirs = checkpoint.model.generate(torch.tensor(ids), watermarking_config=their_config(config), **settings)
        plain = checkpoint.model.generate(torch.tensor(ids), **settings).numpy()[:, 23:]
    theirs = theirs.numpy()[:, 23:]
    detectors = (
        WatermarkDetector(checkpoint.ours.config, "cpu", config, ignore),
        transformers.WatermarkDetector(checkpoint.model.config, "cpu", their_config(config), ignore),
    )
    for text, marked in ((ours, True), (theirs, True), (plain, False), (np.c_[[1] * 3, ours], True)):
        mine, other = detected(detectors[0], text), detected(detectors[1], torch.tensor(text))
        for field in dataclasses.fields(mine):
            np.testing.assert_allclose(getattr(mine, field.name), getattr(other, field.name), rtol=1e-6, atol=1e-12)
        assert (mine.prediction == marked).all()
        np.testing.assert_array_equal(detectors[0](text, z_threshold=1e9), [False] * 3)


def synthid_texts(checkpoint: Made, config: Any) -> tuple[np.ndarray, np.ndarray]:
    ids, mask = batch(checkpoint.case, "none")
    settings = {"max_new_tokens": 100, "do_sample": True, "temperature": 30.0, "top_k": 0, "eos_token_id": None}
    settings["pad_token_id"] = 1
    marked = checkpoint.ours.generate(ids, mask, watermarking_config=config, seed=1, **settings)
    return np.asarray(marked)[:, 23:], np.asarray(checkpoint.ours.generate(ids, mask, seed=2, **settings))[:, 23:]


def test_synthid_detector(made: Callable[[Case], Made], tmp_path: Any) -> None:  # noqa: F811
    import torch
    import transformers

    checkpoint = made(first("llama"))
    config = SynthIDTextWatermarkingConfig(ngram_len=4, keys=KEYS)
    marked, plain = synthid_texts(checkpoint, config)
    ours = SynthIDTextWatermarkLogitsProcessor(**config.to_dict(), device="cpu")
    made_theirs: Any = transformers.SynthIDTextWatermarkLogitsProcessor
    theirs = made_theirs(**config.to_dict(), device="cpu")
    repeated = np.tile(marked[:, :7], 5)
    for ids in (marked, plain, repeated):
        tensor = torch.tensor(ids)
        np.testing.assert_array_equal(ours.compute_g_values(ids), theirs.compute_g_values(tensor).numpy())
        mask = theirs.compute_context_repetition_mask(tensor).numpy()
        np.testing.assert_array_equal(ours.compute_context_repetition_mask(ids), mask)
        eos = int(ids[0, 20])
        mask = theirs.compute_eos_token_mask(tensor, eos).numpy()
        np.testing.assert_array_equal(ours.compute_eos_token_mask(ids, eos), mask)
    assert ours.compute_g_values(marked).mean() > 0.58
    assert abs(ours.compute_g_values(plain).mean() - 0.5) < 0.04
    assert ours.expected_mean_g_value(V) == theirs.expected_mean_g_value(V)

    torch.manual_seed(0)
    model = transformers.BayesianDetectorModel(
        transformers.BayesianDetectorConfig(watermarking_depth=len(KEYS), base_rate=0.3)
    )
    with torch.no_grad():
        model.likelihood_model_watermarked.delta.normal_(0, 0.5)
        model.likelihood_model_watermarked.beta.normal_(1.0, 0.5)
    model.config.set_detector_information("some/model", config.to_dict())
    model.save_pretrained(tmp_path)
    loaded = BayesianDetectorModel.from_pretrained(tmp_path)
    assert loaded.config.watermarking_config == config.to_dict()
    tokenizer = type("Tokenizer", (), {"eos_token_id": int(marked[1, 60])})()
    mine = SynthIDTextWatermarkDetector(loaded, ours, tokenizer)
    other = transformers.SynthIDTextWatermarkDetector(model, theirs, tokenizer)
    for ids in (marked, plain, repeated):
        (found,) = mine(ids)
        with torch.no_grad():
            (wanted,) = other(torch.tensor(ids))
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
    built = BayesianDetectorModel(
        BayesianDetectorConfig(len(KEYS), 0.3),
        model.likelihood_model_watermarked.beta.detach().numpy(),
        model.likelihood_model_watermarked.delta.detach().numpy(),
    )
    g_values, mask = ours.compute_g_values(marked), ours.compute_context_repetition_mask(marked)
    output: Any = built(g_values, mask, return_dict=True)
    np.testing.assert_array_equal(output.posterior_probabilities, loaded(g_values, mask)[0])


def test_configs_are_theirs() -> None:
    import transformers

    for ours in (WatermarkingConfig(), SynthIDTextWatermarkingConfig(5, KEYS)):
        theirs = their_config(ours)
        assert ours.to_dict() == theirs.to_dict()
        assert json.loads(ours.to_json_string()) == json.loads(theirs.to_json_string())
        assert type(ours).from_dict(theirs.to_dict()) == ours
    assert transformers.WatermarkingConfig().to_dict() == jaxpipe.WatermarkingConfig().to_dict()


def test_lists_are_kept_and_bounded() -> None:
    lists = green_lists(5, 1000, 250)
    np.testing.assert_array_equal(lists.after(7), lists.after(7))
    assert lists.after(7).sum() == 250
    assert green_lists(5, 1000, 250) is lists
