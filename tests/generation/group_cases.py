"""The checkpoints of frozen/beam_group_models.py, loaded here, and how their frozen sequences are compared."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from jaxpipe.model import PreTrainedModel
from tests.generation.frozen import beam_group_models as models

ASKED = {"return_dict_in_generate": True, "output_scores": True}


@pytest.fixture(scope="session")
def frozen_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PreTrainedModel]:
    """Loads the model of a type, once a session."""
    known: dict[str, PreTrainedModel] = {}

    def get(model_type: str) -> PreTrainedModel:
        if model_type not in known:
            directory = tmp_path_factory.mktemp("frozen") / model_type
            head = AutoModelForSeq2SeqLM if model_type in models.SEQ2SEQ else AutoModelForCausalLM
            config = AutoConfig.for_model(model_type, **models.CONFIGS[model_type])
            head.from_config(config, seed=0).save_pretrained(directory)
            models.write(directory)
            known[model_type] = head.from_pretrained(directory)
        return known[model_type]

    return get


def check_sequences(
    model: PreTrainedModel, model_type: str, case: dict[str, Any], **given: Any
) -> tuple[Any, np.ndarray]:
    """Compares ids and scores of one frozen case; returns the output and the sequences' lengths."""
    settings = case["settings"]
    ids, mask = (x[: case["rows"]] for x in models.prompts(model_type))
    out: Any = model.generate(ids, mask, **ASKED, **given, **settings)
    found = np.asarray(out.sequences)[:, 1 if model_type in models.SEQ2SEQ else ids.shape[1] :]
    wanted = np.asarray(case["sequences"])
    ends = np.atleast_1d(settings.get("eos_token_id") or [])
    if len(ends) > 1:
        found = np.where(np.isin(found, ends), ends[0], found)  # 4.49.0 writes the first whichever came
    np.testing.assert_array_equal(found, wanted[:, : found.shape[1]])
    assert (wanted[:, found.shape[1] :] == settings["pad_token_id"]).all()
    np.testing.assert_allclose(out.sequences_scores, case["sequences_scores"], atol=2e-4, rtol=1e-5)
    return out, (out.beam_indices >= 0).sum(axis=1)
