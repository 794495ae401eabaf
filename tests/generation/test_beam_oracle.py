"""Beam search gives the ids, scores and beam indices that Transformers gives."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.parity.cases import CASES, CAUSAL_LM, SEQ2SEQ_LM, Case
from tests.parity.harness import Made, batch, made  # noqa: F401

pytestmark = pytest.mark.oracle

NEW = 16
ASKED = {"return_dict_in_generate": True, "output_scores": True, "pad_token_id": 1}
PENALTIES = (0.5, 1.0, 2.0, -1.0)
STOPPING = (False, True, "never")


def first(model_type: str) -> Case:
    return next(case for row in CASES[model_type] for case in row if case.head in (CAUSAL_LM, SEQ2SEQ_LM))


def searches(quick: dict[str, tuple[int, ...]], others: tuple[str, ...]) -> list[Any]:
    """Model types with numbers of beams: those in `quick`, and the rest of 2, 3 and 4 marked `full`."""
    return [
        pytest.param(name, beams, marks=[] if beams in quick.get(name, ()) else [pytest.mark.full])
        for name in (*quick, *others)
        for beams in (2, 3, 4)
    ]


def theirs(checkpoint: Made, ids: np.ndarray, mask: np.ndarray, **settings: Any) -> Any:
    import torch

    arrays = {k: torch.tensor(v) for k, v in settings.items() if k == "decoder_input_ids"}
    settings = {"do_sample": False, **settings, **arrays}
    with torch.no_grad():
        return checkpoint.model.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **settings)


def check(checkpoint: Made, ids: np.ndarray, mask: np.ndarray, **settings: Any) -> np.ndarray:
    """Compares one call, and returns the lengths of the answers."""
    wanted: Any = theirs(checkpoint, ids, mask, **ASKED, **settings)
    found: Any = checkpoint.ours.generate(ids, mask, **ASKED, **settings)
    np.testing.assert_array_equal(found.sequences, wanted.sequences.numpy())
    np.testing.assert_array_equal(found.beam_indices, wanted.beam_indices.numpy())
    scores = wanted.sequences_scores.numpy()
    np.testing.assert_allclose(found.sequences_scores, scores, atol=1e-4, rtol=1e-5)
    assert len(found.scores) == len(wanted.scores)
    return (found.beam_indices >= 0).sum(1)


def ends(checkpoint: Made, ids: np.ndarray, mask: np.ndarray, number: int) -> list[int]:
    """Tokens that the model puts out on its way, so that beams end at different steps."""
    free = theirs(checkpoint, ids, mask, num_beams=4, eos_token_id=None, max_new_tokens=NEW, pad_token_id=1)
    free = free.numpy()[:, -NEW:]
    return list(dict.fromkeys(int(free[row, step]) for row, step in ((0, 4), (1, 9), (2, 6), (0, 12), (1, 2))))[:number]


@pytest.mark.parametrize(
    ("model_type", "beams"),
    searches(
        {"llama": (2, 4), "t5": (3, 4), "bart": (4,), "gpt2": (2,)},
        ("qwen3", "gemma3_text", "mixtral", "mamba2", "bloom", "mbart", "m2m_100", "pegasus"),
    ),
)
def test_penalties_and_stopping(model_type: str, beams: int, made: Callable[[Case], Made]) -> None:  # noqa: F811
    checkpoint = made(first(model_type))
    ids, mask = batch(first(model_type), "left")
    eos = ends(checkpoint, ids, mask, 1 + beams % 2)
    lengths = [
        check(
            checkpoint,
            ids,
            mask,
            num_beams=beams,
            eos_token_id=eos,
            length_penalty=penalty,
            early_stopping=stopping,
            num_return_sequences=1 + i % beams,
            max_new_tokens=NEW,
        )
        for i, (penalty, stopping) in enumerate(itertools.product(PENALTIES, STOPPING))
    ]
    assert len(set(np.concatenate(lengths))) > 1, "all answers are of one length; other end tokens are needed"


@pytest.mark.parametrize(("model_type", "number"), [("t5", 3), pytest.param("llama", 5, marks=pytest.mark.full)])
def test_several_end_tokens_and_none(model_type: str, number: int, made: Callable[[Case], Made]) -> None:  # noqa: F811
    checkpoint = made(first(model_type))
    ids, mask = batch(first(model_type), "left")
    for eos in (ends(checkpoint, ids, mask, number), None):
        check(checkpoint, ids, mask, num_beams=3, num_return_sequences=3, eos_token_id=eos, max_new_tokens=NEW)


@pytest.mark.parametrize("model_type", ["t5", pytest.param("llama", marks=pytest.mark.full)])
def test_scores_and_logits_of_every_step(model_type: str, made: Callable[[Case], Made]) -> None:  # noqa: F811
    checkpoint = made(first(model_type))
    ids, mask = batch(first(model_type), "left")
    settings = {"num_beams": 3, "max_new_tokens": 6, "output_logits": True, "min_new_tokens": 3, **ASKED}
    wanted, found = theirs(checkpoint, ids, mask, **settings), checkpoint.ours.generate(ids, mask, **settings)
    assert set(found.keys()) <= set(wanted.keys())
    for name in ("scores", "logits"):
        assert len(found[name]) == len(wanted[name]) == 6
        for ours, other in zip(found[name], wanted[name], strict=True):
            expected = other.numpy()
            bound = 1e-4 * max(1.0, float(np.abs(expected[np.isfinite(expected)]).max()))
            np.testing.assert_allclose(ours, expected, atol=bound)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("bart", {"forced_bos_token_id": 17, "forced_eos_token_id": 2, "max_new_tokens": 9, "early_stopping": True}),
        ("t5", {"decoder_input_ids": [[5, 6]] * 3, "max_length": 9, "min_length": 6, "repetition_penalty": 1.4}),
        *(
            pytest.param(*row, marks=pytest.mark.full)
            for row in (
                ("t5", {"repetition_penalty": 1.7, "min_new_tokens": 6, "eos_token_id": 9, "max_new_tokens": 12}),
                ("t5", {"decoder_input_ids": [[0, 5, 6]] * 3, "max_new_tokens": 7}),
                ("bart", {"forced_bos_token_id": 17, "forced_eos_token_id": [4, 2], "max_length": 9, "min_length": 8}),
                ("m2m_100", {"forced_bos_token_id": 17, "max_new_tokens": 12, "decoder_start_token_id": 30}),
                ("mbart", {"forced_bos_token_id": 17, "forced_eos_token_id": 2, "max_new_tokens": 12}),
                ("llama", {"max_length": 30, "min_length": 26, "eos_token_id": 9}),
            )
        ),
    ],
    ids=str,
)
def test_other_settings(model_type: str, settings: dict[str, Any], made: Callable[[Case], Made]) -> None:  # noqa: F811
    ids, mask = batch(first(model_type), "right" if first(model_type).seq2seq else "left")
    check(made(first(model_type)), ids, mask, num_beams=4, num_return_sequences=2, **settings)


@pytest.mark.parametrize("model_type", ["t5", pytest.param("gpt2", marks=pytest.mark.full)])
def test_criteria_of_the_user(model_type: str, made: Callable[[Case], Made]) -> None:  # noqa: F811
    checkpoint = made(first(model_type))
    ids, mask = batch(first(model_type), "left")

    def multiples_of_seven(input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return input_ids[:, -1] % 7 == 0

    settings = {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": 3, "max_new_tokens": NEW}
    check(checkpoint, ids, mask, stopping_criteria=[multiples_of_seven], length_penalty=0.5, **settings)


@pytest.mark.parametrize("model_type", ["t5", pytest.param("llama", marks=pytest.mark.full)])
def test_stop_strings(model_type: str, made: Callable[[Case], Made]) -> None:  # noqa: F811
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    case = first(model_type)
    letters = [chr(ord("A") + i % 26) + chr(ord("a") + i // 26) for i in range(case.config["vocab_size"])]
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    checkpoint = made(case)
    ids, mask = batch(case, "left")
    settings: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": 2, "max_new_tokens": NEW}
    free = theirs(checkpoint, ids, mask, pad_token_id=1, **settings).numpy()[:, -NEW:]
    ended = [letters[free[0, 4]], letters[free[3, 2]][1] + letters[free[3, 3]][0]]  # the second across two tokens
    lengths = check(
        checkpoint,
        ids,
        mask,
        stop_strings=ended,
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer),
        **settings,
    )
    assert len(set(lengths)) > 1


def test_the_filling_is_the_pad_token(made: Callable[[Case], Made]) -> None:  # noqa: F811
    """Where the pad token is 0, Transformers fills with the first end token."""
    checkpoint = made(first("t5"))
    ids, mask = batch(first("t5"), "left")
    settings: dict[str, Any] = {"num_beams": 3, "eos_token_id": ends(checkpoint, ids, mask, 2), "max_new_tokens": NEW}
    lengths = check(checkpoint, ids, mask, early_stopping=True, **settings)
    out = np.asarray(checkpoint.ours.generate(ids, mask, early_stopping=True, pad_token_id=0, **settings))
    wanted = theirs(checkpoint, ids, mask, early_stopping=True, pad_token_id=0, **settings).numpy()
    filled = np.arange(out.shape[1]) > lengths[:, None]
    assert filled.any() and (out[filled] == 0).all() and (wanted[filled] == settings["eos_token_id"][0]).all()
    np.testing.assert_array_equal(out[~filled], wanted[~filled])


@pytest.mark.full
def test_beam_samples_are_distributed_as_theirs(made: Callable[[Case], Made]) -> None:  # noqa: F811
    """Two samples of the same distribution over the first two tokens, by the chi-square statistic of two samples."""
    import torch

    checkpoint = made(first("t5"))
    number, vocabulary = 2048, first("t5").config["vocab_size"]
    ids = np.tile(batch(first("t5"), "none", rows=1, tokens=7)[0], (number, 1))
    draws = {"do_sample": True, "num_beams": 2, "top_k": 3, "temperature": 1.5, "max_new_tokens": 2, "pad_token_id": 1}
    torch.manual_seed(0)
    other = theirs(checkpoint, ids, np.ones_like(ids), eos_token_id=None, **draws).numpy()[:, 1:]
    ours = np.asarray(checkpoint.ours.generate(ids, seed=0, eos_token_id=None, **draws))[:, 1:]
    a, b = (np.bincount(x[:, 0] * vocabulary + x[:, 1], minlength=vocabulary**2) for x in (ours, other))
    common = a + b > 10
    assert common.sum() >= 5 and (a + b)[common].sum() > 1.9 * number
    chi_square = ((a - b)[common] ** 2 / (a + b)[common]).sum()
    assert chi_square < common.sum() + 4 * np.sqrt(2 * common.sum())
