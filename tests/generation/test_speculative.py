"""Speculative decoding gives what plain decoding gives: the same ids, and in sampling the same distribution."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM
from jaxpipe.generation.speculative_run import Speculator
from jaxpipe.generation.streamers import BaseStreamer
from jaxpipe.generation.watermarking import SynthIDTextWatermarkingConfig, WatermarkingConfig
from jaxpipe.model import PreTrainedModel

VOCABULARY = 61
NEW = 24


def make(seed: int, vocabulary: int = VOCABULARY, layers: int = 1, **settings: Any) -> PreTrainedModel:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        initializer_range=0.5,
        max_position_embeddings=256,
        eos_token_id=None,
        **{**shape, **settings},
    )
    return AutoModelForCausalLM.from_config(config, seed=seed)


def near(model: PreTrainedModel, seed: int, by: float) -> PreTrainedModel:
    """A model that often chooses as another does."""
    other = make(seed, model.config.vocab_size)
    rng = np.random.default_rng(7)
    leaves = zip(model._built.leaves, other._built.leaves, strict=True)
    other._built.leaves[:] = [x + by * np.std(x) * rng.standard_normal(x.shape).astype(x.dtype) for x, _ in leaves]
    return other


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make(1)


@pytest.fixture(scope="module")
def assistant(model: PreTrainedModel) -> PreTrainedModel:
    return near(model, 1, 0.15)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Speculator]]:
    """The speculative decodings of a test, in order."""
    made: list[Speculator] = []
    begin = Speculator.begin

    def noted(self: Speculator, *args: Any) -> None:
        made.append(self)
        begin(self, *args)

    monkeypatch.setattr(Speculator, "begin", noted)
    yield made


def steps(runs: list[Speculator]) -> int:
    return int(runs[-1].state.step)


def prompts(*lengths: int, side: str = "left") -> tuple[np.ndarray, np.ndarray]:
    """Rows in which some tokens come twice."""
    rng = np.random.default_rng(4)
    ids, mask = np.zeros((2, len(lengths), max(lengths)), int)
    for i, n in enumerate(lengths):
        row = np.tile(rng.integers(3, VOCABULARY, -(-n // 2)), 2)[:n]
        place = slice(max(lengths) - n, None) if side == "left" else slice(0, n)
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


def ways(model: PreTrainedModel, assistant: PreTrainedModel) -> dict[str, dict[str, Any]]:
    return {
        "lookup": {"prompt_lookup_num_tokens": 5, "max_matching_ngram_size": 3},
        "assistant": {"assistant_model": assistant, "num_assistant_tokens": 5, "assistant_confidence_threshold": 0.0},
    }


def words(input_ids: jax.Array, scores: jax.Array) -> jax.Array:
    """Likes the token after the last one, and dislikes those that came already."""
    last = input_ids[:, -1:]
    seen = jnp.zeros_like(scores).at[jnp.arange(len(scores))[:, None], input_ids].set(1.0, mode="drop")
    return scores + 4.0 * (jnp.arange(scores.shape[1]) == (last + 1) % scores.shape[1]) - 0.5 * seen


def allowed(batch_id: int, input_ids: np.ndarray) -> list[int]:
    """Every second token, after one of which only the other half may come; anything else must not be asked about."""
    tail = input_ids[-1] % 2
    return [token for token in range(VOCABULARY) if token % 2 != tail or token % 5 == batch_id % 5]


WAYS = ("lookup", "assistant")
PROCESSORS: list[dict[str, Any]] = [
    {},
    {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[7], [9, 11], [20, 21, 22]],
        "sequence_bias": [[[7], 3.0], [[9, 11], 12.0], [[12], -4.0]],
        "suppress_tokens": [4, 5],
        "begin_suppress_tokens": [8, 30],
        "min_new_tokens": 9,
        "forced_eos_token_id": [2, 6],
        "eos_token_id": [14, 44, 26],
        "renormalize_logits": True,
        "encoder_repetition_penalty": 1.2,
    },
    {
        "exponential_decay_length_penalty": (3, 1.5),
        "remove_invalid_values": True,
        "eos_token_id": 35,
        "min_length": 20,
        "encoder_no_repeat_ngram_size": 2,
        "logits_processor": words,
    },
    {"prefix_allowed_tokens_fn": allowed, "repetition_penalty": 1.1},
    {"watermarking_config": WatermarkingConfig(bias=2.5, seeding_scheme="selfhash", context_width=2)},
    {"watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=3, keys=[654, 400, 836])},
]


@pytest.mark.parametrize(
    ("way", "number"),
    [
        pytest.param(way, number, marks=[] if (way, number) == ("lookup", 1) else [pytest.mark.full])
        for way in WAYS
        for number in range(len(PROCESSORS))
    ],
)
def test_greedy_ids_are_those_of_plain_decoding(
    way: str, number: int, model: PreTrainedModel, assistant: PreTrainedModel, runs: list[Speculator]
) -> None:
    settings = {"max_new_tokens": NEW, "pad_token_id": 0, **PROCESSORS[number]}
    ids, mask = prompts(12, 5, 17, side="left" if number % 2 else "right")
    plain = np.asarray(model.generate(ids, mask, **settings))
    asked = ways(model, assistant)[way]
    np.testing.assert_array_equal(model.generate(ids, mask, **asked, **settings), plain)
    assert number == 1 or plain.shape[1] - ids.shape[1] > 4
    assert 0 < steps(runs) < NEW


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
def test_a_row_of_its_own_has_the_same_answer(
    way: str, model: PreTrainedModel, assistant: PreTrainedModel, runs: list[Speculator]
) -> None:
    lengths = (12, 5, 17)
    ids, mask = prompts(*lengths)
    draw = {"do_sample": True, "seed": 3, "temperature": 0.7, "top_k": 9, "max_new_tokens": NEW, "pad_token_id": 0}
    asked = ways(model, assistant)[way]
    together = np.asarray(model.generate(ids, mask, **asked, **draw))[:, -NEW:]
    for i, n in enumerate(lengths):
        alone = model.generate(ids[i : i + 1, -n:], item_indices=[i], **asked, **draw)
        np.testing.assert_array_equal(np.asarray(alone)[0, n:], together[i])
    again = np.asarray(model.generate(ids, mask, **asked, **{**draw, "seed": 4}))[:, -NEW:]
    assert (together != again).any()


@pytest.mark.full
def test_a_batch_in_which_rows_go_on_at_different_pace_finds_room(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, runs: list[Speculator]
) -> None:
    """One row copies its text and others do not, so that slots stay empty, and are closed up now and then."""
    from jaxpipe.generation import speculative_run

    monkeypatch.setattr(speculative_run, "_SPARE_STEPS", 0)
    compacted = []
    make_room = Speculator._make_room

    def noted(self: Speculator) -> None:
        before = int(self.state.cache.slot)
        make_room(self)
        compacted.append(int(self.state.cache.slot) < before)

    monkeypatch.setattr(Speculator, "_make_room", noted)
    ids, mask = prompts(6, 16, 4, 9)

    def cycle(input_ids: jax.Array, scores: jax.Array) -> jax.Array:
        """Rows that begin with a small token count up in a cycle; the others go where the model leads."""
        first = jnp.take_along_axis(input_ids, jnp.argmax(input_ids < scores.shape[1], axis=1)[:, None], axis=1)
        step = jnp.arange(scores.shape[1]) == (input_ids[:, -1:] + 1) % 7
        return scores + jnp.where((first < 30) & step, 1e4, 0.0)

    assert len({bool(row[keep != 0][0] < 30) for row, keep in zip(ids, mask, strict=True)}) == 2
    settings = {"max_new_tokens": 100, "logits_processor": cycle, "prompt_lookup_num_tokens": 7}
    plain = np.asarray(model.generate(ids, mask, **{**settings, "prompt_lookup_num_tokens": None}))
    np.testing.assert_array_equal(model.generate(ids, mask, **settings), plain)
    assert any(compacted)
    # The same with the host reading every token.
    stops = [lambda input_ids, scores: False]
    np.testing.assert_array_equal(model.generate(ids, mask, stopping_criteria=stops, **settings), plain)


def test_the_model_itself_as_assistant_is_always_right(model: PreTrainedModel, runs: list[Speculator]) -> None:
    ids, _ = prompts(9)
    settings = {"assistant_model": model, "num_assistant_tokens": 5, "assistant_confidence_threshold": 0.0}
    model.generate(ids, max_new_tokens=25, **settings)
    assert steps(runs) == 4  # one token of the prefill, and four times six


@pytest.mark.full
def test_the_model_itself_as_assistant_is_always_right_in_sampling(
    model: PreTrainedModel, runs: list[Speculator]
) -> None:
    ids, _ = prompts(9)
    settings = {"assistant_model": model, "num_assistant_tokens": 5, "assistant_confidence_threshold": 0.0}
    model.generate(ids, max_new_tokens=25, do_sample=True, seed=1, **settings)
    assert steps(runs) == 4


def test_an_assistant_that_is_unsure_proposes_less(model: PreTrainedModel, runs: list[Speculator]) -> None:
    ids, _ = prompts(9)
    settings = {"assistant_model": model, "num_assistant_tokens": 5, "max_new_tokens": 25}
    model.generate(ids, assistant_confidence_threshold=1.0, **settings)
    assert steps(runs) == 12  # one token is proposed at a time, and two come
    model.generate(ids, assistant_confidence_threshold=0.2, **settings)
    assert 4 < steps(runs) < 12


@pytest.mark.full
def test_what_is_repeated_is_looked_up(model: PreTrainedModel, runs: list[Speculator]) -> None:
    def cycle(input_ids: jax.Array, scores: jax.Array) -> jax.Array:
        return scores + 1e4 * (jnp.arange(scores.shape[1]) == (input_ids[:, -1:] + 1) % 9)

    ids = np.arange(30, 42)[None]
    out = model.generate(ids, max_new_tokens=61, logits_processor=cycle, prompt_lookup_num_tokens=11)
    np.testing.assert_array_equal(np.asarray(out)[0, 12:], [(42 + i) % 9 for i in range(61)])
    # Ten tokens until the first comes again, then twelve a time.
    assert steps(runs) == 9 + -(-(61 - 10) // 12)


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
def test_scores_and_logits(way: str, model: PreTrainedModel, assistant: PreTrainedModel) -> None:
    ids, mask = prompts(9, 6)
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "max_new_tokens": NEW}
    plain: Any = model.generate(ids, mask, repetition_penalty=1.4, **asked)
    found: Any = model.generate(ids, mask, repetition_penalty=1.4, **asked, **ways(model, assistant)[way])
    np.testing.assert_array_equal(found.sequences, plain.sequences)
    for name in ("scores", "logits"):
        assert len(found[name]) == len(plain[name]) == NEW
        np.testing.assert_allclose(np.stack(found[name]), np.stack(plain[name]), atol=1e-4)


def test_lookup_draws_what_plain_sampling_draws(model: PreTrainedModel, runs: list[Speculator]) -> None:
    ids, mask = prompts(12, 5, 17)
    draw: dict[str, Any] = {"do_sample": True, "seed": 5, "temperature": 0.4, "top_k": 0, "max_new_tokens": 40}
    plain = np.asarray(model.generate(ids, mask, num_return_sequences=2, **draw))
    found = model.generate(ids, mask, num_return_sequences=2, prompt_lookup_num_tokens=4, **draw)
    np.testing.assert_array_equal(found, plain)
    assert steps(runs) < 39


def exact(model: PreTrainedModel, prompt: np.ndarray, length: int, temperature: float) -> np.ndarray:
    """Probabilities of all answers, in the order of their digits."""
    size = model.config.vocab_size
    answers = np.asarray(list(itertools.product(range(size), repeat=length)))  # (V ** length, length)
    ids = np.concatenate([np.repeat(prompt, len(answers), axis=0), answers], axis=1)
    out: Any = model(ids)
    logits = np.asarray(out.logits, np.float64)[:, prompt.shape[1] - 1 : -1] / temperature
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    chances = np.take_along_axis(odds / odds.sum(axis=-1, keepdims=True), answers[..., None], axis=-1)
    return chances[..., 0].prod(axis=1)


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Returns how many standard deviations the statistic is above its mean; rare cells count together."""
    rare = expected < 5
    cells = [*zip(counts[~rare], expected[~rare], strict=True)]
    if expected[rare].sum() >= 5:
        cells.append((counts[rare].sum(), expected[rare].sum()))
    statistic = sum((count - mean) ** 2 / mean for count, mean in cells)
    degrees = len(cells) - 1
    return (statistic - degrees) / np.sqrt(2 * degrees)


@pytest.mark.parametrize(
    ("way", "temperature"),
    [("assistant", 1.3), *(pytest.param(way, 1.3, marks=pytest.mark.full) for way in ("lookup", "unlike"))],
)
def test_sampling_has_the_model_s_distribution(way: str, temperature: float, runs: list[Speculator]) -> None:
    small = make(3, 5)
    assistant = make(4, 5) if way == "unlike" else near(small, 3, 0.5)
    asked = ways(small, assistant)["lookup" if way == "lookup" else "assistant"]
    prompt, length, rows, calls = np.array([[1, 2, 3, 1, 2]]), 4, 256, 12
    draw = {"do_sample": True, "temperature": temperature, "top_k": 0, "num_return_sequences": rows}
    answers = [
        np.asarray(small.generate(prompt, max_new_tokens=length, seed=seed, **draw, **asked))[:, -length:]
        for seed in range(calls)
    ]
    assert steps(runs) <= length
    counts = np.bincount(np.concatenate(answers) @ 5 ** np.arange(length)[::-1], minlength=5**length)
    expected = exact(small, prompt, length, temperature) * rows * calls
    assert abs(chi_square(counts, expected)) < 3.5
    # It would tell another distribution: that of the assistant, or of another temperature.
    other = exact(assistant, prompt, length, temperature * (1.2 if way == "lookup" else 1.0)) * rows * calls
    assert chi_square(counts, other) > 10


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.values: list[np.ndarray] = []
        self.ended = 0

    def put(self, value: Any) -> None:
        self.values.append(np.asarray(value).reshape(-1))

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("way", ["lookup", pytest.param("assistant", marks=pytest.mark.full)])
def test_a_streamer_sees_every_token_in_order(way: str, model: PreTrainedModel, assistant: PreTrainedModel) -> None:
    ids, _ = prompts(9)
    streamer = Collector()
    out = model.generate(ids, max_new_tokens=NEW, streamer=streamer, **ways(model, assistant)[way])
    np.testing.assert_array_equal(np.concatenate(streamer.values), np.asarray(out)[0])
    assert streamer.ended == 1 and len(streamer.values) == 1 + NEW


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
def test_criteria_of_the_user_end_rows_where_plain_decoding_ends_them(
    way: str, model: PreTrainedModel, assistant: PreTrainedModel
) -> None:
    ids, mask = prompts(12, 5, 17)
    seen: list[tuple[int, ...]] = []

    def multiples(input_ids: np.ndarray, scores: Any) -> np.ndarray:
        seen.append(input_ids.shape)
        return (input_ids[:, -1] % 6 == 0) & (input_ids.shape[1] > 20)

    settings = {"max_new_tokens": NEW, "stopping_criteria": [multiples], "pad_token_id": 0, "eos_token_id": 3}
    plain = np.asarray(model.generate(ids, mask, **settings))
    asked = seen[:]
    seen.clear()
    np.testing.assert_array_equal(model.generate(ids, mask, **settings, **ways(model, assistant)[way]), plain)
    assert seen == asked
    assert (plain[:, -1] == 0).any()


@pytest.mark.full
def test_other_values_compile_nothing(model: PreTrainedModel, assistant: PreTrainedModel) -> None:
    ids, mask = prompts(9)

    def count() -> int:
        return sum(
            made.decode._cache_size() + made.begin._cache_size() for made in model._generator._speculations.values()
        )

    for way, name in (("lookup", "prompt_lookup_num_tokens"), ("assistant", "num_assistant_tokens")):
        asked = {**ways(model, assistant)[way], "max_new_tokens": NEW}
        model.generate(ids, mask, **asked)
        compiled = count()
        model.generate(ids[:, 1:], mask[:, 1:], **{**asked, name: 4})
        model.generate(ids, mask, **{**asked, "max_new_tokens": NEW - 2, "streamer": Collector()})
        if way == "lookup":
            model.generate(ids, mask, **{**asked, "max_matching_ngram_size": 4})
        else:
            model.generate(ids, mask, **{**asked, "assistant_confidence_threshold": 0.3})
        assert count() == compiled


@pytest.mark.full
def test_warmup_compiles_what_a_call_runs() -> None:
    model = make(5, layers=1)
    seconds = model.warmup(prompt_lengths=(16,), max_new_tokens=NEW, prompt_lookup_num_tokens=5)
    assert list(seconds) == ["prefill 1x16", "decode 1x64"]
    (made,) = model._generator._speculations.values()
    count = made.decode._cache_size()
    ids, _ = prompts(9)
    model.generate(ids, max_new_tokens=NEW, prompt_lookup_num_tokens=5)
    assert made.decode._cache_size() == count == 1


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
def test_the_cache_is_donated_and_not_copied(way: str, runs: list[Speculator]) -> None:
    import re

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = make(1, 64, **shape)
    # Not as large as the model's, which is searched for.
    assistant = make(2, 64, hidden_size=48, num_attention_heads=6, num_key_value_heads=3)
    asked = ways(model, assistant)[way]
    model.generate(np.ones((1, 20), int), max_new_tokens=40, **asked)
    run = runs[-1]
    leaves = [] if run._assistant is None else run._assistant.leaves
    lowered = run._functions.decode.lower(run._leaves, leaves, run.state, run._choice, run.rule, np.int32(5))
    compiled = lowered.compile()
    cache = sum(leaf.nbytes for leaf in jax.tree.leaves(run.state.cache.layers))
    assert compiled.memory_analysis().alias_size_in_bytes >= cache
    size = ",".join(map(str, run.state.cache.layers[0].keys.shape))
    assert not re.findall(rf"= f32\[{size}\]\S* copy\(", compiled.as_text())
