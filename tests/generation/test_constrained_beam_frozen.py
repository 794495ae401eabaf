"""Constrained beam search gives what Transformers 4.49.0 gave, frozen by frozen/make_constrained_beams.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpipe.generation.constraints import DisjunctiveConstraint
from jaxpipe.model import PreTrainedModel
from tests.generation.group_cases import check_sequences, frozen_models  # noqa: F401

FROZEN = json.loads((Path(__file__).parent / "frozen" / "constrained_beams.json").read_text())
QUICK = {"llama": (3, 12, 16), "t5": (14,)}


@pytest.mark.parametrize(
    ("model_type", "number"),
    [
        pytest.param(name, i, marks=[] if i in QUICK.get(name, ()) else [pytest.mark.full])
        for name, cases in FROZEN.items()
        for i in range(len(cases))
    ],
)
def test_frozen(model_type: str, number: int, frozen_models: Callable[[str], PreTrainedModel]) -> None:  # noqa: F811
    case = FROZEN[model_type][number]
    given: dict[str, Any] = {"force_words_ids": case["words"]}
    if number % 2 and isinstance(case["words"][0][0], list):
        given = {"constraints": [DisjunctiveConstraint(case["words"][0])], "force_words_ids": case["words"][1:] or None}
    out, lengths = check_sequences(frozen_models(model_type), model_type, case, **given)
    for row, wanted, length, fulfilled in zip(
        out.beam_indices, case["beam_indices"], lengths, case["fulfilled"], strict=True
    ):
        if fulfilled:  # there are none of the others
            np.testing.assert_array_equal(row[:length], wanted[:length])
