"""A call goes on from the cache that an earlier call returned, and reads only what is new."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForSeq2SeqLM
from jaxpipe.generation.kept import LastConversation, PastKeyValues
from jaxpipe.model import PreTrainedModel
from tests.generation.continued import BOTH, CASES, LENGTHS, VOCABULARY, ask, made, padded, same

CUT = [name for name in CASES if name != "mamba2"]
QUICK = ("llama", "gemma3_text")
ARCHITECTURES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.full]) for name in CUT]


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return made("llama")


class Reads:
    """Counts the columns that a model's chunks read."""

    def __init__(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch):
        reader = model._generator.reader
        assert reader is not None
        self.columns: list[tuple[int, int]] = []
        read = reader.read_chunk

        def counted(leaves: Any, filled: Any, ids: Any, lengths: Any, start: Any, size: int) -> Any:
            self.columns.append((int(start), int(start) + size))
            return read(leaves, filled, ids, lengths, start, size)

        monkeypatch.setattr(reader, "read_chunk", counted)


def turn(out: Any, mask: np.ndarray, new: int = 9, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """What an answer holds, and new tokens of a next turn behind it; with the mask."""
    sequences = np.asarray(out.sequences)
    said = np.random.default_rng(seed).integers(1, VOCABULARY, (len(sequences), new))
    ids = np.concatenate([sequences, said], axis=1)
    return ids, np.concatenate([mask, np.ones((len(ids), ids.shape[1] - mask.shape[1]), int)], axis=1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_next_turn_equals_one_without_a_cache(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(name)
    for lengths in ((30,), LENGTHS) if name == "llama" else (LENGTHS,):
        ids, mask = padded(lengths)
        first = ask(model, ids, mask)
        ids, mask = turn(first, mask)
        whole = ask(model, ids, mask)
        reads = Reads(model, monkeypatch)
        second = ask(model, ids, mask, past_key_values=first.past_key_values)
        same(second, whole)
        # The last token of an answer was chosen, and never read.
        assert reads.columns == [(min(lengths) + 5, min(lengths) + 5 + reads.columns[0][1] - reads.columns[0][0])]
        assert second.past_key_values.lengths == [n + 6 + 9 + 5 for n in lengths]
        # And a third turn, on a cache that grows.
        ids, mask = turn(second, mask, new=40)
        same(ask(model, ids, mask, past_key_values=second.past_key_values), ask(model, ids, mask))


def test_it_stays_valid_and_serves_several_calls(llama: PreTrainedModel) -> None:
    ids, mask = padded(LENGTHS)
    first = ask(llama, ids, mask)
    past = first.past_key_values
    assert isinstance(past, PastKeyValues)
    for seed in (1, 2):
        longer, longer_mask = turn(first, mask, seed=seed)
        for settings in ({"prefill_chunk_size": 4}, {"do_sample": True, "seed": 3}):
            whole = ask(llama, longer, longer_mask, **settings)
            same(ask(llama, longer, longer_mask, past_key_values=past, **settings), whole)
    assert past.lengths == [n + 5 for n in LENGTHS] and past.get_seq_length() == max(LENGTHS) + 5


def test_the_same_tokens_again_read_the_last_one(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, _ = padded((20,))
    first = ask(llama, ids, None)
    past = first.past_key_values
    past.crop(-5)
    assert past.lengths == [20]
    reads = Reads(llama, monkeypatch)
    same(ask(llama, ids, None, past_key_values=past), first)
    assert [start for start, _ in reads.columns] == [19]


@pytest.mark.full
def test_cropping_selecting_and_repeating_rows(llama: PreTrainedModel) -> None:
    ids, mask = padded(LENGTHS)
    first = ask(llama, ids, mask)
    past = first.past_key_values.copy()
    past.crop(4)
    assert past.lengths == [4, 4, 4]
    same(ask(llama, ids, mask, past_key_values=past), first)

    past = first.past_key_values.copy()
    past.batch_select_indices([2, 0])
    longer, longer_mask = turn(first, mask)
    chosen = np.array([2, 0])
    whole = ask(llama, longer[chosen], longer_mask[chosen])
    same(ask(llama, longer[chosen], longer_mask[chosen], past_key_values=past), whole)

    past.batch_repeat_interleave(2)
    assert past.lengths == [LENGTHS[2] + 5] * 2 + [LENGTHS[0] + 5] * 2
    draw = {"do_sample": True, "seed": 2, "num_return_sequences": 2}
    whole = ask(llama, longer[chosen], longer_mask[chosen], **draw)
    same(ask(llama, longer[chosen], longer_mask[chosen], past_key_values=past, **draw), whole)

    with pytest.raises(IndexError, match=r"has 4 rows, and no row 4"):
        past.batch_select_indices([4])
    assert len(past) == 2 and past.get_max_cache_shape() == 128 and "tokens [26" in repr(past)
    assert past.nbytes == sum(x.nbytes for x in jax.tree.leaves(first.past_key_values._cache.layers))


@pytest.mark.full
def test_beams_and_returned_sequences_go_on_from_it(llama: PreTrainedModel) -> None:
    ids, mask = padded(LENGTHS)
    first = ask(llama, ids, mask)
    longer, longer_mask = turn(first, mask)
    for settings in ({"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 2}):
        given: dict[str, Any] = {"seed": 7, "max_new_tokens": 5, **settings}
        whole = llama.generate(longer, longer_mask, **given)
        found = llama.generate(longer, longer_mask, past_key_values=first.past_key_values, **given)
        np.testing.assert_array_equal(found, whole)
    out = llama.generate(ids, mask, num_beams=2, max_new_tokens=3, return_dict_in_generate=True)
    assert out.past_key_values is None  # its rows are beams, and not what is returned


@pytest.mark.full
def test_what_a_row_said_after_its_end_is_not_held(llama: PreTrainedModel) -> None:
    ids, mask = padded(LENGTHS)
    free = np.asarray(ask(llama, ids, mask, max_new_tokens=12).sequences)[:, max(LENGTHS) :]
    end = int(free[1, 3])
    first = ask(llama, ids, mask, max_new_tokens=12, eos_token_id=end)
    answers = np.asarray(first.sequences)[:, max(LENGTHS) :]
    lengths = [int(np.argmax(row == end)) + 1 if end in row else len(row) for row in answers]
    held = first.past_key_values.lengths
    assert held[1] == LENGTHS[1] + lengths[1]  # its end token was read, as the other rows went on
    assert all(n <= length + new for n, length, new in zip(held, LENGTHS, lengths, strict=True))
    # A criterion of the host ends a row one step after the device has gone on.
    stopped = ask(llama, ids[:1], mask[:1], stopping_criteria=[lambda ids, scores: ids.shape[1] >= max(LENGTHS) + 2])
    longer, longer_mask = turn(stopped, mask[:1])
    whole = ask(llama, longer, longer_mask)
    same(ask(llama, longer, longer_mask, past_key_values=stopped.past_key_values), whole)


@pytest.mark.full
def test_quantised_keys_and_values_go_on(llama: PreTrainedModel) -> None:
    ids, mask = padded((30,))
    first = ask(llama, ids, mask, cache_implementation="quantized")
    ids, mask = turn(first, mask)
    whole = ask(llama, ids, mask, cache_implementation="quantized", prefill_chunk_size=16)
    found = ask(llama, ids, mask, cache_implementation="quantized", past_key_values=first.past_key_values)
    for ours, other in zip(found.logits[:1], whole.logits[:1], strict=True):
        np.testing.assert_allclose(ours, other, atol=0.1 * np.abs(other).max())


def test_other_tokens_rows_and_models_are_refused(llama: PreTrainedModel) -> None:
    ids, mask = padded(LENGTHS)
    first = ask(llama, ids, mask)
    past = first.past_key_values
    longer, longer_mask = turn(first, mask)
    wrong = longer.copy()
    column = max(LENGTHS) - LENGTHS[1] + 3  # of the padded array
    wrong[1, column] = wrong[1, column] % (VOCABULARY - 1) + 1
    reader = llama._generator.reader
    assert reader is not None
    before = reader.read_chunk._cache_size()
    cases: list[tuple[np.ndarray, np.ndarray, Any, type[Exception], str]] = [
        (
            wrong,
            longer_mask,
            past,
            ValueError,
            rf"Row 1, column {column} of input_ids is \d+, but past_key_values holds",
        ),
        (
            ids,
            mask,
            past,
            ValueError,
            r"Row 0 of past_key_values holds 42 tokens, but row 0 of input_ids has 37.*crop\(-5\)",
        ),
        (longer[:2], longer_mask[:2], past, ValueError, "past_key_values holds 3 rows, but input_ids has 2"),
        (longer, longer_mask, ((1, 2),), TypeError, "past_key_values= takes what generate returned.*not tuple"),
    ]
    for given, given_mask, value, error, message in cases:
        with pytest.raises(error, match=message):
            llama.generate(given, given_mask, past_key_values=value, max_new_tokens=3)
    assert reader.read_chunk._cache_size() == before
    with pytest.raises(ValueError, match="past_key_values was made by another model"):
        made("llama", seed=2).generate(longer, longer_mask, past_key_values=past, max_new_tokens=3)


def test_models_that_cannot_go_on_say_so(llama: PreTrainedModel) -> None:
    ids, _ = padded((9,))
    past = ask(llama, ids, None).past_key_values
    mamba = made("mamba2")
    with pytest.raises(ValueError, match=r"past_key_values= cannot be used with 'mamba2'.*state"):
        mamba.generate(ids, past_key_values=past)
    assert ask(mamba, ids, None).past_key_values is None
    t5 = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **BOTH), seed=0)
    with pytest.raises(ValueError, match=r"past_key_values= is for decoders: 't5' is an encoder-decoder"):
        t5.generate(ids, past_key_values=past)


@pytest.mark.full
def test_positions_that_turn_at_another_pace_are_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.7, 2.5, 4.0, 8.0], "original_max_position_embeddings": 32}
    model = made("llama", rope_parameters={"rope_type": "longrope", "rope_theta": 100.0, **factors})
    ids, mask = padded((20,))
    first = ask(model, ids, mask)
    reads = Reads(model, monkeypatch)
    for new in (5, 20):  # 31 tokens, and 46
        longer, longer_mask = turn(first, mask, new=new)
        same(ask(model, longer, longer_mask, past_key_values=first.past_key_values), ask(model, longer, longer_mask))
    assert [start for start, _ in reads.columns] == [25]  # what is longer than 32 tokens is read as a whole


def test_the_last_conversation(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = LastConversation()
    reads = Reads(llama, monkeypatch)
    ids, mask = padded((30,))
    given: dict[str, Any] = {"max_new_tokens": 6, "past_key_values": conversation}
    out = llama.generate(ids, mask, **given)
    assert not reads.columns and conversation.past is not None and conversation.past.lengths == [35]
    longer = np.concatenate([np.asarray(out), [[7, 8, 9]]], axis=1)
    np.testing.assert_array_equal(llama.generate(longer, **given), llama.generate(longer, max_new_tokens=6))
    assert [start for start, _ in reads.columns] == [35]
    # An answer that comes back as other tokens is read from there on.
    other = longer.copy()
    other[0, 33] = other[0, 33] % (VOCABULARY - 1) + 1
    np.testing.assert_array_equal(llama.generate(other, **given), llama.generate(other, max_new_tokens=6))
    assert [start for start, _ in reads.columns] == [35, 33]
    # Another conversation begins anew, and the old one is let go.
    fresh = padded((30,), seed=3)[0]
    np.testing.assert_array_equal(llama.generate(fresh, **given), llama.generate(fresh, max_new_tokens=6))
    assert len(reads.columns) == 2 and conversation.past.lengths == [35]
    # Several rows, and what cannot go on, do without.
    ids, mask = padded(LENGTHS)
    np.testing.assert_array_equal(llama.generate(ids, mask, **given), llama.generate(ids, mask, max_new_tokens=6))
    assert conversation.past is None
    mamba = made("mamba2")
    assert mamba.generate(fresh, **given).shape == (1, 36) and conversation.past is None
