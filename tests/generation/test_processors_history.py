from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.generation.processors import process
from jaxpipe.generation.processors_history import (
    EncoderNoRepeatNgram,
    EncoderRepetitionPenalty,
    NoRepeatNgram,
    RepetitionPenalty,
    SequenceBias,
)
from jaxpipe.generation.step import NO_TOKEN, bucket
from tests.generation.histories import VOCAB, Histories, assert_same, scores_of

PROMPTS = [4, 12, 1]
STEPS = [0, 1, 9]
KINDS = ["random", "ties", "masked"]


@pytest.fixture(scope="module")
def run() -> Any:
    """Applies one processor in a jit."""
    return jax.jit(lambda processor, scores, state: process((processor,), scores, state))


def ngrams(size: int) -> NoRepeatNgram:
    return NoRepeatNgram(np.int32(size), bucket(size - 1))


@pytest.mark.oracle
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 40])
def test_no_repeat_ngram_equals_the_oracle(run: Any, size: int, step: int) -> None:
    from transformers import NoRepeatNGramLogitsProcessor

    banned = 0
    for seed, kind in enumerate(KINDS):
        told, scores = Histories(PROMPTS, step, seed), scores_of(kind)
        ours = np.asarray(run(ngrams(size), scores, told.state))
        assert_same(ours, told.by_row(lambda i, n: NoRepeatNGramLogitsProcessor(size), scores))
        banned += (np.isneginf(ours) & ~np.isneginf(scores)).sum()
    assert banned > 0 or size > 3 or step == 0


@pytest.mark.oracle
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("size", [1, 2, 3, 9])
@pytest.mark.parametrize("of_encoder", [True, False])
def test_encoder_no_repeat_ngram_equals_the_oracle(run: Any, of_encoder: bool, size: int, step: int) -> None:
    import torch
    from transformers import EncoderNoRepeatNGramLogitsProcessor

    told, scores = Histories(PROMPTS, step, seed=size), scores_of("random")
    sources = encoder_rows() if of_encoder else [row[:n] for row, n in zip(told.rows, PROMPTS, strict=True)]
    source = padded(sources) if of_encoder else None
    ours = run(EncoderNoRepeatNgram(np.int32(size), source, bucket(size - 1)), scores, told.state)

    def make(i: int, n: int) -> Any:
        return EncoderNoRepeatNGramLogitsProcessor(size, torch.tensor(sources[i])[None])

    assert_same(ours, told.by_row(make, scores))
    assert np.isneginf(np.asarray(ours)).any() or size > 2


def encoder_rows() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(3, 6, n) for n in (9, 2, 16)]


def padded(rows: list[np.ndarray]) -> np.ndarray:
    return np.stack([np.pad(row, (0, 16 - len(row)), constant_values=NO_TOKEN) for row in rows]).astype(np.int32)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", [0.6, 1.7])
def test_repetition_penalties_equal_the_oracle(run: Any, penalty: float, kind: str) -> None:
    import torch
    from transformers import EncoderRepetitionPenaltyLogitsProcessor, RepetitionPenaltyLogitsProcessor

    told, scores, sources = Histories(PROMPTS, 3, tokens=20), scores_of(kind), encoder_rows()
    ours = run(RepetitionPenalty(np.float32(penalty)), scores, told.state)
    np.testing.assert_array_equal(ours, told.by_row(lambda i, n: RepetitionPenaltyLogitsProcessor(penalty), scores))

    def of_encoder(i: int, n: int) -> Any:
        return EncoderRepetitionPenaltyLogitsProcessor(penalty, torch.tensor(sources[i])[None])

    inverse = np.float32(1 / penalty)
    ours = run(EncoderRepetitionPenalty(inverse, padded(sources)), scores, told.state)
    np.testing.assert_array_equal(ours, told.by_row(of_encoder, scores))

    def of_prompt(i: int, n: int) -> Any:
        return EncoderRepetitionPenaltyLogitsProcessor(penalty, torch.tensor(told.rows[i][:n])[None])

    ours = run(EncoderRepetitionPenalty(inverse, None), scores, told.state)
    np.testing.assert_array_equal(ours, told.by_row(of_prompt, scores))


BIASES: dict[tuple[int, ...], float] = {
    (7,): 2.5, (3,): -1.0, (3, 4): 5.0, (4, 4): -7.5, (5, 4): 0.25, (3, 3, 5): 10.0, (4, 3, 5): -3.0, (3, 5): 1.5,
    (5, 5, 5, 4, 3, 3): 2.0, (36,): -np.inf, (3,) * 14: 4.0,
}  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize("step", STEPS)
def test_sequence_bias_equals_the_oracle(run: Any, step: int) -> None:
    from transformers import SequenceBiasLogitsProcessor

    ours, changed = SequenceBias.of(list(BIASES.items())), 0
    for seed, kind in enumerate(KINDS):
        told, scores = Histories(PROMPTS, step, seed), scores_of(kind)
        found = np.asarray(run(ours, scores, told.state))
        assert_same(found, told.by_row(lambda i, n: SequenceBiasLogitsProcessor(dict(BIASES)), scores))
        changed += (found[:, 3:6] != scores[:, 3:6]).sum()
    assert changed > 3


@pytest.mark.oracle
@pytest.mark.parametrize("step", STEPS)
def test_bad_words_equal_the_oracle(run: Any, step: int) -> None:
    from transformers import NoBadWordsLogitsProcessor

    words = [[7], [3, 4], [4, 4], [4, 3, 5], [3, 3], [5, 3, 3, 3], [36]]
    ours = SequenceBias.of([(word, -np.inf) for word in words])
    for seed, kind in enumerate(KINDS):
        told, scores = Histories(PROMPTS, step, seed), scores_of(kind)
        theirs = told.by_row(lambda i, n: NoBadWordsLogitsProcessor(words, [2]), scores)
        assert_same(run(ours, scores, told.state), theirs)


def test_neighbours_padding_and_free_slots_change_nothing() -> None:
    """The row's own tokens alone count: other widths, other rows and what stands in free slots do not."""
    told = Histories([5, 11], 4)
    processors = (
        RepetitionPenalty(np.float32(1.3)), ngrams(2), EncoderNoRepeatNgram(np.int32(3), None, 4),
        EncoderRepetitionPenalty(np.float32(0.7), None), SequenceBias.of(list(BIASES.items())),
    )  # fmt: skip
    together = process(processors, jnp.asarray(scores_of("random", rows=2)), told.state)
    for i in range(2):
        alone = Histories([told.prompts[i]], 4, width=19)
        alone.rows = [told.rows[i]]
        one = process(processors, jnp.asarray(scores_of("random", rows=2)[i : i + 1]), alone.state)
        np.testing.assert_array_equal(one[0], together[i])


def test_beams_of_a_prompt_share_its_source() -> None:
    told = Histories([1, 1, 1, 1], 6)
    source = padded(encoder_rows())[:2]
    both = EncoderNoRepeatNgram(np.int32(2), source, 4)
    scores = jnp.asarray(scores_of("random", rows=4))
    each = EncoderNoRepeatNgram(np.int32(2), np.repeat(source, 2, axis=0), 4)
    np.testing.assert_array_equal(both(scores, told.state), each(scores, told.state))
    assert not np.array_equal(each(scores, told.state), scores)


def test_no_token_is_looked_for_by_a_loop_over_the_vocabulary_and_sizes_share_their_code() -> None:
    told, scores = Histories(PROMPTS, 3), jnp.asarray(scores_of("random"))
    counted = jax.jit(lambda processors, scores, state: process(processors, scores, state))
    for size, words in ((2, [[7], [3, 4]]), (3, [[8, 1], [3], [9, 9]]), (5, [[1, 2]])):
        processors = (ngrams(size), SequenceBias.of([(word, -np.inf) for word in words]))
        text = counted.lower(processors, scores, told.state).as_text()
        assert "while" not in text
        counted(processors, scores, told.state)
    assert counted._cache_size() == 1


def test_the_history_has_no_gaps() -> None:
    told = Histories(PROMPTS, 3)
    history, lengths = told.state.history()
    assert lengths.tolist() == [7, 15, 4]
    for row, found in zip(told.rows, np.asarray(history), strict=True):
        assert found[: len(row)].tolist() == row.tolist() and (found[len(row) :] == NO_TOKEN).all()
    assert history.max() < VOCAB
