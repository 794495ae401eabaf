"""What Transformers 4.49.0 gave for contrastive search and DoLa, and the same checkpoints here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpipe import auto
from jaxpipe.model import PreTrainedModel
from tests.generation.frozen import contrast_models as models

HERE = Path(__file__).parent / "frozen"
Load = Callable[[str], PreTrainedModel]


def load(model_type: str, directory: Path) -> PreTrainedModel:
    """Makes a checkpoint of `contrast_models`, and loads it."""
    kind = "AutoModelForSeq2SeqLM" if model_type in models.SEQ2SEQ else "AutoModelForCausalLM"
    head = getattr(auto, kind)
    config = auto.AutoConfig.for_model(model_type.split()[-1], **models.CONFIGS[model_type])
    head.from_config(config, seed=0).save_pretrained(directory)
    models.write(directory)
    return head.from_pretrained(directory)


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Loads a checkpoint by its model type, once a session."""
    known: dict[str, PreTrainedModel] = {}

    def get(model_type: str) -> PreTrainedModel:
        if model_type not in known:
            known[model_type] = load(model_type, tmp_path_factory.mktemp("model"))
        return known[model_type]

    return get


def cases(name: str, quick: dict[str, tuple[int, ...]]) -> list[Any]:
    """Model types with cases of a file, marked `full` but those that `quick` numbers."""
    return [
        pytest.param(
            model_type, case, id=f"{model_type}-{i}", marks=() if i in quick.get(model_type, ()) else pytest.mark.full
        )
        for model_type, made in json.loads((HERE / f"{name}.json").read_text()).items()
        for i, case in enumerate(made)
    ]


def check(model: PreTrainedModel, model_type: str, case: dict[str, Any]) -> None:
    """Compares one case."""
    rows = slice(*case["rows"])
    ids, mask = (x[rows] for x in models.prompts(model_type))
    names = [name for name in ("scores", "logits") if name in case]
    kept = {"return_dict_in_generate": True, **{f"output_{name}": True for name in names}}
    out: Any = model.generate(ids, mask, **{"do_sample": False, "seed": 0, **case["settings"]}, **kept)
    new = np.asarray(out.sequences)[:, 1 if model_type in models.SEQ2SEQ else ids.shape[1] :]
    if not case["settings"].get("do_sample"):
        np.testing.assert_array_equal(new, case["sequences"])
    for name in names:
        wanted = np.array(case[name], float)  # None becomes NaN
        found = np.asarray(getattr(out, name), float)
        np.testing.assert_allclose(found, np.where(np.isnan(wanted), -np.inf, wanted), atol=3e-4, rtol=1e-5)
