import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.generation.processors import StepState, process, processors_for
from jaxpipe.generation.processors_history import RepetitionPenalty
from jaxpipe.generation.processors_tokens import MinNewTokens
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.stopping import eos_array
from jaxpipe.generation.warpers import MinP, Temperature, TopK, TopP
from tests.generation.histories import VOCAB, assert_same, scores_of

IDS = np.array([[0, 0, 5, 9, 5, 30], [1, 2, 3, 4, 36, 4], [0, 7, 7, 7, 8, 0]])
MASK = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])


def _state(step: int = 2, spare: int = 3) -> StepState:
    """The state of `IDS`, of whose positions ``step`` are new, with slots that are not yet written."""
    tokens = np.pad(IDS, ((0, 0), (0, spare)), constant_values=11)
    valid = np.pad(MASK.astype(bool), ((0, 0), (0, spare)))
    return StepState(
        jnp.asarray(tokens, jnp.int32),
        jnp.asarray(valid),
        jnp.asarray(MASK[:, : IDS.shape[1] - step].sum(1), jnp.int32),
        jnp.int32(step),
    )


def _settled(**values: Any) -> Settled:
    return Settled(prompt_length=4, max_new_tokens=50, **values)


def _oracle(settled: Settled, scores: np.ndarray) -> np.ndarray:
    """The same settings through Transformers' own choice and order of processors."""
    import torch
    import transformers
    from transformers.generation.utils import GenerationMixin

    class Model(GenerationMixin):
        config = transformers.LlamaConfig()

    config = transformers.GenerationConfig(
        do_sample=settled.do_sample,
        repetition_penalty=settled.repetition_penalty,
        min_length=settled.min_new_tokens + settled.prompt_length,
        min_new_tokens=settled.min_new_tokens,
        max_length=settled.max_length,
        forced_bos_token_id=settled.forced_bos_token_id,
        forced_eos_token_id=list(settled.forced_eos_token_ids) or None,
        **(
            {"temperature": settled.temperature, "top_k": settled.top_k, "top_p": settled.top_p}
            if settled.do_sample
            else {}
        ),
        **({"min_p": settled.min_p} if settled.min_p else {}),
    )
    config._eos_token_tensor = torch.tensor(settled.eos_token_ids) if settled.eos_token_ids else None
    mask = torch.tensor(MASK[:, : settled.prompt_length])
    processors = Model()._get_logits_processor(
        config, input_ids_seq_length=settled.prompt_length, model_kwargs={"attention_mask": mask}
    )
    return processors(torch.tensor(IDS), torch.tensor(scores)).numpy()


def _ours(settled: Settled, scores: np.ndarray) -> np.ndarray:
    processors = processors_for(settled, VOCAB)
    return np.asarray(jax.jit(process)(processors, jnp.asarray(scores), _state()))


SETTINGS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6, "min_new_tokens": 3, "eos_token_ids": (5, 36)},
    {"min_new_tokens": 2, "eos_token_ids": (5,)},
    {"min_new_tokens": 9, "eos_token_ids": (1, 2, 3, 4, 5, 6)},
    {"min_new_tokens": 50, "eos_token_ids": (5,), "forced_eos_token_ids": (5, 7)},
    {"do_sample": True, "temperature": 0.3},
    {"do_sample": True, "top_k": 1},
    {"do_sample": True, "top_k": 5},
    {"do_sample": True, "top_k": 36},
    {"do_sample": True, "top_k": 37},
    {"do_sample": True, "top_k": 5000},
    {"do_sample": True, "top_p": 0.9},
    {"do_sample": True, "top_p": 0.3},
    {"do_sample": True, "top_p": 0.0},
    {"do_sample": True, "top_k": 7, "top_p": 0.8},
    {"do_sample": True, "top_k": 33, "top_p": 0.6},
    {"do_sample": True, "min_p": 0.1},
    {"do_sample": True, "min_p": 1.0},
    {
        "do_sample": True,
        "repetition_penalty": 1.3,
        "min_new_tokens": 5,
        "eos_token_ids": (9,),
        "temperature": 1.9,
        "top_k": 20,
        "top_p": 0.85,
        "min_p": 0.02,
    },
]


@pytest.mark.oracle
@pytest.mark.parametrize("step", [0, 1, 4])
def test_forced_tokens_equal_the_oracle(step: int) -> None:
    """The first and the last of five new tokens after a prompt of one."""
    import torch
    import transformers

    settled = Settled(prompt_length=1, max_new_tokens=5, forced_bos_token_id=3, forced_eos_token_ids=(36, 8))
    scores, ids = scores_of("random"), torch.ones((3, 1 + step), dtype=torch.int64)
    theirs = torch.tensor(scores)
    for processor in (
        transformers.ForcedBOSTokenLogitsProcessor(3),
        transformers.ForcedEOSTokenLogitsProcessor(settled.max_length, [36, 8]),
    ):
        theirs = processor(ids, theirs)
    state = dataclasses.replace(_state(), step=jnp.int32(step))
    assert_same(np.asarray(process(processors_for(settled, VOCAB), jnp.asarray(scores), state)), theirs.numpy())
    longer = dataclasses.replace(settled, prompt_length=2, forced_eos_token_ids=())
    assert processors_for(longer, VOCAB) == ()


def test_a_forced_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"forced_eos_token_id=37.*0 to 36"):
        processors_for(_settled(forced_eos_token_ids=(5, 37)), VOCAB)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["random", "ties", "masked", "flat"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_processed_scores_equal_the_oracle(settings: dict[str, Any], kind: str) -> None:
    settled = _settled(**settings)
    scores = scores_of(kind)
    # torch's sort is not stable: which of several equal tokens at the nucleus's border goes is not defined there.
    undefined = settled.top_p < 1.0 and kind in ("ties", "flat")
    assert_same(_ours(settled, scores), _oracle(settled, scores), in_any_order=undefined)


@pytest.mark.oracle
def test_top_p_after_top_k_equals_the_oracle_whatever_the_ties() -> None:
    rng = np.random.default_rng(0)
    run = jax.jit(process)
    for top_k, top_p in itertools.product((1, 3, 4, 8), (0.15, 0.5, 0.95)):
        scores = rng.integers(-2, 3, (3, VOCAB)).astype(np.float32)
        settled = _settled(do_sample=True, top_k=top_k, top_p=top_p)
        ours = np.asarray(run(processors_for(settled, VOCAB), scores, _state()))
        assert_same(ours, _oracle(settled, scores), in_any_order=True)


def test_order_and_presence_of_processors() -> None:
    everything = _settled(
        repetition_penalty=1.1, min_new_tokens=1, eos_token_ids=(3,), do_sample=True, temperature=0.5, top_k=9,
        top_p=0.5, min_p=0.1,
    )  # fmt: skip
    kinds = [type(processor) for processor in processors_for(everything, VOCAB)]
    assert kinds == [RepetitionPenalty, MinNewTokens, Temperature, TopK, TopP, MinP]
    assert processors_for(_settled(), VOCAB) == ()
    assert processors_for(_settled(min_new_tokens=4), VOCAB) == ()  # there is no token to forbid
    assert processors_for(_settled(do_sample=True, top_k=VOCAB), VOCAB) == ()


def test_other_values_run_the_same_compiled_code() -> None:
    run = jax.jit(lambda processors, logits, state: process(processors, logits, state))
    for penalty, minimum, eos, temperature, top_k, top_p, min_p in (
        (1.1, 1, (3,), 0.5, 9, 0.5, 0.1),
        (1.7, 8, (4, 5, 6), 1.5, 16, 0.9, 0.3),
    ):
        settled = _settled(
            repetition_penalty=penalty, min_new_tokens=minimum, eos_token_ids=eos, do_sample=True,
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        )  # fmt: skip
        run(processors_for(settled, VOCAB), jnp.zeros((3, VOCAB)), _state(step=minimum))
    assert run._cache_size() == 1


def test_repetition_penalty_leaves_out_padding_and_unwritten_slots() -> None:
    scores = np.full((3, VOCAB), 2.0, np.float32)
    scores[:, 9] = -2.0
    result = np.asarray(RepetitionPenalty(2.0)(jnp.asarray(scores), _state()))
    assert result[0, [5, 30]].tolist() == [1.0, 1.0] and result[0, 9] == -4.0
    assert result[0, 0] == 2.0 and result[0, 11] == 2.0  # padding; unwritten
    assert result[2, 0] == 1.0  # the same id as padding, but generated


def test_top_k_keeps_ties_of_the_kth() -> None:
    result = np.asarray(TopK(2, 2)(jnp.array([[3.0, 1.0, 2.0, 2.0, 0.0]]), _state()))
    assert np.isfinite(result).tolist() == [[True, False, True, True, False]]


def test_top_p_drops_the_lower_ids_among_ties_at_the_border() -> None:
    logits = jnp.log(jnp.array([[0.125, 0.125, 0.25, 0.25, 0.25]]))
    for candidates in (None, 4, 5):
        kept = np.isfinite(np.asarray(TopP(np.float32(0.6), candidates)(logits, _state())))
        assert kept.tolist() == [[False, False, False, True, True]]


def test_a_rows_nucleus_does_not_depend_on_its_neighbours() -> None:
    rng = np.random.default_rng(1)
    row = rng.normal(size=(1, VOCAB)).astype(np.float32)
    tied = np.zeros((1, VOCAB), np.float32)
    processors = (TopK(4, 4), TopP(np.float32(0.3), 4))
    alone = process(processors, jnp.asarray(row), _state())
    beside = process(processors, jnp.asarray(np.concatenate([row, tied])), _state())
    assert (np.asarray(beside[:1]) == np.asarray(alone)).all()


def test_eos_ids_outside_the_vocabulary_are_never_drawn_in() -> None:
    logits = MinNewTokens(np.int32(9), eos_array([2, VOCAB + 4]))(jnp.zeros((3, VOCAB)), _state())
    assert np.flatnonzero(np.isneginf(np.asarray(logits[0]))).tolist() == [2]


def test_logits_are_processed_in_float32() -> None:
    assert process((Temperature(np.float32(2.0)),), jnp.zeros((3, VOCAB), jnp.bfloat16), _state()).dtype == jnp.float32
    assert process((), jnp.zeros((3, VOCAB), jnp.bfloat16), _state()).dtype == jnp.float32
