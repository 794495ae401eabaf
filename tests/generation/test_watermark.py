"""Watermarks without the oracle: settings, errors, and that a row's mark depends on its own tokens alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe import (
    AutoConfig,
    AutoModelForCausalLM,
    BayesianDetectorConfig,
    BayesianDetectorModel,
    GenerationConfig,
    SynthIDTextWatermarkingConfig,
    SynthIDTextWatermarkLogitsProcessor,
    WatermarkDetector,
    WatermarkingConfig,
)
from jaxpipe.generation import greenlist, words64
from jaxpipe.generation.config import resolve
from jaxpipe.generation.greenlist import GreenLists

V = 97
LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": V,
    "num_key_value_heads": 2, "initializer_range": 0.5, "bos_token_id": 0, "eos_token_id": None,
}  # fmt: skip
KEYS = [5, 2**40, -7]
CONFIGS = [
    WatermarkingConfig(bias=8.0),
    WatermarkingConfig(bias=8.0, seeding_scheme="selfhash", context_width=3),
    SynthIDTextWatermarkingConfig(ngram_len=3, keys=KEYS),
]
CALL = {"max_new_tokens": 10, "pad_token_id": 1}


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA), dtype="float32", device_map="cpu")


def settle(value: Any) -> Any:
    return resolve(None, None, {"watermarking_config": value, "max_new_tokens": 3}, prompt_length=2).watermark


def test_what_may_be_given() -> None:
    for config in CONFIGS:
        assert settle(config) == settle(config.to_dict()) == settle(dict(iter(config))) == config
    assert settle(None) is None
    assert settle({}) == WatermarkingConfig()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("green", "expected a WatermarkingConfig"),
        ({"biass": 2.0}, "no entry 'biass'.*bias"),
        ({"ngram_len": 3}, "needs keys"),
        ({"keys": [3]}, "needs ngram_len"),
        ({"greenlist_ratio": 0.0}, "greenlist_ratio=0.0"),
        ({"greenlist_ratio": 1}, "greenlist_ratio=1"),
        ({"bias": float("nan")}, "bias=nan"),
        ({"bias": True}, "bias=True"),
        ({"seeding_scheme": "rehash"}, "seeding_scheme='rehash'.*lefthash"),
        ({"hashing_key": -1}, "hashing_key=-1"),
        ({"context_width": 0}, "context_width=0"),
        ({"ngram_len": 1, "keys": [3]}, "ngram_len=1"),
        ({"ngram_len": 3, "keys": []}, "keys="),
        ({"ngram_len": 3, "keys": [2**63]}, "64 bits"),
        ({"ngram_len": 3, "keys": 5}, "keys=5"),
        ({"ngram_len": 3, "keys": [3], "sampling_table_size": 2**24 + 1}, "sampling_table_size"),
        ({"ngram_len": 3, "keys": [3], "context_history_size": -1}, "context_history_size=-1"),
        ({"ngram_len": 3, "keys": [3], "debug_mode": 1}, "debug_mode=1"),
    ],
)
def test_wrong_settings(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        settle(value)
    assert str(error.value).startswith("watermarking_config (argument of generate)")


def test_a_vocabulary_that_is_too_small(model: Any) -> None:
    with pytest.raises(ValueError, match=r"greenlist_ratio=0\.001 of a vocabulary of 97"):
        model.generate([[3, 4]], watermarking_config={"greenlist_ratio": 0.001}, **CALL)


def test_files(tmp_path: Any) -> None:
    for config in CONFIGS:
        GenerationConfig(watermarking_config=config, do_sample=True).save_pretrained(tmp_path)
        read = GenerationConfig.from_pretrained(tmp_path)
        assert resolve(read, None, {"max_new_tokens": 3}, prompt_length=2).watermark == config
        config.to_json_file(tmp_path / "mark.json")
        assert type(config).from_dict(config.to_dict(), **dict(iter(config))) == config
    config = WatermarkingConfig()
    config.update(bias=3.5, unknown=1)
    assert config == WatermarkingConfig(bias=3.5)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: getattr(config, "seeding_scheme", "synthid"))
def test_a_row_alone(model: Any, config: Any) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, V, length) for length in (9, 5, 2)]
    ids, mask = np.full((3, 9), 1), np.zeros((3, 9), int)
    for i, row in enumerate(rows):
        ids[i, 9 - len(row) :], mask[i, 9 - len(row) :] = row, 1
    settings = {**CALL, "watermarking_config": config, "do_sample": True, "seed": 3}
    together = np.asarray(model.generate(ids, mask, **settings))[:, 9:]
    plain = np.asarray(model.generate(ids, mask, **{**settings, "watermarking_config": None}))[:, 9:]
    assert (plain != together).any(axis=1).all()
    for i, row in enumerate(rows):
        alone = model.generate(row[None], item_indices=[i], **settings)
        np.testing.assert_array_equal(np.asarray(alone)[0, len(row) :], together[i])


def test_other_keys_run_the_same_code(model: Any) -> None:
    answers = []
    for key in (11, 12):
        for config in (WatermarkingConfig(hashing_key=key, bias=key), SynthIDTextWatermarkingConfig(3, [key, 3, 4])):
            answers.append(np.asarray(model.generate([[3, 4]], watermarking_config=config, **CALL)))
            if key == 11:
                sizes = model._generator.decode._cache_size()
    assert model._generator.decode._cache_size() == sizes
    assert (answers[0] != answers[2]).any()


def test_detection(model: Any) -> None:
    settings = {"max_new_tokens": 40, "pad_token_id": 1, "do_sample": True, "seed": 1}
    ids = np.arange(3, 11).reshape(2, 4)
    for config in CONFIGS[:2]:
        detector: Any = WatermarkDetector(model.config, watermarking_config=config)
        marked = np.asarray(model.generate(ids, watermarking_config=config, **settings))[:, 4:]
        assert detector(marked).all()
        assert not detector(np.asarray(model.generate(ids, **settings))[:, 4:]).any()
        found: Any = detector(marked, return_dict=True)
        assert (found.num_green_tokens <= found.num_tokens_scored).all()
        assert ((found.p_value < 1e-3) & (found.confidence > 0.999)).all()


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([3, 4, 5], "shape"),
        ([[0.5, 1.0]], "dtype"),
        ([[3, 4, V]], "0 to 96"),
        ([[3, 4, -1]], "0 to 96"),
        ([[0, 3, 4, 5], [3, 3, 4, 5]], "start token 0"),
        ([[3, 4, 5]], "at least 4"),
        ([[0, 3, 4, 5]], "at least 4"),
    ],
)
def test_texts_that_cannot_be_scored(model: Any, ids: Any, words: str) -> None:
    detector = WatermarkDetector(model.config, watermarking_config={"seeding_scheme": "selfhash", "context_width": 3})
    with pytest.raises(ValueError, match=words):
        detector(ids)


def test_the_other_watermark_has_another_detector(model: Any) -> None:
    with pytest.raises(ValueError, match="SynthIDTextWatermarkDetector"):
        WatermarkDetector(model.config, watermarking_config=CONFIGS[2])
    processor = SynthIDTextWatermarkLogitsProcessor(3, KEYS, 64, 0, 10)
    for wrong in ([3, 4, 5], [[3, 4]], [[0.5, 0.5, 0.5]]):
        with pytest.raises(ValueError, match="input_ids of shape"):
            processor.compute_g_values(wrong)
    with pytest.raises(ValueError, match="watermarking_depth=4"):
        BayesianDetectorModel(BayesianDetectorConfig(4), np.zeros((1, 1, 3)), np.zeros((1, 1, 3, 3)))
    detector: Any = BayesianDetectorModel(BayesianDetectorConfig(3), np.zeros((1, 1, 3)), np.zeros((1, 1, 3, 3)))
    with pytest.raises(ValueError, match="g_values of shape"):
        detector(np.zeros((2, 5, 4)), np.ones((2, 5)))
    # With a coin's chance of two tokens, a value of 1 is 1.25 times as likely in a marked text as a 0 is 0.75 times.
    (found,) = detector(np.ones((1, 1, 3)), np.ones((1, 1)))
    np.testing.assert_allclose(found, [1.25**3 / (1 + 1.25**3)], rtol=1e-6)
    np.testing.assert_allclose(detector(np.ones((1, 1, 3)), np.zeros((1, 1)))[0], [0.5])


def test_kept_lists_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greenlist, "_KEPT_BYTES", 5 * (1000 // 8))
    lists = GreenLists(7, 1000, 250)
    first = lists.after(0)
    assert first.sum() == 250
    for token in range(20):
        lists.after(token)
    assert len(lists._kept) == 5
    np.testing.assert_array_equal(lists.after(0), first)


def test_words_of_64_bits() -> None:
    rng = np.random.default_rng(0)
    numbers = [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1, *(int(x) for x in rng.integers(0, 2**63, 60))]
    numbers += [2**64 - x for x in numbers[6:]]

    def word(values: list[int]) -> words64.Word:
        low, high = zip(*map(words64.halves, values), strict=True)
        return jnp.asarray(low, jnp.uint32), jnp.asarray(high, jnp.uint32)

    def value(found: words64.Word) -> list[int]:
        return [int(low) | int(high) << 32 for low, high in zip(*map(np.asarray, found), strict=True)]

    pairs = word(numbers), word(numbers[::-1])
    assert value(jax.jit(words64.add)(*pairs)) == [(a + b) % 2**64 for a, b in zip(numbers, numbers[::-1], strict=True)]
    for factor in (0, 3, 6364136223846793005, 2**64 - 1):
        assert value(words64.multiply(pairs[0], factor)) == [a * factor % 2**64 for a in numbers]
    for divisor in (1, 2, 7, 1009, 2**16, 2**24 - 1, 2**24):
        signed = [a - 2**64 * (a >= 2**63) for a in numbers]
        assert np.asarray(words64.remainder(pairs[0], divisor)).tolist() == [a % divisor for a in signed]
