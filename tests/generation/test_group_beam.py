"""Diverse beam search as users call it, on tiny models with random weights."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from jaxpipe.generation.processors_groups import HammingDiversity
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.step import StepState
from jaxpipe.model import PreTrainedModel
from jaxpipe.sharding.mesh import use_mesh

VOCABULARY = 11
GROUPS: dict[str, Any] = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.5, "pad_token_id": 0}
ASKED = {"return_dict_in_generate": True, "output_scores": True}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    widths = {"hidden_size": 24, "intermediate_size": 40, "vocab_size": VOCABULARY}
    config = AutoConfig.for_model("llama", **heads, **widths, initializer_range=0.5, eos_token_id=None)
    return AutoModelForCausalLM.from_config(config, seed=1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Its token 0 is the letter a, and so on."""
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate("abcdefghijk")}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made


def prompt(length: int, rows: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, VOCABULARY, (rows, length))


def new_tokens(model: PreTrainedModel, ids: np.ndarray, mask: Any = None, **settings: Any) -> np.ndarray:
    return np.asarray(model.generate(ids, mask, **settings))[:, ids.shape[1] :]


def test_a_token_costs_what_earlier_groups_chose() -> None:
    logits = jnp.zeros((4, 6)).at[:, 2].set(-jnp.inf)
    chosen = jnp.array([[1, 1, -1, -1], [2, 5, -1, -1]])
    seen = StepState(jnp.zeros((4, 1), int), jnp.ones((4, 1), bool), jnp.ones(4, int), jnp.int32(0))
    out = np.asarray(HammingDiversity(np.float32(0.5), chosen)(logits, seen))
    first, second = [0, -1, -np.inf, 0, 0, 0], [0, 0, -np.inf, 0, 0, -0.5]
    np.testing.assert_array_equal(out, [first, first, second, second])
    assert HammingDiversity(np.float32(0.5))(logits, seen) is logits


def test_scores_are_those_of_the_returned_sequences(model: PreTrainedModel) -> None:
    """Also of the second group, whose rows of scores hold what the penalty left."""
    ids = prompt(5, rows=3)
    settings = {**GROUPS, "num_return_sequences": 4, "max_new_tokens": 9, "length_penalty": 0.7, "eos_token_id": 4}
    out: Any = model.generate(ids, **settings, **ASKED, output_logits=True)
    lengths = (out.beam_indices >= 0).sum(1)
    assert len(set(lengths)) > 1, "all sequences are of one length; choose another seed"
    new = np.asarray(out.sequences)[:, 5:]
    sums = np.zeros(len(new))
    for i in range(new.shape[1]):
        goes_on = i < lengths
        assert out.scores[i].shape == out.logits[i].shape == (12, VOCABULARY)
        sums += np.where(goes_on, out.scores[i][out.beam_indices[:, i], new[:, i]], 0)
    np.testing.assert_allclose(out.sequences_scores, sums / lengths**0.7, atol=1e-4)
    assert (out.beam_indices // 4 == np.repeat(np.arange(3), 4)[:, None])[out.beam_indices >= 0].all()
    # A sequence stays in its group; both groups have two each.
    groups = [set(row[row >= 0] % 4 // 2) for row in out.beam_indices]
    assert all(len(own) == 1 for own in groups)
    assert [sorted(next(iter(own)) for own in groups[4 * i : 4 * i + 4]) for i in range(3)] == [[0, 0, 1, 1]] * 3
    plain = [jax.nn.log_softmax(x) for x in out.logits]
    differences = np.asarray(plain[0] - out.scores[0]).reshape(3, 2, 2, VOCABULARY)
    np.testing.assert_allclose(differences[:, 0], 0, atol=1e-5)  # the first group pays nothing
    # The two beams of the first group chose two tokens, for each of which the second pays.
    np.testing.assert_allclose(differences[:, 1].sum(-1), 2 * 1.5, atol=1e-4)


@pytest.mark.full
def test_the_first_group_is_a_search_of_its_own(model: PreTrainedModel) -> None:
    ids = prompt(6, rows=2)
    settings = {"max_new_tokens": 8, **ASKED}
    plain: Any = model.generate(ids, num_beams=2, num_return_sequences=2, **settings)
    out: Any = model.generate(ids, **GROUPS | {"diversity_penalty": 1e-3}, num_return_sequences=4, **settings)
    first = out.beam_indices[:, 0] % 4 < 2
    np.testing.assert_array_equal(np.asarray(out.sequences)[first], plain.sequences)
    far = new_tokens(model, ids, **GROUPS | {"diversity_penalty": 1e4}, num_return_sequences=4, max_new_tokens=8)
    for answers in far.reshape(2, 4, 8):
        for step in answers.T:
            assert max(np.unique(step, return_counts=True)[1]) <= 2  # no token in both groups


def test_rows_do_not_depend_on_neighbours_or_padding(model: PreTrainedModel) -> None:
    lengths = (3, 13, 1, 16)
    rows = [prompt(n, seed=n)[0] for n in lengths]
    ids = np.zeros((len(rows), max(lengths)), int)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if i % 2 else slice(max(lengths) - len(row), None)  # padded on either side
        ids[i, place], mask[i, place] = row, 1
    search = {**GROUPS, "num_return_sequences": 3, "max_new_tokens": 12, "eos_token_id": 4}
    together = new_tokens(model, ids, mask, **search)
    for i, row in enumerate(rows):
        alone = new_tokens(model, row[None], **search)
        np.testing.assert_array_equal(together[3 * i : 3 * i + 3, : alone.shape[1]], alone)
        assert (together[3 * i : 3 * i + 3, alone.shape[1] :] == 0).all()


@pytest.mark.full
def test_lengths_and_penalties_of_one_shape_compile_once(model: PreTrainedModel) -> None:
    groups = model._generator.strategies.plain.groups
    assert groups is not None
    shape = {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 1.0}
    warmed = model.warmup(batch_sizes=(2,), prompt_lengths=(20,), max_new_tokens=10, **shape)
    assert set(warmed) == {"prefill 2x32", "decode 2x64"}
    count = [f._cache_size() for f in (groups.prefill, groups.decode)]
    for length, new, penalty, early, eos in ((17, 3, 1.0, True, 3), (32, 10, 0.5, False, None), (25, 7, 2, "never", 9)):
        given = {"max_new_tokens": new, "length_penalty": penalty, "early_stopping": early, "eos_token_id": eos}
        model.generate(prompt(length, rows=2), **shape | {"diversity_penalty": penalty / 3}, **given)
    assert [f._cache_size() for f in (groups.prefill, groups.decode)] == count


def test_a_step_copies_no_cache(model: PreTrainedModel) -> None:
    generator = model._generator
    groups = generator.strategies.plain.groups
    assert groups is not None
    settled = Settled(prompt_length=20, max_new_tokens=90, num_beams=4, num_beam_groups=2, diversity_penalty=1.0)
    with use_mesh(model.mesh):
        prompts = generator.prompts(prompt(20, rows=3), None, model.generation_config, None, {})
        run: Any = generator._search(prompts, settled, range(3), 0)
        compiled = groups.decode.lower(generator.leaves, run.state, run.found, run._choice).compile()
    keys = run.state.cache.layers[0].keys
    assert keys.shape[:2] == (16, 128)
    shape = ",".join(map(str, keys.shape))
    assert not re.findall(rf"= f32\[{shape}\]\S* copy\(", compiled.as_text())
    cache = sum(x.nbytes for x in jax.tree.leaves(run.state.cache.layers))
    assert compiled.memory_analysis().alias_size_in_bytes >= cache


def test_criteria_and_stop_strings_end_candidates(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    ids = prompt(4, rows=2)
    settings = {**GROUPS, "num_return_sequences": 4, "max_new_tokens": 9}
    seen = []

    def fours(input_ids: np.ndarray, scores: object) -> np.ndarray:
        seen.append(input_ids.shape)
        return input_ids[:, -1] == 4

    by_host = new_tokens(model, ids, stopping_criteria=[fours], **settings)
    np.testing.assert_array_equal(by_host, new_tokens(model, ids, eos_token_id=4, **settings))
    assert (by_host == 4).any() and (by_host[:, -1] != 4).any()
    assert seen[:3] == [(2 * 4, 5), (2 * 4, 5), (2 * 4, 6)]  # each group's candidates by themselves
    by_text = new_tokens(model, ids, stop_strings="e", tokenizer=tokenizer, **settings)
    np.testing.assert_array_equal(by_text, by_host)


def test_time_that_is_up_ends_all_groups(model: PreTrainedModel) -> None:
    out = new_tokens(model, prompt(4, rows=2), **GROUPS, num_return_sequences=4, max_new_tokens=9, max_time=0)
    assert out.shape == (8, 1)


@pytest.mark.full
def test_allowed_tokens_are_asked_for_by_group(model: PreTrainedModel) -> None:
    asked = set()

    def odd(number: int, ids: np.ndarray) -> list[int]:
        asked.add((number, len(ids)))
        return [1, 3, 5, 7, 9]

    settings = {**GROUPS, "num_return_sequences": 4, "max_new_tokens": 3}
    out = new_tokens(model, prompt(4, rows=2), prefix_allowed_tokens_fn=odd, **settings)
    assert (out % 2 == 1).all() and asked == {(i, n) for i in (0, 1) for n in (4, 5, 6)}
    one = new_tokens(model, prompt(4), prefix_allowed_tokens_fn=lambda i, ids: [7], **settings)
    assert one.shape == (4, 3) and (one[0] == 7).all()  # there is one sequence, and others have no probability


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beam_groups": 0}, "num_beam_groups=0.*an integer of at least 1"),
        ({"num_beam_groups": 2.5}, "num_beam_groups=2.5"),
        ({"num_beam_groups": 3}, "num_beam_groups=3 does not divide num_beams=4.*multiple of 3"),
        ({"num_beam_groups": 8}, "num_beam_groups=8 does not divide num_beams=4"),
        ({"num_beams": 1}, "num_beam_groups=2.*at most num_beams=1"),
        ({"diversity_penalty": 0.0}, "num_beam_groups=2 with diversity_penalty=0.0.*above 0"),
        ({"diversity_penalty": None}, "num_beam_groups=2 with diversity_penalty=None"),
        ({"diversity_penalty": -1.0}, "diversity_penalty=-1.0.*at least 0"),
        ({"diversity_penalty": float("inf")}, "diversity_penalty=inf"),
        ({"diversity_penalty": "much"}, "diversity_penalty='much'"),
        ({"num_beam_groups": 1}, "diversity_penalty=1.5 .*num_beam_groups is 1"),
        ({"do_sample": True}, "num_beam_groups=2 with do_sample=True"),
        ({"num_return_sequences": 5}, "num_return_sequences=5 is more than num_beams=4"),
        ({"force_words_ids": [[1]]}, "force_words_ids with num_beam_groups=2"),
    ],
    ids=str,
)
def test_bad_arguments_raise_before_anything_compiles(
    model: PreTrainedModel, arguments: dict[str, Any], message: str
) -> None:
    groups = model._generator.strategies.plain.groups
    assert groups is not None
    before = groups.prefill._cache_size()
    with pytest.raises(ValueError, match=message):
        model.generate(prompt(4), **{**GROUPS, **arguments})
    assert groups.prefill._cache_size() == before


@pytest.mark.full
def test_groups_of_the_models_own_config_need_beams(model: PreTrainedModel) -> None:
    """A model whose generation_config.json asks for groups decodes greedily where the call asks for one beam."""
    ids = prompt(4)
    greedy = new_tokens(model, ids, max_new_tokens=4)
    model.generation_config.update(num_beams=4, num_beam_groups=2, diversity_penalty=1.5)
    try:
        np.testing.assert_array_equal(new_tokens(model, ids, num_beams=1, max_new_tokens=4), greedy)
        two = {"num_beams": 2, "num_beam_groups": 1, "max_new_tokens": 4}
        assert new_tokens(model, ids, **two).shape == (1, 4)
    finally:
        model.generation_config.update(num_beams=None, num_beam_groups=None, diversity_penalty=None)


@pytest.mark.full
def test_devices_give_what_one_gives() -> None:
    shape = {"d_model": 24, "d_kv": 7, "num_heads": 3, "d_ff": 40, "num_layers": 2, "vocab_size": 60}
    config = AutoConfig.for_model("t5", **shape, decoder_start_token_id=0, eos_token_id=None, tie_word_embeddings=False)
    settings = {**GROUPS, "max_new_tokens": 8, "eos_token_id": 5}
    outs = [
        np.asarray(
            AutoModelForSeq2SeqLM.from_config(config, seed=1, device_map=mesh).generate(prompt(9, 3), **settings)
        )
        for mesh in (None, {"tensor": 2, "data": 2})
    ]
    np.testing.assert_array_equal(*outs)
