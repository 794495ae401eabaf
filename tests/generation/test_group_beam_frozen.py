"""Diverse beam search gives what Transformers 4.49.0 gave, frozen by frozen/make_group_beams.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpipe.model import PreTrainedModel
from tests.generation.frozen import beam_group_models as models
from tests.generation.group_cases import ASKED, check_sequences, frozen_models  # noqa: F401

FROZEN = json.loads((Path(__file__).parent / "frozen" / "group_beams.json").read_text())
QUICK = {"llama": (0, 12, 18), "t5": (1,)}


@pytest.mark.parametrize(
    ("model_type", "number"),
    [
        pytest.param(name, i, marks=[] if i in QUICK.get(name, ()) else [pytest.mark.full])
        for name, cases in FROZEN.items()
        for i in range(len(cases))
    ],
)
def test_frozen(model_type: str, number: int, frozen_models: Callable[[str], PreTrainedModel]) -> None:  # noqa: F811
    model, case = frozen_models(model_type), FROZEN[model_type][number]
    if "scores" in case:
        ids, mask = (x[: case["rows"]] for x in models.prompts(model_type))
        scores: Any = model.generate(ids, mask, **ASKED, **case["settings"]).scores
        for found, wanted in zip(scores, case["scores"], strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-4)
        return
    out, _ = check_sequences(model, model_type, case)
    if "beam_indices" in case:
        # 4.49.0 counts the rows of each group by themselves.
        own = out.beam_indices % (case["settings"]["num_beams"] // case["settings"]["num_beam_groups"])
        np.testing.assert_array_equal(own, case["beam_indices"])
