"""Beam search and beam sampling as users call them, on tiny models with random weights."""

import itertools
import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from jaxpipe.generation.beam import make_beams
from jaxpipe.generation.beam_cache import common_slots, reorder_cache, repeat_cache
from jaxpipe.generation.loop import read_prompts
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.streamers import BaseStreamer
from jaxpipe.model import PreTrainedModel
from jaxpipe.nn.cache import Cache
from jaxpipe.nn.cross_attention import EncoderDecoderCache, Memory
from jaxpipe.nn.ssm import SSMShape
from jaxpipe.sharding.mesh import use_mesh

VOCABULARY = 11


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    widths = {"hidden_size": 24, "intermediate_size": 40, "vocab_size": VOCABULARY}
    config = AutoConfig.for_model("llama", **heads, **widths, initializer_range=0.5, eos_token_id=None)
    return AutoModelForCausalLM.from_config(config, seed=1)


@pytest.fixture(scope="module")
def t5() -> PreTrainedModel:
    shape = {"d_model": 24, "d_kv": 7, "num_heads": 3, "d_ff": 40, "num_layers": 2, "vocab_size": 60}
    config = AutoConfig.for_model("t5", **shape, decoder_start_token_id=0, eos_token_id=None, tie_word_embeddings=False)
    return AutoModelForSeq2SeqLM.from_config(config, seed=1)


def prompt(length: int, rows: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, VOCABULARY, (rows, length))


def new_tokens(model: PreTrainedModel, ids: np.ndarray, mask: Any = None, **settings: Any) -> np.ndarray:
    return np.asarray(model.generate(ids, mask, **settings))[:, ids.shape[1] :]


def log_probabilities(model: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    """Of every token after the one before it, (B, T - 1)."""
    out: Any = model(ids)
    logits = jax.nn.log_softmax(np.asarray(out.logits)[:, :-1])
    return np.take_along_axis(np.asarray(logits), ids[:, 1:, None], axis=2)[..., 0]


def test_a_search_that_forgets_nothing_finds_the_likeliest_of_all_sequences(model: PreTrainedModel) -> None:
    ids = prompt(5, rows=2)
    out: Any = model.generate(
        ids,
        num_beams=VOCABULARY,
        num_return_sequences=7,
        max_new_tokens=2,
        return_dict_in_generate=True,
        output_scores=True,
    )
    pairs = np.array(list(itertools.product(range(VOCABULARY), repeat=2)))
    for i, row in enumerate(ids):
        sums = log_probabilities(model, np.concatenate([np.tile(row, (len(pairs), 1)), pairs], axis=1))[:, -2:].sum(1)
        best = np.argsort(-sums)[:7]
        np.testing.assert_array_equal(np.asarray(out.sequences)[7 * i : 7 * i + 7, 5:], pairs[best])
        np.testing.assert_allclose(out.sequences_scores[7 * i : 7 * i + 7], sums[best] / 2, atol=1e-5)


def test_scores_are_those_of_the_returned_sequences(model: PreTrainedModel) -> None:
    ids = prompt(5, rows=3)
    settings = {
        "num_beams": 3,
        "num_return_sequences": 2,
        "max_new_tokens": 9,
        "length_penalty": 0.7,
        "pad_token_id": 0,
    }
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out: Any = model.generate(ids, eos_token_id=4, **settings, **asked)
    lengths = (out.beam_indices >= 0).sum(1)
    assert len(set(lengths)) > 1, "all sequences are of one length; choose another seed"
    whole = np.asarray(out.sequences)
    own = log_probabilities(model, whole)[:, 4:]
    rows = np.arange(len(own))
    for i in range(own.shape[1]):
        goes_on = i < lengths
        chosen = out.scores[i][out.beam_indices[:, i], whole[:, 5 + i]]
        np.testing.assert_allclose(chosen[goes_on], own[goes_on, i], atol=1e-4)
        assert out.scores[i].shape == out.logits[i].shape == (9, VOCABULARY)
        np.testing.assert_allclose(out.scores[i], jax.nn.log_softmax(out.logits[i]), atol=1e-5)
    sums = np.where(np.arange(own.shape[1]) < lengths[:, None], own, 0).sum(1)
    np.testing.assert_allclose(out.sequences_scores, sums / lengths**0.7, atol=1e-4)
    assert (whole[rows, 4 + lengths] == 4)[lengths < 9].all()
    assert (whole[:, 5:][np.arange(own.shape[1]) >= lengths[:, None]] == 0).all()
    plain: Any = model.generate(ids, eos_token_id=4, return_dict_in_generate=True, **settings)
    assert plain.keys() == ["sequences", "beam_indices"]


@pytest.mark.parametrize("settings", [{"do_sample": False}, {"do_sample": True, "seed": 5, "temperature": 1.3}])
def test_rows_do_not_depend_on_neighbours_or_padding(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    lengths = (3, 13, 1, 16, 9)
    rows = [prompt(n, seed=n)[0] for n in lengths]
    ids = np.zeros((len(rows), max(lengths)), int)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if i % 2 else slice(max(lengths) - len(row), None)  # padded on either side
        ids[i, place], mask[i, place] = row, 1
    search = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 12, "eos_token_id": 4, "pad_token_id": 0}
    together = new_tokens(model, ids, mask, **search, **settings)
    ended = 0
    for i, row in enumerate(rows):
        alone = new_tokens(model, row[None], item_indices=[i], **search, **settings)
        np.testing.assert_array_equal(together[2 * i : 2 * i + 2, : alone.shape[1]], alone)
        assert (together[2 * i : 2 * i + 2, alone.shape[1] :] == 0).all()
        ended += alone.shape[1] < together.shape[1]
    assert ended, "all rows end together; choose another seed"


def test_beam_samples_repeat_by_seed(model: PreTrainedModel) -> None:
    draw = {"do_sample": True, "num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 8, "temperature": 3.0}
    ids = prompt(4)
    first = new_tokens(model, ids, seed=3, **draw)
    np.testing.assert_array_equal(first, new_tokens(model, ids, seed=3, **draw))
    assert (first != new_tokens(model, ids, seed=4, **draw)).any()
    assert (first != new_tokens(model, ids, seed=3, item_indices=[1], **draw)).any()
    assert (new_tokens(model, ids, **draw) != new_tokens(model, ids, **draw)).any()


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "seed": 5}], ids=str)
def test_one_beam_is_no_search(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    ids = prompt(4, rows=2)
    one = new_tokens(model, ids, num_beams=1, max_new_tokens=6, **settings)
    np.testing.assert_array_equal(one, new_tokens(model, ids, max_new_tokens=6, **settings))


def test_beam_samples_have_the_probabilities_of_drawing_without_replacement(model: PreTrainedModel) -> None:
    """With one new token, the two returned are the first two of the candidates that are drawn from all tokens."""
    number, temperature = 4096, 2.0
    ids = prompt(6)
    draws = {"do_sample": True, "num_beams": 2, "num_return_sequences": 2, "top_k": 0, "temperature": temperature}
    out = new_tokens(model, np.tile(ids, (number, 1)), max_new_tokens=1, seed=0, **draws).reshape(number, 2)
    logits: Any = model(ids)["logits"]
    p = np.exp(np.asarray(logits, np.float64)[0, -1] / temperature)
    p /= p.sum()
    assert (p[out[:, 0]] >= p[out[:, 1]]).all() and (out[:, 0] != out[:, 1]).all()
    pairs = np.array([(i, j) for i, j in itertools.permutations(range(VOCABULARY), 2) if p[i] > p[j]])
    a, b = p[pairs[:, 0]], p[pairs[:, 1]]
    expected = number * (a * b / (1 - a) + a * b / (1 - b))
    counts = np.array([((out == pair).all(axis=1)).sum() for pair in pairs])
    assert counts.sum() == number
    common = expected > 5
    chi_square = ((counts - expected)[common] ** 2 / expected[common]).sum()
    degrees = common.sum()
    assert degrees > 8 and chi_square < degrees + 4 * np.sqrt(2 * degrees)


def test_each_prompt_is_read_once(model: PreTrainedModel) -> None:
    shapes = []

    def read(functional: Any, leaves: Any, inputs: Any, prompts: Any, *rest: Any) -> Any:
        shapes.append(prompts.shape)
        return read_prompts(functional, leaves, inputs, prompts, *rest)

    generator = model._generator
    settled = Settled(prompt_length=5, max_new_tokens=4, num_beams=3)
    with use_mesh(model.mesh):
        prompts = generator.prompts(prompt(5, rows=4), None, model.generation_config, None, {})
        run = generator._search(prompts, settled, range(4), 0)
        prefill = make_beams(generator.functional, read).prefill
        state, _ = prefill.eval_shape(generator.leaves, *run.packed.arrays, run._choice, run.packed.slots, 0)
    assert shapes == [(4, 16)]
    assert state.cache.layers[0].keys.shape[0] == state.tokens.shape[0] == 12


def caches(rows: int) -> Cache:
    """One with layers of every kind, each of whose rows holds its own numbers."""
    layers = [(2, 3), SSMShape(width=4, channels=5, heads=2, head_dim=3, state_size=2), (1, 4, 2)]
    cache = EncoderDecoderCache.empty(layers, rows, 192, np.dtype(np.float32))
    fill = lambda x: jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape)  # noqa: E731
    memory = Memory(EncoderDecoderCache.empty([(2, 3)], rows, 8, np.dtype(np.float32)).layers, None)
    return EncoderDecoderCache(
        jax.tree.map(fill, cache.layers), cache.positions, jnp.int32(130), False, jax.tree.map(fill, memory)
    )


def test_reordering_moves_what_was_written_of_every_kind_of_cache() -> None:
    parents = np.array([[2, 0, 0], [1, 1, 2]])
    rows = np.concatenate([parents[0], 3 + parents[1]])
    cache: Any = caches(6)
    moved: Any = jax.jit(reorder_cache)(cache, parents, 70)
    for before, after in ((cache.layers[0], moved.layers[0]), (cache.layers[2], moved.layers[2])):
        for name in ("keys", "values"):
            x, y = np.asarray(getattr(before, name)), np.asarray(getattr(after, name))
            np.testing.assert_array_equal(y[:, 70:130], x[rows, 70:130])
            np.testing.assert_array_equal(y[:, :64], x[:, :64])  # in chunks of 64; before 70 beams are alike
    np.testing.assert_array_equal(moved.layers[1].window, np.asarray(cache.layers[1].window)[rows])
    np.testing.assert_array_equal(moved.layers[1].state, np.asarray(cache.layers[1].state)[rows])
    for name in ("memory", "positions", "slot"):
        jax.tree.map(np.testing.assert_array_equal, getattr(cache, name), getattr(moved, name))


def test_what_beams_have_in_common_is_not_moved() -> None:
    """Random searches: the cache is what moving all slots in every step makes it, and little of it is moved."""
    rng = np.random.default_rng(0)
    batch, beams, width, slots = 2, 3, 3, 192
    empty = Cache.empty([(1, 1)], batch * beams, slots, np.dtype(np.float32))
    origins = np.full((batch, beams, slots), -1)
    wanted = np.zeros((batch * beams, slots), np.float32)
    wanted[:, :width] = np.repeat(rng.random((batch, width)), beams, axis=0)
    found, first, moved = wanted.copy(), jnp.int32(width), []
    reorder, common = jax.jit(reorder_cache), jax.jit(common_slots)
    for slot in range(width, 160):
        parents = np.sort(rng.integers(0, beams, (batch, beams)) if slot % 3 else np.tile(np.arange(beams), (batch, 1)))
        rows = (parents + beams * np.arange(batch)[:, None]).ravel()
        origins = np.take_along_axis(origins, parents[:, :, None], axis=1)
        origins[:, :, slot] = rows.reshape(batch, beams)
        layer = replace(empty.layers[0], keys=jnp.asarray(found)[:, :, None, None])
        cache = reorder(replace(empty, layers=(layer,), slot=jnp.int32(slot)), parents, first)
        found, wanted = np.array(cache.layers[0].keys[:, :, 0, 0]), wanted[rows]
        np.testing.assert_array_equal(found[:, :slot], wanted[:, :slot])
        first = common(origins, jnp.int32(slot))
        by_prompt = wanted[:, : int(first)].reshape(batch, beams, -1)
        np.testing.assert_array_equal(by_prompt, np.broadcast_to(by_prompt[:, :1], by_prompt.shape))
        moved.append(slot - int(first))
        found[:, slot] = wanted[:, slot] = rng.random(batch * beams)  # the new tokens'
    assert np.mean(moved) < 20 and max(moved) > 3


def test_repeating_gives_every_beam_what_its_prompt_has() -> None:
    cache: Any = caches(2)
    repeated: Any = repeat_cache(cache, lambda x: jnp.repeat(x, 3, axis=0))
    assert repeated.slot == cache.slot
    for name in ("layers", "positions", "memory"):
        for x, y in zip(*(jax.tree.leaves(getattr(c, name)) for c in (cache, repeated)), strict=True):
            np.testing.assert_array_equal(y, np.repeat(x, 3, axis=0))


def test_lengths_penalties_and_end_tokens_of_one_shape_compile_once(t5: PreTrainedModel) -> None:
    beams = t5._generator.beams
    warmed = t5.warmup(batch_sizes=(2,), prompt_lengths=(20,), max_new_tokens=10, num_beams=2)
    assert set(warmed) == {"prefill 2x32", "decode 2x64"}
    count = [f._cache_size() for f in (beams.prefill, beams.decode)]
    assert count == [1, 1]
    for length, new, penalty, early, eos in ((17, 3, 1.0, True, 3), (32, 10, 0.5, False, None), (25, 7, 2, "never", 9)):
        given = {"max_new_tokens": new, "length_penalty": penalty, "early_stopping": early, "eos_token_id": eos}
        t5.generate(prompt(length, rows=2), num_beams=2, **given)
    assert [f._cache_size() for f in (beams.prefill, beams.decode)] == count


def test_a_step_copies_no_cache(model: PreTrainedModel) -> None:
    generator = model._generator
    settled = Settled(prompt_length=20, max_new_tokens=90, num_beams=2)
    with use_mesh(model.mesh):
        prompts = generator.prompts(prompt(20, rows=3), None, model.generation_config, None, {})
        run = generator._search(prompts, settled, range(3), 0)
        compiled = generator.beams.decode.lower(generator.leaves, run.state, run.found, run._choice).compile()
    keys = run.state.cache.layers[0].keys
    assert keys.shape[:2] == (8, 128)
    shape = ",".join(map(str, keys.shape))
    assert not re.findall(rf"= f32\[{shape}\]\S* copy\(", compiled.as_text())
    cache = sum(x.nbytes for x in jax.tree.leaves(run.state.cache.layers))
    assert compiled.memory_analysis().alias_size_in_bytes >= cache


def test_criteria_end_candidates(model: PreTrainedModel) -> None:
    ids = prompt(4, rows=2)
    settings = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 9, "pad_token_id": 0}
    seen = []

    def fours(input_ids: np.ndarray, scores: object) -> np.ndarray:
        seen.append(input_ids.shape)
        return input_ids[:, -1] == 4

    by_host = new_tokens(model, ids, stopping_criteria=[fours], **settings)
    np.testing.assert_array_equal(by_host, new_tokens(model, ids, eos_token_id=4, **settings))
    assert (by_host == 4).any() and (by_host[:, -1] != 4).any()
    assert seen[0] == (2 * 6, 5) and [shape[1] for shape in seen] == list(range(5, 5 + len(seen)))


def test_stop_strings_end_candidates(model: PreTrainedModel) -> None:
    """Also across tokens, and where the prompt has the text's beginning."""
    vocabulary = {letter: i for i, letter in enumerate("abcdefghijk")}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    ids = prompt(4, rows=2)
    settings = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 9, "pad_token_id": 0}
    by_text = new_tokens(model, ids, stop_strings="e", tokenizer=tokenizer, **settings)
    np.testing.assert_array_equal(by_text, new_tokens(model, ids, eos_token_id=4, **settings))
    free = new_tokens(model, ids, **settings)
    across, bordering = free[0, 2:4], np.array([ids[1, -1], free[3, 0]])  # what the best beams put out
    strings = ["".join("abcdefghijk"[i] for i in pair) for pair in (across, bordering)]

    def either(input_ids: np.ndarray, scores: object) -> np.ndarray:
        return (input_ids[:, -2:] == across).all(axis=1) | (input_ids[:, -2:] == bordering).all(axis=1)

    by_text = new_tokens(model, ids, stop_strings=strings, tokenizer=tokenizer, **settings)
    np.testing.assert_array_equal(by_text, new_tokens(model, ids, stopping_criteria=[either], **settings))
    assert (by_text != free[:, : by_text.shape[1]]).any()
    assert any((row[1:] == 0).all() for row in by_text[3:])


def test_time_that_is_up_ends_all_beams(model: PreTrainedModel) -> None:
    assert new_tokens(model, prompt(4, rows=2), num_beams=2, max_new_tokens=9, max_time=0).shape == (2, 1)


class Streamer(BaseStreamer):
    def put(self, value: np.ndarray) -> None:
        raise AssertionError("nothing is streamed")

    def end(self) -> None:
        raise AssertionError("nothing is streamed")

    def __repr__(self) -> str:
        return "Streamer()"  # the same in every process, as it is part of a test's name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 0}, "num_beams=0.*an integer of at least 1"),
        ({"num_beams": 2.5}, "num_beams=2.5"),
        ({"num_beams": "2"}, "num_beams='2'"),
        ({"num_return_sequences": 4}, "num_return_sequences=4 is more than num_beams=3"),
        ({"num_return_sequences": 4, "do_sample": True}, "num_return_sequences=4 is more than num_beams=3"),
        ({"num_return_sequences": 2, "num_beams": 1}, r"num_return_sequences=2 with greedy decoding \(num_beams=1"),
        ({"early_stopping": "soon"}, "early_stopping='soon'.*\"never\""),
        ({"early_stopping": 1}, "early_stopping=1"),
        ({"length_penalty": float("nan")}, "length_penalty=nan.*finite"),
        ({"length_penalty": "long"}, "length_penalty='long'"),
        ({"length_penalty": 400.0}, "length_penalty=400.0 with max_new_tokens=20"),
        ({"length_penalty": -400.0}, "length_penalty=-400.0 with max_new_tokens=20"),
        ({"eos_token_id": list(range(11))}, "num_beams=3 with 11 tokens in eos_token_id needs 12 .* has 11 tokens"),
        ({"streamer": Streamer()}, "streamer= cannot be used with num_beams=3"),
        ({"do_sample": True, "temperature": 0.0}, "temperature=0.0"),
    ],
    ids=str,
)
def test_bad_arguments_raise_before_anything_compiles(
    model: PreTrainedModel, arguments: dict[str, Any], message: str
) -> None:
    beams = model._generator.beams
    before = beams.prefill._cache_size()
    with pytest.raises(ValueError, match=message):
        model.generate(prompt(4), **{"num_beams": 3, **arguments})
    assert beams.prefill._cache_size() == before


@pytest.mark.parametrize(
    ("mesh", "rows", "sampled"),
    [
        ({"tensor": 2, "data": 2}, 3, {}),
        pytest.param({"tensor": 2, "data": 2}, 1, {"do_sample": True, "seed": 1}, marks=pytest.mark.full),
        pytest.param({"fsdp": 8}, 3, {}, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_devices_give_what_one_gives(
    t5: PreTrainedModel, mesh: dict[str, int], rows: int, sampled: dict[str, Any]
) -> None:
    spread = AutoModelForSeq2SeqLM.from_config(t5.config, seed=1, device_map=mesh)
    settings = {"num_beams": 2, "max_new_tokens": 8, "eos_token_id": 5, "pad_token_id": 0, **sampled}
    one, many = (np.asarray(m.generate(prompt(9, rows=rows), **settings)) for m in (t5, spread))
    np.testing.assert_array_equal(one, many)
