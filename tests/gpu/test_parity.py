"""Parity in float32 on a GPU, where JAX's own default would multiply in TF32: run `pytest tests/gpu`."""

from collections.abc import Callable

import jax
import numpy as np
import pytest

from tests.parity.cases import CAUSAL_LM, SEQ2SEQ_LM, Case, params
from tests.parity.harness import Made, batch, check_outputs, given, made  # noqa: F401

pytestmark = [pytest.mark.gpu, pytest.mark.oracle]


def test_the_default_device_is_a_gpu() -> None:
    assert jax.default_backend() == "gpu"


@pytest.mark.parametrize("case", params())
def test_outputs_equal_the_oracles(made: Callable[[Case], Made], case: Case) -> None:  # noqa: F811
    checkpoint = made(case)
    for padding in ("none", "both"):
        ids, mask = batch(case, padding)
        inputs = given(case, ids, mask)
        check_outputs(checkpoint.ours(**inputs), checkpoint.oracle(**inputs), mask)


@pytest.mark.parametrize("case", params(CAUSAL_LM, SEQ2SEQ_LM))
def test_greedy_ids_equal_the_oracles(made: Callable[[Case], Made], case: Case) -> None:  # noqa: F811
    checkpoint = made(case)
    ids, mask = batch(case, "left")
    settings = {"max_new_tokens": 32, "eos_token_id": None, "pad_token_id": 0}
    found = checkpoint.ours.generate(ids, mask, do_sample=False, **settings)
    np.testing.assert_array_equal(found, checkpoint.oracle_greedy(ids, mask, **settings))
