"""Guidance gives the ids and scores that Transformers gives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.parity.cases import CASES, CAUSAL_LM, Case
from tests.parity.harness import Made, batch, made  # noqa: F401

pytestmark = pytest.mark.oracle

NEW = 10
ASKED = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "pad_token_id": 0}
NAMES = ("negative_prompt_ids", "negative_prompt_attention_mask")
PROCESSED = {"repetition_penalty": 1.3, "min_new_tokens": 4, "suppress_tokens": [5], "sequence_bias": [[[9], 3.0]]}


def first(model_type: str) -> Case:
    return next(case for row in CASES[model_type] for case in row if case.head == CAUSAL_LM)


def theirs(checkpoint: Made, ids: np.ndarray, mask: np.ndarray, **settings: Any) -> Any:
    import torch

    settings = {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in settings.items()}
    with torch.no_grad():
        return checkpoint.model.generate(
            torch.tensor(ids), attention_mask=torch.tensor(mask), **{"do_sample": False, **settings}
        )


def check(checkpoint: Made, ids: np.ndarray, mask: np.ndarray, **settings: Any) -> np.ndarray:
    """Compares one call, and returns the new tokens."""
    wanted: Any = theirs(checkpoint, ids, mask, **ASKED, **settings)
    found: Any = checkpoint.ours.generate(ids, mask, **ASKED, **settings)
    np.testing.assert_array_equal(found.sequences, wanted.sequences.numpy())
    new = np.asarray(found.sequences)[:, ids.shape[1] :]
    for name in ("scores", "logits"):
        values = (np.stack([np.asarray(step) for step in getattr(out, name)]) for out in (found, wanted))
        for i, (own, other) in enumerate(zip(*values, strict=True)):
            going = ~(new[:, :i] == 2).any(axis=1)  # after its end a row's scores mean nothing
            np.testing.assert_allclose(own[going], other[going], atol=2e-3, rtol=1e-4)
    return new


@pytest.mark.parametrize(
    "model_type",
    ["llama", *(pytest.param(x, marks=pytest.mark.full) for x in ("gpt2", "qwen3", "gemma3_text", "mixtral"))],
)
def test_greedy(model_type: str, made: Callable[[Case], Made]) -> None:  # noqa: F811
    case = first(model_type)
    checkpoint = made(case)
    ids, mask = batch(case, "left")
    other = batch(case, "none", tokens=17)[0]
    found = [
        check(checkpoint, ids, mask, max_new_tokens=NEW, guidance_scale=2.5),
        check(checkpoint, ids, mask, max_new_tokens=NEW, guidance_scale=0.4, negative_prompt_ids=other),
        check(checkpoint, ids, mask, max_new_tokens=NEW, guidance_scale=3.0, negative_prompt_ids=other, **PROCESSED),
    ]
    plain = theirs(checkpoint, ids, mask, max_new_tokens=NEW, pad_token_id=0).numpy()[:, ids.shape[1] :]
    assert all(new.shape != plain.shape or (new != plain).any() for new in found)


def test_padded_negative_prompts(made: Callable[[Case], Made]) -> None:  # noqa: F811
    """Of rotary positions alone: the oracle does not tell the model where a negative prompt begins."""
    case = first("llama")
    checkpoint = made(case)
    ids, mask = batch(case, "left")
    padded = dict(zip(NAMES, batch(case, "left", tokens=15), strict=True))
    check(checkpoint, ids, mask, max_new_tokens=NEW, guidance_scale=1.8, **padded)


def test_what_is_sampled_from(made: Callable[[Case], Made]) -> None:  # noqa: F811
    case = first("llama")
    checkpoint = made(case)
    ids, mask = batch(case, "left")
    other = batch(case, "none", tokens=17)[0]
    settings = {"guidance_scale": 2.0, "negative_prompt_ids": other, "do_sample": True, "temperature": 0.7, "top_k": 9}
    wanted = theirs(checkpoint, ids, mask, **ASKED, **settings, max_new_tokens=1)
    found: Any = checkpoint.ours.generate(ids, mask, **ASKED, **settings, max_new_tokens=1, seed=0)
    np.testing.assert_allclose(found.scores[0], wanted.scores[0].numpy(), atol=1e-3, rtol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_beams(model_type: str, made: Callable[[Case], Made]) -> None:  # noqa: F811
    """The oracle's own processor mixes the caches of beams, so the rule is given as one without a cache."""
    import torch

    case = first(model_type)
    checkpoint = made(case)
    ids, mask = batch(case, "none")
    other = torch.tensor(batch(case, "none", tokens=17)[0])

    class Rule:
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            beams = len(input_ids) // len(other)
            rows = torch.cat([other.repeat_interleave(beams, 0), input_ids[:, ids.shape[1] :]], dim=1)
            negative = checkpoint.model(rows).logits[:, -1].log_softmax(-1)
            return 2.0 * (scores.log_softmax(-1) - negative) + negative

    settings = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": NEW, "pad_token_id": 0}
    wanted = theirs(checkpoint, ids, mask, logits_processor=[Rule()], **settings)
    found = checkpoint.ours.generate(ids, mask, guidance_scale=2.0, negative_prompt_ids=other.numpy(), **settings)
    np.testing.assert_array_equal(found, wanted.numpy())
