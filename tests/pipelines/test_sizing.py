"""Shapes of batches."""

import pytest

from jaxpipe.pipelines.sizing import Sizing, fine_length, sizing_of


@pytest.mark.parametrize("steps", [4, 8])
def test_fine_lengths_waste_little_and_are_few(steps):
    lengths = [fine_length(length, steps) for length in range(1, 513)]
    for length, padded in enumerate(lengths, 1):
        assert padded >= length
        assert padded % 8 == 0
        assert padded - length < max(16, length / steps + 1)
    assert lengths == sorted(lengths)
    assert len(set(lengths)) <= 5 * steps + 2


def test_full_batches_hold_the_tokens_asked_for_in_powers_of_two():
    sizing = Sizing(tokens=1024)
    assert [sizing.rows(length) for length in (16, 48, 100, 1024, 5000)] == [64, 16, 8, 1, 1]
    assert [Sizing(tokens=2048, parts=2).rows(length) for length in (16, 48, 5000)] == [128, 32, 2]


def test_small_batches_are_powers_of_two_up_to_the_full_one():
    sizing = Sizing(tokens=1024, parts=2)
    assert [sizing.size(count, full=6) for count in (1, 2, 3, 5, 6)] == [1, 2, 4, 6, 6]


def test_a_length_like_one_of_an_earlier_call_takes_its_shape():
    sizing = Sizing(tokens=1024, steps=8)
    assert sizing.fine(batches=2) is None
    first = sizing.fine(batches=100)
    assert [first(length) for length in (100, 90, 60)] == [104, 96, 64]
    second = sizing.fine(batches=100)
    assert [second(length) for length in (90, 85, 75, 70, 50, 30)] == [96, 96, 96, 72, 64, 32]


def test_fewer_batches_have_fewer_lengths():
    sizing = Sizing(tokens=1024, steps=8)
    assert {sizing.fine(batches=10)(length) for length in range(129, 257)} == {160, 192, 224, 256}


def test_learned_positions_bound_the_padding():
    sizing = Sizing(tokens=1024, limit=20)
    assert (sizing.coarse(17), sizing.coarse(21), sizing.fine(batches=9)(18)) == (20, 32, 20)


def test_of_a_model(model):
    sizing = sizing_of(model)
    assert (sizing.parts, sizing.limit) == (1, None)
    assert sizing.rows(64) == 16
