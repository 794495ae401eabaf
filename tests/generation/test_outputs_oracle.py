"""Hidden states, attentions and transition scores of `generate` are those of Transformers."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from tests.parity.cases import CASES, CAUSAL_LM, SEQ2SEQ_LM, Case
from tests.parity.harness import Made, batch, made  # noqa: F401

pytestmark = pytest.mark.oracle

NEW = 5
ASKED = {
    "return_dict_in_generate": True,
    "output_hidden_states": True,
    "output_attentions": True,
    "output_scores": True,
    "max_new_tokens": NEW,
    "pad_token_id": 1,
}


def first(model_type: str) -> Case:
    return next(case for row in CASES[model_type] for case in row if case.head in (CAUSAL_LM, SEQ2SEQ_LM))


def theirs(checkpoint: Made, ids: np.ndarray, mask: np.ndarray, **settings: Any) -> Any:
    import torch

    arrays = {k: torch.tensor(v) for k, v in settings.items() if k == "decoder_input_ids"}
    with torch.no_grad():
        return checkpoint.model.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **{**settings, **arrays})


def compare(name: str, ours: Any, wanted: Any, mask: np.ndarray) -> None:
    """Compares a field; what stands at padding of the prompt is another matter."""
    if isinstance(wanted, tuple):
        assert isinstance(ours, tuple)
        assert len(ours) == len(wanted), name
        for i, (own, other) in enumerate(zip(ours, wanted, strict=True)):
            compare(f"{name}[{i}]", own, other, mask)
        return
    other = wanted.detach().numpy()
    assert ours.shape == other.shape, (name, ours.shape, other.shape)
    tokens = ours.shape[-2]
    if tokens == mask.shape[1] and tokens > 1 and not name.startswith("encoder"):
        kept = np.repeat(mask, len(ours) // len(mask), axis=0).astype(bool)
        own, other = (np.moveaxis(x, -2, 1)[kept] for x in (ours, other))
        assert not np.moveaxis(ours, -2, 1)[~kept].any()
    else:
        own = ours
    bound = 1e-4 * max(1.0, float(np.abs(other).max()))
    np.testing.assert_allclose(own, other, atol=bound, err_msg=name)


def check(checkpoint: Made, ids: np.ndarray, mask: np.ndarray, **settings: Any) -> Any:
    settings = {**ASKED, **settings}
    wanted = theirs(checkpoint, ids, mask, **settings)
    found: Any = checkpoint.ours.generate(ids, mask, **settings)
    assert type(found).__name__ == type(wanted).__name__
    names = [name for name in wanted if name != "past_key_values"]
    assert [name for name in found if name != "past_key_values"] == names
    np.testing.assert_array_equal(found.sequences, wanted.sequences.numpy())
    if checkpoint.case.seq2seq:  # the decoder's prompt, the start token before it
        mask = np.ones((len(ids), 1 + np.shape(settings.get("decoder_input_ids", np.zeros((1, 0))))[1]), int)
    for name in names:
        if name not in ("sequences", "scores", "sequences_scores", "beam_indices"):
            compare(name, found[name], wanted[name], mask)
    return found, wanted


OTHERS = ("gpt2", "bart", "qwen3", "gemma3_text", "mixtral", "bloom", "opt", "gpt_oss", "deepseek_v3", "pegasus")


@pytest.mark.parametrize(
    ("model_type", "padding"),
    [
        ("llama", "left"),
        ("t5", "left"),
        pytest.param("llama", "none", marks=pytest.mark.full),
        *(pytest.param(name, "left", marks=pytest.mark.full) for name in OTHERS),
    ],
)
def test_greedy(model_type: str, padding: str, made: Callable[[Case], Made]) -> None:  # noqa: F811
    checkpoint = made(first(model_type))
    ids, mask = batch(first(model_type), padding)
    check(checkpoint, ids, mask, do_sample=False)


@pytest.mark.parametrize("model_type", ["llama", "t5", *(pytest.param(n, marks=pytest.mark.full) for n in OTHERS[:5])])
def test_beams(model_type: str, made: Callable[[Case], Made]) -> None:  # noqa: F811
    checkpoint = made(first(model_type))
    ids, mask = batch(first(model_type), "left")
    found, wanted = check(checkpoint, ids, mask, do_sample=False, num_beams=3, num_return_sequences=2)
    import torch

    for normalize in (False, True):
        scores = checkpoint.model.compute_transition_scores(
            wanted.sequences, wanted.scores, wanted.beam_indices, normalize_logits=normalize
        )
        own = checkpoint.ours.compute_transition_scores(
            found.sequences, found.scores, found.beam_indices, normalize_logits=normalize
        )
        assert isinstance(scores, torch.Tensor)
        np.testing.assert_allclose(own, scores.numpy(), atol=1e-4)


@pytest.mark.parametrize("model_type", ["t5", pytest.param("bart", marks=pytest.mark.full)])
def test_prompts_of_a_decoder(model_type: str, made: Callable[[Case], Made]) -> None:  # noqa: F811
    checkpoint = made(first(model_type))
    ids, mask = batch(first(model_type), "left")
    check(checkpoint, ids, mask, do_sample=False, decoder_input_ids=[[5, 6, 7]] * 3, max_new_tokens=3)


@pytest.mark.parametrize("model_type", ["llama", pytest.param("t5", marks=pytest.mark.full)])
def test_rows_that_end_early(model_type: str, made: Callable[[Case], Made]) -> None:  # noqa: F811
    checkpoint = made(first(model_type))
    ids, mask = batch(first(model_type), "left")
    free = np.asarray(checkpoint.ours.generate(ids, mask, max_new_tokens=8, eos_token_id=None, do_sample=False))
    eos = [int(free[0, -6]), int(free[1, -4]), int(free[2, -3])]  # all end, at different steps
    found, wanted = check(checkpoint, ids, mask, do_sample=False, max_new_tokens=12, eos_token_id=eos)
    assert len(found.scores) < 12
    scores = checkpoint.model.compute_transition_scores(wanted.sequences, wanted.scores, normalize_logits=True)
    own = checkpoint.ours.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
    np.testing.assert_allclose(own, scores.numpy(), atol=1e-4)


@pytest.mark.parametrize("model_type", ["t5", pytest.param("llama", marks=pytest.mark.full)])
def test_shapes_of_several_sequences(model_type: str, made: Callable[[Case], Made]) -> None:  # noqa: F811
    checkpoint = made(first(model_type))
    ids, mask = batch(first(model_type), "left")
    settings = {**ASKED, "do_sample": True, "num_return_sequences": 2, "eos_token_id": None, "output_logits": True}
    wanted, found = theirs(checkpoint, ids, mask, **settings), checkpoint.ours.generate(ids, mask, seed=0, **settings)
    shapes = [
        jax.tree.map(lambda x: tuple(x.shape), out[name])
        for out in (found, wanted)
        for name in found
        if name != "past_key_values"
    ]
    assert shapes[: len(shapes) // 2] == shapes[len(shapes) // 2 :]
    if model_type == "t5":  # the encoder reads each input once
        both = checkpoint.oracle(
            input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :1], output_hidden_states=True
        )
        compare("encoder", found.encoder_hidden_states, both.encoder_hidden_states, mask[:, :1])
