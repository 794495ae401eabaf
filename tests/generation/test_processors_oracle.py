"""Whole chains of processors, as settings ask for them, against Transformers' own choice, order and arithmetic."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.generation.processors import process, processors_for
from jaxpipe.generation.processors_user import user_processors
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.step import NO_TOKEN
from tests.generation.histories import VOCAB, Histories, assert_same, scores_of

pytestmark = [pytest.mark.oracle]

ALIKE = (
    "do_sample", "num_beams", "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "forced_bos_token_id", "remove_invalid_values", "renormalize_logits",
    "min_new_tokens", "exponential_decay_length_penalty",
)  # fmt: skip
WARPERS = ("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def settled(**values: Any) -> Settled:
    return Settled(**{"prompt_length": 4, "max_new_tokens": 10, **values})


def oracle(settings: Settled, prompt: int, source: Any = None, user: list[Any] | None = None) -> Any:
    """Makes Transformers' processors for one row with a prompt of a length."""
    import torch
    import transformers
    from transformers.generation.utils import GenerationMixin

    class Model(GenerationMixin):
        config = transformers.LlamaConfig()

    values = {name: getattr(settings, name) for name in ALIKE}
    for name in ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_eos_token_ids"):
        value = [list(x) if isinstance(x, tuple) else x for x in getattr(settings, name)]
        values[name.replace("eos_token_ids", "eos_token_id")] = value or None
    values["sequence_bias"] = [[list(ids), bias] for ids, bias in settings.sequence_bias] or None
    if settings.do_sample:
        values |= {name: getattr(settings, name) for name in WARPERS}
    config = transformers.GenerationConfig(
        max_length=prompt + settings.max_new_tokens, min_length=prompt + settings.min_new_tokens, **values
    )
    config._eos_token_tensor = torch.tensor(settings.eos_token_ids) if settings.eos_token_ids else None
    return Model()._get_logits_processor(
        config,
        input_ids_seq_length=prompt,
        encoder_input_ids=None if source is None else torch.tensor(source)[None],
        model_kwargs={"attention_mask": torch.ones((1, prompt))},
        logits_processor=transformers.LogitsProcessorList(user or []),
    )


def compare(settings: Settled, told: Histories, kinds: list[str], *, source: bool = False, ties: bool = False) -> None:
    """Compares on scores of several kinds; with `ties`, equal scores may stand in another order."""
    rng = np.random.default_rng(3)
    sources = [row[:n] for row, n in zip(told.rows, told.prompts, strict=True)]
    if source:
        sources = [rng.integers(3, 6, n) for n in (9, 2, 16)]
    padded = np.stack([np.pad(row, (0, 16 - len(row)), constant_values=NO_TOKEN) for row in sources]).astype(np.int32)
    processors = processors_for(settings, VOCAB, source=padded if source else None)
    run = jax.jit(process)
    for kind in kinds:
        scores = scores_of(kind)
        theirs = told.by_row(lambda i, n: oracle(settings, n, sources[i]), scores)
        ours = run(processors, jnp.asarray(scores), told.state)
        assert_same(ours, theirs, in_any_order=ties and kind in ("ties", "flat"))


TOKENS: list[dict[str, Any]] = [
    {"min_new_tokens": 5, "eos_token_ids": (3, 36)},
    {"suppress_tokens": (0, 5, 36)},
    {"begin_suppress_tokens": (0, 5, 36)},
    {"exponential_decay_length_penalty": (0, 1.01), "eos_token_ids": (3, 20)},
    {"exponential_decay_length_penalty": (3, 1.7), "eos_token_ids": (3,)},
    {"exponential_decay_length_penalty": (4, 0.5), "eos_token_ids": (3, 4, 5, 6, 7)},
    {"renormalize_logits": True},
    {"forced_eos_token_ids": (3, 9), "suppress_tokens": (9,), "max_new_tokens": 6},
    {
        "sequence_bias": (((3, 4), 2.0), ((7,), -1.5)), "encoder_repetition_penalty": 1.4, "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 3, "bad_words_ids": ((9,), (3, 3)),
        "min_new_tokens": 4, "eos_token_ids": (3,), "remove_invalid_values": True, "suppress_tokens": (5,),
        "exponential_decay_length_penalty": (2, 1.2), "begin_suppress_tokens": (6, 7), "renormalize_logits": True,
    },
]  # fmt: skip


@pytest.mark.parametrize("settings", TOKENS, ids=str)
def test_processors_of_tokens_equal_the_oracle(settings: dict[str, Any]) -> None:
    for step in (0, 3, 5):
        compare(settled(**settings), Histories([4, 12, 2], step), ["random", "ties", "masked"], source=step == 3)


def test_the_first_tokens_after_a_start_token_alone() -> None:
    settings = settled(
        prompt_length=1,
        max_new_tokens=4,
        forced_bos_token_id=5,
        begin_suppress_tokens=(7, 8),
        forced_eos_token_ids=(2,),
    )
    for step in range(4):
        compare(settings, Histories([1, 1, 1], step), ["random"])
    compare(dataclasses.replace(settings, forced_bos_token_id=None), Histories([1, 1, 1], 0), ["random"])


def test_invalid_values_are_replaced_as_in_the_oracle() -> None:
    told = Histories([4, 4, 4], 2)
    compare(settled(remove_invalid_values=True), told, ["invalid"])
    compare(settled(repetition_penalty=1.3, remove_invalid_values=True), told, ["invalid"])
    everything = settled(
        bad_words_ids=((4,),), exponential_decay_length_penalty=(0, 1.5), eos_token_ids=(9,), suppress_tokens=(8,)
    )
    compare(everything, told, ["masked", "invalid"])


SAMPLING: list[dict[str, Any]] = [
    *({"top_h": value} for value in (0.05, 0.4, 0.93)),
    *({"typical_p": value} for value in (0.05, 0.5, 0.9, 0.999)),
    *({"epsilon_cutoff": value} for value in (3e-3, 0.03, 0.9)),
    *({"eta_cutoff": value} for value in (3e-3, 0.1, 0.9)),
    *({"min_p": value} for value in (0.1, 0.9)),
    *({"top_p": value} for value in (0.001, 0.7)),
    *({"top_k": value} for value in (1, 5)),
    {
        "temperature": 1.4, "top_h": 0.95, "top_k": 15, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.9,
        "epsilon_cutoff": 0.004, "eta_cutoff": 0.02, "renormalize_logits": True,
    },
]  # fmt: skip


@pytest.mark.parametrize(
    "beams",
    [{}, pytest.param({"num_beams": 2}, marks=pytest.mark.full), {"num_beams": 3, "eos_token_ids": (3, 4)}],
    ids=str,
)
@pytest.mark.parametrize("settings", SAMPLING, ids=str)
def test_what_is_sampled_from_equals_the_oracle(settings: dict[str, Any], beams: dict[str, Any]) -> None:
    kinds = ["random", "masked", "ties", "flat"]
    compare(settled(do_sample=True, **settings, **beams), Histories([4, 4, 4], 1), kinds, ties=True)


@pytest.mark.parametrize("mode", ["greedy", "sampling"])
def test_all_processors_stand_in_the_oracles_order(mode: str) -> None:
    """Each pair that does not commute would differ in the values; the names are compared as well."""
    import transformers

    class Theirs(transformers.LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            return scores * 1.5 + input_ids[:, -1:]

    def ours_of(input_ids: jax.Array, scores: jax.Array) -> jax.Array:
        return scores * 1.5 + input_ids[:, -1:]

    settings = settled(
        **TOKENS[-1],
        forced_bos_token_id=7, forced_eos_token_ids=(2,), prompt_length=1, do_sample=mode == "sampling",
        **({name: value for name, value in SAMPLING[-1].items() if name in WARPERS} if mode == "sampling" else {}),
    )  # fmt: skip
    told = Histories([1, 1, 1], 3)
    user = user_processors([ours_of], told.state.tokens.shape, VOCAB)
    source = np.tile(np.asarray([[3, 4, 3, 5, 4, 3]], np.int32), (3, 1))
    processors = processors_for(settings, VOCAB, source=source, user=user)
    theirs = oracle(settings, 1, source[0], [Theirs()])
    names = [
        NAMES[type(processor).__name__]
        for processor in theirs
        if type(processor).__name__ != "MinLengthLogitsProcessor"
    ]
    assert [type(processor).__name__ for processor in processors] == [name for name in names if name]
    scores = scores_of("random")
    assert_same(
        jax.jit(process)(processors, jnp.asarray(scores), told.state),
        told.by_row(lambda i, n: oracle(settings, n, source[0], [Theirs()]), scores),
    )


NAMES = {
    "SequenceBiasLogitsProcessor": "SequenceBias",
    "EncoderRepetitionPenaltyLogitsProcessor": "EncoderRepetitionPenalty",
    "RepetitionPenaltyLogitsProcessor": "RepetitionPenalty",
    "NoRepeatNGramLogitsProcessor": "NoRepeatNgram",
    "EncoderNoRepeatNGramLogitsProcessor": "EncoderNoRepeatNgram",
    "NoBadWordsLogitsProcessor": "SequenceBias",
    "MinNewTokensLengthLogitsProcessor": "MinNewTokens",
    "ForcedBOSTokenLogitsProcessor": "ForcedTokens",
    "ForcedEOSTokenLogitsProcessor": "ForcedTokens",
    "InfNanRemoveLogitsProcessor": "RemoveInvalid",
    "ExponentialDecayLengthPenalty": "ExponentialDecay",
    "SuppressTokensLogitsProcessor": "SuppressTokens",
    "SuppressTokensAtBeginLogitsProcessor": "SuppressTokensAtStep",
    "Theirs": "UserProcessor",
    "TemperatureLogitsWarper": "Temperature",
    "TopHLogitsWarper": "TopH",
    "TopKLogitsWarper": "TopK",
    "TopPLogitsWarper": "TopP",
    "MinPLogitsWarper": "MinP",
    "TypicalLogitsWarper": "TypicalP",
    "EpsilonLogitsWarper": "EpsilonCutoff",
    "EtaLogitsWarper": "EtaCutoff",
    "LogitNormalization": "Renormalize",
}


def test_prefix_constraint_equals_the_oracle(rule_of: Callable[..., Any]) -> None:
    from transformers import PrefixConstrainedLogitsProcessor

    def allowed(prompt: int, ids: Any) -> list[int]:
        return [3 + prompt, int(ids[-1]), 30] if len(ids) % 2 else list(range(5, 20))

    for beams in (1, 3):
        told, scores = Histories([3, 3, 3], 2), scores_of("masked")
        scores[1, :] = -np.inf
        ours = rule_of(allowed, told, scores, prompts=3 // beams)
        import torch

        theirs = PrefixConstrainedLogitsProcessor(allowed, beams)(
            torch.tensor(np.stack(told.rows)), torch.tensor(scores)
        )
        assert_same(ours, theirs.numpy())


@pytest.fixture
def rule_of() -> Any:
    """Applies a prefix_allowed_tokens_fn to scores in a jit."""
    from jaxpipe.generation.processors_user import AllowedTokens, given_processors

    def apply(function: Any, told: Histories, scores: np.ndarray, prompts: int) -> np.ndarray:
        with given_processors(None, function) as given:
            assert given.rule is not None
            given.rule.bind(settled(eos_token_ids=(2,)), prompts, prompts)
            processors = (AllowedTokens(np.int32(given.number), prompts),)
            return np.asarray(jax.jit(process)(processors, jnp.asarray(scores), told.state))

    return apply
