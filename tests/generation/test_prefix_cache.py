"""Prompts that begin with stored blocks of tokens read the rest alone, and give what they give without them."""

from typing import Any

import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForSeq2SeqLM
from jaxpipe.generation.prefix_cache import PrefixCache
from jaxpipe.model import PreTrainedModel
from tests.generation.continued import BOTH, CASES, LENGTHS, VOCABULARY, ask, made, padded, same

CUT = [name for name in CASES if name != "mamba2"]
QUICK = ("llama",)
ARCHITECTURES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.full]) for name in CUT]


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return made("llama")


def counts(cache: PrefixCache) -> tuple[int, int, int]:
    return cache.hits, cache.misses, cache.tokens_saved


def with_beginning(beginning: np.ndarray, tails: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of one beginning (n,) and tails of their own."""
    ids, mask = padded(tuple(len(beginning) + tail for tail in tails), seed=seed)
    for row, keep in zip(ids, mask, strict=True):
        start = int(np.argmax(keep))
        row[start : start + len(beginning)] = beginning
    return ids, mask


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_shared_beginning_is_read_once(name: str) -> None:
    model, cache = made(name), PrefixCache("10MB", block_size=8)
    beginning = padded((20,), seed=9)[0][0]
    one = with_beginning(beginning, (11,), 1)
    same(ask(model, *one, prefix_cache=cache), ask(model, *one))
    assert counts(cache) == (0, 1, 0) and len(cache) == (31 + 5) // 8
    # Two whole blocks of the beginning, for rows of several lengths.
    several = with_beginning(beginning, (14, 2, 7), 2)
    same(ask(model, *several, prefix_cache=cache), ask(model, *several))
    assert counts(cache) == (3, 1, 3 * 16)
    # The same prompt again: all of its blocks but the last token's.
    same(ask(model, *one, prefix_cache=cache), ask(model, *one))
    assert counts(cache) == (4, 1, 3 * 16 + 24)


@pytest.mark.full
def test_the_answer_is_stored_too(llama: PreTrainedModel) -> None:
    cache = PrefixCache("10MB", block_size=8)
    ids, mask = padded(LENGTHS)
    first = ask(llama, ids, mask, prefix_cache=cache, max_new_tokens=20)
    said = np.full((3, 4), 7)
    longer = np.concatenate([np.asarray(first.sequences), said], axis=1)
    mask = np.concatenate([mask, np.ones((3, 24), int)], axis=1)
    same(ask(llama, longer, mask, prefix_cache=cache), ask(llama, longer, mask))
    assert counts(cache) == (3, 3, 3 * 24)  # 5 + 19 tokens of the shortest row
    # Alone, the longest has more.
    same(ask(llama, longer[:1], mask[:1], prefix_cache=cache), ask(llama, longer[:1], mask[:1]))
    assert counts(cache) == (4, 3, 3 * 24 + 56)


def test_a_row_without_stored_blocks_lets_all_be_read(llama: PreTrainedModel) -> None:
    cache = PrefixCache("10MB", block_size=8)
    ids, mask = padded((30, 30))
    ask(llama, ids[:1], mask[:1], prefix_cache=cache)
    same(ask(llama, ids, mask, prefix_cache=cache), ask(llama, ids, mask))
    assert counts(cache) == (0, 3, 0)
    # Rows that begin with blocks of their own.
    same(ask(llama, ids, mask, prefix_cache=cache, prefill_chunk_size=4), ask(llama, ids, mask))
    assert counts(cache) == (2, 3, 2 * 24)


def test_a_block_counts_with_all_that_stands_before_it(llama: PreTrainedModel) -> None:
    cache = PrefixCache("10MB", block_size=8)
    ids, _ = padded((33,))
    ask(llama, ids, None, prefix_cache=cache)
    changed = ids.copy()
    changed[0, 3] = changed[0, 3] % (VOCABULARY - 1) + 1
    same(ask(llama, changed, None, prefix_cache=cache), ask(llama, changed, None))
    assert counts(cache) == (0, 2, 0)
    changed[0, :3], changed[0, 20] = ids[0, :3], changed[0, 20] % (VOCABULARY - 1) + 1
    changed[0, 3] = ids[0, 3]
    same(ask(llama, changed, None, prefix_cache=cache), ask(llama, changed, None))
    assert counts(cache) == (1, 2, 16)


def test_memory_is_bounded_and_the_least_used_goes_first(llama: PreTrainedModel) -> None:
    probe = PrefixCache("10MB", block_size=8)
    ask(llama, padded((9,))[0], None, prefix_cache=probe, max_new_tokens=1)
    one = probe.nbytes
    assert len(probe) == 1 and one == 2 * 2 * 8 * 2 * 8 * 4  # layers, keys and values, tokens, heads, width, bytes

    cache = PrefixCache(5 * one, block_size=8)
    prompts = [padded((24,), seed=seed)[0] for seed in range(3)]
    for ids in prompts[:2]:  # 3 blocks each: the last block of the first gives way
        ask(llama, ids, None, prefix_cache=cache, max_new_tokens=1)
    assert len(cache) == 5 and cache.nbytes == 5 * one
    ask(llama, prompts[0], None, prefix_cache=cache, max_new_tokens=1)
    assert cache.tokens_saved == 16
    ask(llama, prompts[2], None, prefix_cache=cache, max_new_tokens=1)
    before = cache.tokens_saved
    ask(llama, prompts[1], None, prefix_cache=cache, max_new_tokens=1)  # used the longest time ago
    assert cache.tokens_saved == before and cache.nbytes <= 5 * one

    # A prompt of more blocks than there is room for keeps its first ones.
    small = PrefixCache(2 * one + 1, block_size=8)
    ids = padded((50,))[0]
    for _ in range(2):
        same(ask(llama, ids, None, prefix_cache=small), ask(llama, ids, None))
    assert len(small) == 2 and small.tokens_saved == 16
    small.clear()
    assert len(small) == small.nbytes == 0
    assert "0 blocks of 8 tokens" in repr(small)


@pytest.mark.full
def test_beams_read_and_store_their_prompts(llama: PreTrainedModel) -> None:
    cache = PrefixCache("10MB", block_size=8)
    ids, mask = padded((30, 19))
    given: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6}
    whole = llama.generate(ids, mask, **given)
    for _ in range(2):
        np.testing.assert_array_equal(llama.generate(ids, mask, prefix_cache=cache, **given), whole)
    assert counts(cache) == (2, 2, 2 * 16)
    same(ask(llama, ids, mask, prefix_cache=cache), ask(llama, ids, mask))
    assert cache.hits == 4


@pytest.mark.full
def test_a_call_that_goes_on_from_a_cache_stores_as_well(llama: PreTrainedModel) -> None:
    cache = PrefixCache("10MB", block_size=8)
    ids, _ = padded((30,))
    first = ask(llama, ids, None)
    longer = np.concatenate([np.asarray(first.sequences), [[5, 6, 7]]], axis=1)
    same(ask(llama, longer, None, past_key_values=first.past_key_values, prefix_cache=cache), ask(llama, longer, None))
    assert counts(cache) == (0, 0, 0) and len(cache) == (39 + 5) // 8
    same(ask(llama, longer, None, prefix_cache=cache), ask(llama, longer, None))
    assert counts(cache) == (1, 0, 32)


@pytest.mark.full
def test_kinds_of_caches_do_not_mix(llama: PreTrainedModel) -> None:
    cache = PrefixCache("10MB", block_size=8)
    ids, _ = padded((30,))
    ask(llama, ids, None, prefix_cache=cache)
    quantised = ask(llama, ids, None, prefix_cache=cache, cache_implementation="quantized")
    assert counts(cache) == (0, 2, 0)
    again = ask(llama, ids, None, prefix_cache=cache, cache_implementation="quantized")
    assert cache.hits == 1
    np.testing.assert_allclose(again.logits[0], quantised.logits[0], atol=0.1 * np.abs(quantised.logits[0]).max())


@pytest.mark.full
def test_a_mesh_shares_its_blocks() -> None:
    model = made("llama", device_map={"data": 2, "tensor": 2})
    cache = PrefixCache("10MB", block_size=8)
    ids, mask = padded((30, 25, 17))
    for _ in range(2):
        same(ask(model, ids, mask, prefix_cache=cache), ask(model, ids, mask))
    assert counts(cache) == (3, 3, 3 * 16)


def test_bad_arguments(llama: PreTrainedModel) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"max_bytes": 0}, "max_bytes=0"),
        ({"max_bytes": "1MB", "block_size": 0}, "block_size=0"),
        ({"max_bytes": "many"}, "max_bytes"),
    )
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            PrefixCache(**arguments)
    ids, _ = padded((20,))
    with pytest.raises(TypeError, match="prefix_cache= takes a PrefixCache, not int"):
        llama.generate(ids, prefix_cache=3)
    cache = PrefixCache("1MB")
    cache.bind(llama._generator.reader)
    with pytest.raises(ValueError, match="prefix_cache holds keys and values of another model"):
        made("llama", seed=2).generate(ids, prefix_cache=cache, max_new_tokens=3)
    with pytest.raises(ValueError, match=r"prefix_cache= cannot be used with 'mamba2'"):
        made("mamba2").generate(ids, prefix_cache=PrefixCache("1MB"), max_new_tokens=3)
    t5 = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **BOTH), seed=0)
    with pytest.raises(ValueError, match=r"prefix_cache= is for decoders"):
        t5.generate(ids, prefix_cache=PrefixCache("1MB"))
