"""Constrained beam search as users call it, on a tiny model with random weights."""

import logging
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from jaxpipe import AutoConfig, AutoModelForCausalLM, Constraint, DisjunctiveConstraint, PhrasalConstraint
from jaxpipe.common.logging import warn_once
from jaxpipe.generation.banks import BankRules, PromptSearch, Step
from jaxpipe.model import PreTrainedModel
from tests.generation.test_constraints import AnyOrder

VOCABULARY = 11
SEARCH: dict[str, Any] = {"num_beams": 4, "pad_token_id": 0}
ASKED = {"return_dict_in_generate": True, "output_scores": True}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    widths = {"hidden_size": 24, "intermediate_size": 40, "vocab_size": VOCABULARY}
    config = AutoConfig.for_model("llama", **heads, **widths, initializer_range=0.5, eos_token_id=None)
    return AutoModelForCausalLM.from_config(config, seed=1)


def prompt(length: int, rows: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, VOCABULARY, (rows, length))


def new_tokens(model: PreTrainedModel, ids: np.ndarray, mask: Any = None, **settings: Any) -> np.ndarray:
    return np.asarray(model.generate(ids, mask, **settings))[:, ids.shape[1] :]


def holds(answer: np.ndarray, phrase: list[int]) -> bool:
    return any(answer[i : i + len(phrase)].tolist() == phrase for i in range(len(answer)))


def test_answers_fulfil_constraints(model: PreTrainedModel) -> None:
    ids = prompt(5, rows=3) % 7 + 1  # none of the phrases' tokens
    settings = {**SEARCH, "num_return_sequences": 2, "max_new_tokens": 9, "eos_token_id": 4}
    free = new_tokens(model, ids, **settings)
    assert not any(holds(row, [9, 10]) for row in free)
    phrase = new_tokens(model, ids, force_words_ids=[[9, 10]], **settings)
    assert all(holds(row, [9, 10]) for row in phrase)
    same = new_tokens(model, ids, constraints=[PhrasalConstraint([9, 10])], **settings)
    np.testing.assert_array_equal(phrase, same)
    both = new_tokens(
        model, ids, force_words_ids=[[9, 10]], constraints=[DisjunctiveConstraint([[8, 9], [8, 8]])], **settings
    )
    assert all(holds(row, [9, 10]) and (holds(row, [8, 9]) or holds(row, [8, 8])) for row in both[::2])
    own = new_tokens(model, ids, constraints=[AnyOrder((8, 10))], **settings)
    assert all(holds(row, [8, 10]) or holds(row, [10, 8]) for row in own[::2])


def test_scores_are_those_of_the_returned_sequences(model: PreTrainedModel) -> None:
    ids = prompt(5, rows=3)
    settings = {**SEARCH, "num_return_sequences": 2, "max_new_tokens": 9, "length_penalty": 0.7, "eos_token_id": 5}
    out: Any = model.generate(ids, force_words_ids=[[3]], **settings, **ASKED, output_logits=True)
    lengths = (out.beam_indices >= 0).sum(1)
    assert len(set(lengths)) > 1, "all sequences are of one length; choose another seed"
    new, sums = np.asarray(out.sequences)[:, 5:], np.zeros(6)
    for i in range(new.shape[1]):
        assert out.scores[i].shape == out.logits[i].shape == (12, VOCABULARY)
        sums += np.where(i < lengths, out.scores[i][out.beam_indices[:, i], new[:, i]], 0)
    np.testing.assert_allclose(out.sequences_scores, sums / lengths**0.7, atol=1e-4)
    assert (new[np.arange(6), lengths - 1] == 5)[lengths < 9].all()
    assert (new[np.arange(new.shape[1]) >= lengths[:, None]] == 0).all()


def test_rows_do_not_depend_on_neighbours_or_padding(model: PreTrainedModel) -> None:
    lengths = (3, 13, 1, 16)
    rows = [prompt(n, seed=n)[0] for n in lengths]
    ids = np.full((len(rows), max(lengths)), 9)  # padding is no part of what fulfils a constraint
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if i % 2 else slice(max(lengths) - len(row), None)  # padded on either side
        ids[i, place], mask[i, place] = row, 1
    search = {**SEARCH, "max_new_tokens": 12, "eos_token_id": 4, "force_words_ids": [[[9, 9], [3, 7]]]}
    together = new_tokens(model, ids, mask, **search)
    for i, row in enumerate(rows):
        alone = new_tokens(model, row[None], **search)
        np.testing.assert_array_equal(together[i : i + 1, : alone.shape[1]], alone)
        assert (together[i, alone.shape[1] :] == 0).all()


def test_constraints_of_one_shape_compile_once(model: PreTrainedModel) -> None:
    functions = model._generator.strategies.plain.constrained
    assert functions is not None
    search = {"num_beams": 3, "pad_token_id": 0}
    warmed = model.warmup(batch_sizes=(2,), prompt_lengths=(20,), max_new_tokens=10, force_words_ids=[[1]], **search)
    assert set(warmed) == {"prefill 2x32", "decode 2x64"}
    count = [f._cache_size() for f in (functions.prefill, functions.offer, functions.step)]
    for length, new, words in ((17, 3, [[3]]), (32, 10, [[1, 2], [3, 4]]), (25, 7, [[[1], [2, 3], [4]]])):
        model.generate(prompt(length, rows=2), max_new_tokens=new, force_words_ids=words, **search)
    assert [f._cache_size() for f in (functions.prefill, functions.offer, functions.step)] == count


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Its token 0 is the letter a, and so on."""
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate("abcdefghijk")}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made


def test_criteria_and_stop_strings_end_candidates(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    ids = prompt(4, rows=2) % 7 + 1
    settings = {**SEARCH, "num_return_sequences": 3, "max_new_tokens": 9, "force_words_ids": [[3]]}
    seen = []

    def fives(input_ids: np.ndarray, scores: object) -> np.ndarray:
        seen.append(input_ids.shape)
        return input_ids[:, -1] == 5

    by_host = new_tokens(model, ids, stopping_criteria=[fives], **settings)
    np.testing.assert_array_equal(by_host, new_tokens(model, ids, eos_token_id=5, **settings))
    assert (by_host == 5).any()
    # The candidates, and each beam of one prompt with the token; the other prompt holds it already.
    assert (ids == 3).any(axis=1).tolist() in ([True, False], [False, True])
    assert seen[0] == (2 * 8 + 4, 5)
    by_text = new_tokens(model, ids, stop_strings="f", tokenizer=tokenizer, **settings)
    np.testing.assert_array_equal(by_text, by_host)
    # A text that ends the sequence may be what fulfils the constraint, which an end token never does.
    settings["force_words_ids"] = [[9, 10]]
    ended = new_tokens(model, ids, stop_strings="k", tokenizer=tokenizer, **settings)
    assert all(holds(row, [9, 10]) for row in ended) and (ended[:, -1] != 10).any()
    for row in ended:
        assert (row[1 + row.tolist().index(10) :] == 0).all()


def test_what_lacks_a_constraint_comes_last_and_is_told(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**SEARCH, "num_return_sequences": 4, "force_words_ids": [[9, 10, 9]]}
    ids = prompt(4, rows=2) % 7 + 1
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "jaxpipe"):
        short = new_tokens(model, ids, max_new_tokens=2, **settings)
    assert short.shape == (8, 2) and "4 of 4 sequences" in caplog.text
    caplog.clear()
    out: Any = model.generate(ids, max_new_tokens=4, **settings, **ASKED)
    for answers, scores in zip(
        np.asarray(out.sequences)[:, 4:].reshape(2, 4, 4), out.sequences_scores.reshape(2, 4), strict=True
    ):
        fulfilled = [holds(row, [9, 10, 9]) for row in answers]
        assert fulfilled == sorted(fulfilled, reverse=True) and 0 < sum(fulfilled) < 4
        assert (np.diff(scores[: sum(fulfilled)]) <= 0).all() and (np.diff(scores[sum(fulfilled) :]) <= 0).all()


def test_time_that_is_up_ends_all_beams(model: PreTrainedModel) -> None:
    settings = {**SEARCH, "num_return_sequences": 4, "max_new_tokens": 9, "max_time": 0}
    assert new_tokens(model, prompt(4, rows=2), force_words_ids=[[9]], **settings).shape == (8, 1)


RULES = BankRules(2, 2, VOCABULARY, (4,), 9, 1.0, False)


def test_banks_take_turns() -> None:
    """By hand: the likeliest go on beside those that are further, one of each bank after another."""
    search = PromptSearch(np.array([1]), [PhrasalConstraint([7, 8])], 6, RULES)
    assert search.wanted() == [[7], [7]]
    scores = np.array([-1, -2, -3, -4], np.float32)
    likely = [Step(0, token, score) for token, score in zip((4, 5, 6, 3), scores, strict=True)]
    forced = [Step(0, 7, np.float32(-30)), Step(1, 7, np.float32(-40))]
    chosen = search.take(likely, forced, [False] * 6)
    # Token 4 would end a sequence that lacks the phrase; the two beams are alike, so that 7 comes once.
    assert [(step.beam, step.token) for step in chosen] == [(0, 7), (0, 5)]
    assert [beam.answer for beam in search.beams] == [(7,), (5,)] and search.beams[0].origins == (6,)
    assert search.wanted() == [[8], [7]] and not search.done
    likely = [Step(1, 4, np.float32(-3)), Step(1, 5, np.float32(-4)), *(Step(0, t, np.float32(-40)) for t in (1, 2))]
    forced = [Step(0, 8, np.float32(-50)), Step(1, 7, np.float32(-60))]
    search.take(likely, forced, [False] * 6)
    # Bank 2 is 7 8, bank 1 is 5 7, bank 0 the others.
    assert [beam.answer for beam in search.beams] == [(7, 8), (5, 7)]
    assert search.wanted() == [[], [8]]
    likely = [
        Step(0, 4, np.float32(-51)),
        Step(0, 3, np.float32(-52)),
        Step(1, 3, np.float32(-61)),
        Step(1, 2, np.float32(-62)),
    ]
    search.take(likely, [Step(1, 8, np.float32(-99))], [False] * 5)
    best, fulfilled = search.best()
    assert fulfilled == 1 and best[0].answer == (7, 8, 4) and best[0].score == pytest.approx(-17)


class Roaming(AnyOrder):
    """Asks for the token that it is given, whatever it is."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.tokens, self.seqlen, self.left = tokens, len(tokens), set(tokens)


class Bare(Constraint):
    def __init__(self) -> None:
        pass

    advance = does_advance = update = reset = remaining = copy = lambda self, *args: None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Bare()"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"force_words_ids": []}, r"force_words_ids=\[\].*a list of words"),
        ({"force_words_ids": [[]]}, r"force_words_ids=\[\[\]\]"),
        ({"force_words_ids": [3]}, r"force_words_ids=\[3\]"),
        ({"force_words_ids": "word"}, "force_words_ids='word'"),
        ({"force_words_ids": [[1, -1]]}, r"force_words_ids=\[\[1, -1\]\]"),
        ({"force_words_ids": [[[1], []]]}, r"force_words_ids=\[\[\[1\], \[\]\]\]"),
        ({"force_words_ids": [[[1], 2]]}, r"force_words_ids=\[\[\[1\], 2\]\]"),
        ({"force_words_ids": [[1, VOCABULARY]]}, "ask for token 11: expected token ids from 0 to 10"),
        ({"force_words_ids": [[[1], [2, VOCABULARY]]]}, "ask for token 11"),
        ({"force_words_ids": [[1, 4]]}, "ask for token 4, which is an eos_token_id"),
        ({"force_words_ids": [[[1], [1, 2]]]}, r"\[1\] is the beginning of another phrase"),
        ({"constraints": []}, r"constraints=\[\].*a non-empty list of jaxpipe.Constraint"),
        ({"constraints": [[1, 2]]}, r"constraints=\[\[1, 2\]\]"),
        ({"constraints": PhrasalConstraint([1])}, "constraints=.*a non-empty list"),
        ({"constraints": [Bare()]}, r"The constraint Bare\(\) has no seqlen"),
        ({"constraints": [Roaming((VOCABULARY + 3,))]}, "ask for token 14"),
        ({"constraints": [PhrasalConstraint([VOCABULARY])]}, "ask for token 11"),
        ({"force_words_ids": [[1]], "num_beams": 1}, "force_words_ids needs beams.*num_beams above 1"),
        ({"constraints": [PhrasalConstraint([1])], "num_beams": 1}, "constraints needs beams"),
        ({"force_words_ids": [[1]], "do_sample": True}, "force_words_ids with do_sample=True"),
        ({"force_words_ids": [[1]], "num_return_sequences": 5}, "num_return_sequences=5 is more than num_beams=4"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_arguments_raise_before_anything_compiles(
    model: PreTrainedModel, arguments: dict[str, Any], message: str
) -> None:
    functions = model._generator.strategies.plain.constrained
    assert functions is not None
    before = functions.prefill._cache_size()
    with pytest.raises(ValueError, match=message):
        model.generate(prompt(4), **{**SEARCH, "eos_token_id": 4, "max_new_tokens": 3, **arguments})
    assert functions.prefill._cache_size() == before


@pytest.mark.full
def test_devices_give_what_one_gives(model: PreTrainedModel) -> None:
    spread = AutoModelForCausalLM.from_config(model.config, seed=1, device_map={"tensor": 2, "data": 2})
    settings = {**SEARCH, "max_new_tokens": 8, "eos_token_id": 5, "force_words_ids": [[9, 10], [[1], [2]]]}
    one, many = (new_tokens(m, prompt(9, rows=3), **settings) for m in (model, spread))
    np.testing.assert_array_equal(one, many)
