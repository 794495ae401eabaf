"""Seeds of calls that are given none."""

import pytest

from jaxpipe.common import random
from jaxpipe.common.random import next_seed, set_seed


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(random, "_sequence", None)


def test_a_set_seed_fixes_the_sequence_of_calls():
    set_seed(3)
    first = [next_seed() for _ in range(5)]
    set_seed(3)
    assert [next_seed() for _ in range(5)] == first
    assert len(set(first)) == 5
    set_seed(4)
    assert [next_seed() for _ in range(5)] != first


def test_without_one_every_call_draws_afresh():
    seeds = {next_seed() for _ in range(100)}
    assert len(seeds) > 95
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize("seed", [-1, 1.0, "1", None, True])
def test_wrong_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="non-negative integer"):
        set_seed(seed)
