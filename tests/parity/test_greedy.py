"""Greedy generation gives the ids that Transformers gives."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.parity.cases import CAUSAL_LM, SEQ2SEQ_LM, Case, params
from tests.parity.harness import Made, batch

pytestmark = pytest.mark.oracle
NEW = 32


def check(checkpoint: Made, ids: np.ndarray, mask: np.ndarray, **kwargs) -> np.ndarray:
    given = {"max_new_tokens": NEW, "pad_token_id": 0, **kwargs}
    theirs = checkpoint.oracle_greedy(ids, mask, **given)
    ours = checkpoint.ours.generate(ids, mask, do_sample=False, **given)
    assert np.array_equal(np.asarray(ours), theirs)
    return theirs


@pytest.mark.parametrize("case", params(CAUSAL_LM, SEQ2SEQ_LM))
def test_left_padded_batch(case: Case, made: Callable[[Case], Made]):
    ids, mask = batch(case, "left")
    check(made(case), ids, mask, eos_token_id=None)


@pytest.mark.parametrize("case", params(CAUSAL_LM, SEQ2SEQ_LM, core=True))
def test_rows_that_end_at_different_steps(case: Case, made: Callable[[Case], Made]):
    """The end token is one that the first row puts out on its way, so that it ends before the others."""
    ids, mask = batch(case, "left")
    free = check(made(case), ids, mask, eos_token_id=None)
    prompt = free.shape[1] - NEW
    ended = check(made(case), ids, mask, eos_token_id=int(free[0, prompt + 5]))
    assert (ended[0, prompt + 6 :] == 0).all()


@pytest.mark.parametrize("case", params(CAUSAL_LM, SEQ2SEQ_LM, core=True))
def test_single_prompt(case: Case, made: Callable[[Case], Made]):
    ids, mask = batch(case, "none", rows=1, tokens=5)
    check(made(case), ids, mask)
