"""Conversations of several turns, and prompts in chunks, give the ids that Transformers gives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.parity.cases import CASES, CAUSAL_LM, Case
from tests.parity.harness import Made, batch, made  # noqa: F401

pytestmark = pytest.mark.oracle

NEW = 8
QUICK = ("llama",)
NAMES = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.full])
    for name in ("llama", "gpt2", "qwen3", "gemma3_text", "mixtral")
]


def first(model_type: str) -> Case:
    return next(case for row in CASES[model_type] for case in row if case.head == CAUSAL_LM)


def theirs(checkpoint: Made, ids: np.ndarray, mask: np.ndarray, **settings: Any) -> Any:
    import torch

    given = {"do_sample": False, "return_dict_in_generate": True, "max_new_tokens": NEW, "eos_token_id": None}
    with torch.no_grad():
        return checkpoint.model.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **given, **settings)


@pytest.mark.parametrize("name", NAMES)
def test_three_turns(name: str, made: Callable[[Case], Made]) -> None:  # noqa: F811
    case = first(name)
    checkpoint = made(case)
    ids, mask = batch(case, "left")
    their_past, our_past = None, None
    for number in range(3):
        wanted = theirs(checkpoint, ids, mask, past_key_values=their_past)
        found: Any = checkpoint.ours.generate(
            ids,
            mask,
            past_key_values=our_past,
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            return_dict_in_generate=True,
        )
        np.testing.assert_array_equal(found.sequences, wanted.sequences.numpy())
        their_past, our_past = wanted.past_key_values, found.past_key_values
        # All tokens but the last; the oracle counts padding too.
        assert their_past.get_seq_length() == ids.shape[1] + NEW - 1
        assert our_past.get_seq_length() == mask.sum(axis=1).max() + NEW - 1
        said = np.random.default_rng(number).integers(3, case.config["vocab_size"], (len(ids), 5 + number))
        ids = np.concatenate([wanted.sequences.numpy(), said], axis=1)
        mask = np.concatenate([mask, np.ones((len(ids), ids.shape[1] - mask.shape[1]), mask.dtype)], axis=1)


@pytest.mark.parametrize("name", NAMES)
def test_chunks(name: str, made: Callable[[Case], Made]) -> None:  # noqa: F811
    case = first(name)
    checkpoint = made(case)
    ids, mask = batch(case, "left")
    wanted = theirs(checkpoint, ids, mask, prefill_chunk_size=7)
    found: Any = checkpoint.ours.generate(
        ids, mask, prefill_chunk_size=7, max_new_tokens=NEW, do_sample=False, eos_token_id=None
    )
    np.testing.assert_array_equal(found, wanted.sequences.numpy())
