"""Mamba-2 beyond the table of parity: padding, biases, step limits, and what its config may hold."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM
from jaxpipe.common.errors import ConfigError
from tests.parity.cases import CAUSAL_LM, Case
from tests.parity.harness import Made, batch, check_outputs, made  # noqa: F401

SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 16,
    "num_heads": 4,
    "head_dim": 8,
    "n_groups": 2,
    "state_size": 5,
    "num_hidden_layers": 2,
    "chunk_size": 8,
    "initializer_range": 0.4,
}
BIASED = Case("mamba2", CAUSAL_LM, "biased", {**SIZES, "use_bias": True})


@pytest.mark.oracle
def test_biases(made: Callable[[Case], Made]):  # noqa: F811
    checkpoint = made(BIASED)
    for padding in ("none", "left", "right", "both"):
        ids, mask = batch(BIASED, padding)
        given = {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True}
        check_outputs(checkpoint.ours(**given), checkpoint.oracle(**given), mask)
    ids, mask = batch(BIASED, "none")
    given = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0}
    ours = checkpoint.ours.generate(ids, mask, do_sample=False, **given)
    assert np.array_equal(ours, checkpoint.oracle_greedy(ids, mask, **given))


@pytest.mark.parametrize("limit", [pytest.param([0.0, float("inf")], marks=pytest.mark.full), [0.2, 0.5]])
def test_rows_do_not_depend_on_their_padding(limit: list[float]):
    """Prefill, padded to a bucket, and recurrent steps give what one row alone and the chunked scan over all give."""
    config = AutoConfig.for_model("mamba2", **SIZES, use_bias=True, time_step_limit=limit)
    model = AutoModelForCausalLM.from_config(config, dtype="float32", seed=5)
    ids, mask = batch(BIASED, "left")
    given: dict[str, Any] = {"max_new_tokens": 9, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    together = np.asarray(model.generate(ids, mask, **given))
    for row in range(len(ids)):
        alone = np.asarray(model.generate(ids[row, mask[row] == 1][None], **given))[0]
        assert np.array_equal(alone[-9:], together[row, -9:])
        logits = np.asarray(model(alone[None, :-1])[0])[0]
        assert np.array_equal(logits.argmax(-1)[-9:], alone[-9:])


def test_infinity_goes_through_a_file(tmp_path):
    config = AutoConfig.for_model("mamba2", **SIZES)
    assert config.time_step_limit == [0.0, float("inf")]
    (tmp_path / "config.json").write_text(config.to_json_string())
    assert '"__float__": "Infinity"' in config.to_json_string()
    assert AutoConfig.from_pretrained(tmp_path).time_step_limit == [0.0, float("inf")]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"num_heads": 3}, ["num_heads=3", "head_dim=8", "hidden_size=16"]),
        ({"n_groups": 3}, ["n_groups=3"]),
        ({"time_step_limit": [0.1]}, ["time_step_limit=[0.1]"]),
        ({"hidden_act": "silent"}, ["hidden_act", "silent"]),
    ],
)
def test_refused(values: dict[str, Any], named: list[str]):
    with pytest.raises(ConfigError) as error:
        AutoConfig.for_model("mamba2", **{**SIZES, **values})
    for part in named:
        assert part in str(error.value)
