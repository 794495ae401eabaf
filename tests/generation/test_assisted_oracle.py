"""Assisted and prompt-lookup decoding give the ids and scores that Transformers' assisted generation gives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxpipe.model import PreTrainedModel
from tests.parity.cases import CASES, CAUSAL_LM, SEQ2SEQ_LM, Case
from tests.parity.harness import Made, batch, made  # noqa: F401

pytestmark = pytest.mark.oracle

NEW = 20
LOOKUP = {"prompt_lookup_num_tokens": 5, "max_matching_ngram_size": 3}
QUICK = (("llama", "lookup"), ("t5", "assistant"))
OTHERS = (
    "llama gpt2 qwen3 gemma3_text mixtral t5 bart deepseek_v3 bloom gpt_oss falcon opt gptj granite cohere2 m2m_100 "
    "pegasus gemma2"
).split()


def first(model_type: str) -> Case:
    return next(case for row in CASES[model_type] for case in row if case.head in (CAUSAL_LM, SEQ2SEQ_LM))


def near(checkpoint: Made, by: float = 0.1) -> PreTrainedModel:
    """An assistant that often chooses as the model does."""
    assistant = checkpoint.load()
    rng = np.random.default_rng(3)
    leaves: list[Any] = assistant._built.leaves
    leaves[:] = [x + by * np.std(x) * rng.standard_normal(x.shape).astype(x.dtype) for x in map(np.asarray, leaves)]
    return assistant


def prompt(case: Case, row: int) -> tuple[np.ndarray, np.ndarray]:
    """One row, which is all that the oracle takes, with tokens that come twice."""
    ids, mask = (x[row : row + 1] for x in batch(case, "none"))
    ids[:, -8:] = ids[:, -16:-8]
    return ids, mask


def theirs(checkpoint: Made, ids: np.ndarray, mask: np.ndarray, **settings: Any) -> Any:
    import torch

    with torch.no_grad():
        return checkpoint.model.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **settings)


@pytest.mark.parametrize(
    ("model_type", "way"),
    [
        *QUICK,
        *(
            pytest.param(name, way, marks=pytest.mark.full)
            for name in OTHERS
            for way in ("lookup", "assistant")
            if (name, way) not in QUICK
        ),
    ],
)
def test_greedy_ids_and_scores(model_type: str, way: str, made: Callable[[Case], Made]) -> None:  # noqa: F811
    checkpoint = made(first(model_type))
    settings: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": NEW,
        "min_new_tokens": 5,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    asked = LOOKUP if way == "lookup" else {"assistant_model": near(checkpoint), "num_assistant_tokens": 5}
    other = LOOKUP if way == "lookup" else {"assistant_model": checkpoint.model}
    lengths = []
    for row in (0, 1):
        ids, mask = prompt(checkpoint.case, row)
        if row == 1:  # one of the tokens on the way ends the row
            settings["min_new_tokens"] = None
            free: Any = checkpoint.ours.generate(ids, mask, **settings)
            answer = np.asarray(free.sequences)[0, -NEW:].tolist()
            settings["eos_token_id"] = max(answer[:-1], key=answer.index)
        wanted = theirs(checkpoint, ids, mask, **settings, **other)
        plain: Any = checkpoint.ours.generate(ids, mask, **settings)
        found: Any = checkpoint.ours.generate(ids, mask, **settings, **asked)
        np.testing.assert_array_equal(found.sequences, wanted.sequences.numpy())
        np.testing.assert_array_equal(found.sequences, plain.sequences)
        assert type(found).__name__ == type(wanted).__name__
        for name in ("scores", "logits"):
            assert len(found[name]) == len(wanted[name])
            for ours, theirs_ in zip(found[name], wanted[name], strict=True):
                expected = theirs_.numpy()
                bound = 1e-4 * max(1.0, float(np.abs(expected[np.isfinite(expected)]).max()))
                np.testing.assert_allclose(ours, expected, atol=bound)
        lengths.append(len(found.scores))
    assert 1 < lengths[1] < lengths[0] == NEW


@pytest.mark.full
@pytest.mark.parametrize("model_type", ["llama", "t5", "bart", "gemma3_text", "mixtral", "gpt2"])
@pytest.mark.parametrize("way", ["lookup", "assistant"])
def test_batches(model_type: str, way: str, made: Callable[[Case], Made]) -> None:  # noqa: F811
    """The oracle takes one row at a time; ours are as many, each as alone."""
    checkpoint = made(first(model_type))
    asked = LOOKUP if way == "lookup" else {"assistant_model": near(checkpoint), "num_assistant_tokens": 5}
    ids, mask = batch(checkpoint.case, "left")
    settings = {"max_new_tokens": NEW, "pad_token_id": 0, "no_repeat_ngram_size": 3, "suppress_tokens": [5, 6]}
    wanted = checkpoint.oracle_greedy(ids, mask, **settings)
    np.testing.assert_array_equal(checkpoint.ours.generate(ids, mask, **settings, **asked), wanted)


@pytest.mark.full
@pytest.mark.parametrize("cache", ["int8", "float8_e4m3fn"])
def test_a_quantised_cache_goes_back_too(cache: str, made: Callable[[Case], Made]) -> None:  # noqa: F811
    checkpoint = made(first("llama"))
    ids, mask = prompt(checkpoint.case, 0)
    settings = {"max_new_tokens": NEW, "cache_implementation": "quantized", "cache_config": {"dtype": cache}}
    plain = checkpoint.ours.generate(ids, mask, **settings)
    np.testing.assert_array_equal(checkpoint.ours.generate(ids, mask, **settings, **LOOKUP), plain)


def candidates(tokens: np.ndarray, count: int, ngram: int) -> list[int] | None:
    """What the oracle proposes."""
    import torch
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

    generator = PromptLookupCandidateGenerator(
        num_output_tokens=count, max_matching_ngram_size=ngram, max_length=10**6, vocab_size=50
    )
    given: Any = torch.tensor(tokens)[None]
    found, _ = generator.get_candidates(given)
    return None if found.shape[1] == len(tokens) else found[0, len(tokens) :].tolist()


def test_lookup_proposes_what_the_oracle_does() -> None:
    import jax.numpy as jnp

    from jaxpipe.generation.prompt_lookup import propose

    rng = np.random.default_rng(0)
    rows = [rng.integers(0, tokens, n) for tokens in (2, 3, 6, 40) for n in (1, 2, 3, 9, 31) for _ in range(4)]
    ids = np.zeros((len(rows), 48), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    lengths = jnp.asarray([len(row) for row in rows], jnp.int32)
    several = 0
    for ngram in (1, 2, 3, 5):
        proposed, found = (np.asarray(x) for x in propose(jnp.asarray(ids), lengths, jnp.int32(ngram), 8, 7))
        for i, row in enumerate(rows):
            wanted = candidates(row, 7, ngram)
            assert (wanted is not None) == found[i], (row, ngram)
            # Where the text ends theirs stop, and ours go on as in a cycle.
            if wanted is not None:
                assert proposed[i, : len(wanted)].tolist() == wanted, (row, ngram)
                assert len(wanted) == 7 or proposed[i].tolist() == (wanted * 7)[:7]
                several += len(wanted) > 1
    assert several > 50
