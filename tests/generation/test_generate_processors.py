"""`generate` with every kind of logits processor: the ids of Transformers, and what the user's own functions may do."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from jaxpipe.model import PreTrainedModel
from tests.parity.cases import CASES, SEQ2SEQ_LM, Case
from tests.parity.harness import Made, batch, made  # noqa: F401

VOCABULARY = 61
COMBINED: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[7], [9, 11], [20, 21, 22]],
    "suppress_tokens": [4, 5],
    "begin_suppress_tokens": [8, 30],
    "min_new_tokens": 6,
    "forced_eos_token_id": [2, 6],
}
OTHERS: list[dict[str, Any]] = [
    {
        "sequence_bias": [[[7], 3.0], [[9, 11], 12.0], [[12], -4.0], [[93], -30.0], [[46], -30.0]],
        "renormalize_logits": True,
    },
    {"encoder_no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.5},
    {"encoder_repetition_penalty": 1.0001, "encoder_no_repeat_ngram_size": 1, "sequence_bias": [[[46], -30.0]]},
    {"exponential_decay_length_penalty": (2, 1.9), "remove_invalid_values": True},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 3, "repetition_penalty": 0.7},
]


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", vocab_size=VOCABULARY, eos_token_id=2, initializer_range=0.6, **shape)
    return AutoModelForCausalLM.from_config(config, seed=1)


@pytest.fixture(scope="module")
def t5() -> PreTrainedModel:
    shape = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 24, "num_layers": 1, "vocab_size": VOCABULARY}
    config = AutoConfig.for_model("t5", decoder_start_token_id=0, eos_token_id=None, **shape)
    return AutoModelForSeq2SeqLM.from_config(config, seed=1)


def prompts(*lengths: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    ids, mask = np.zeros((2, len(lengths), max(lengths)), int)
    for i, n in enumerate(lengths):
        ids[i, -n:], mask[i, -n:] = rng.integers(3, VOCABULARY, n), 1
    return ids, mask


def case_of(model_type: str) -> Case:
    cases = CASES[model_type][0]
    return next((case for case in cases if case.head == SEQ2SEQ_LM), cases[0])


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("llama", COMBINED),
        ("bart", {**COMBINED, "forced_bos_token_id": 17}),
        pytest.param("t5", COMBINED, marks=pytest.mark.full),
        *(pytest.param(name, other, marks=pytest.mark.full) for name in ("llama", "bart") for other in OTHERS),
    ],
    ids=str,
)
def test_greedy_ids_equal_the_oracle(
    model_type: str,
    settings: dict[str, Any],
    made: Callable[[Case], Made],  # noqa: F811
) -> None:
    checkpoint = made(case_of(model_type))
    # Their padding counts as history in these two; ours never does.
    counts = "encoder_repetition_penalty" in settings or settings.get("no_repeat_ngram_size") == 1
    for padding in ("none",) if counts else ("none", "left"):
        ids, mask = batch(checkpoint.case, padding)
        given = {"max_new_tokens": 12, "pad_token_id": 0, **settings}
        theirs = checkpoint.oracle_greedy(ids, mask, **given)
        np.testing.assert_array_equal(np.asarray(checkpoint.ours.generate(ids, mask, **given)), theirs)
        assert not np.array_equal(theirs, checkpoint.oracle_greedy(ids, mask, max_new_tokens=12, pad_token_id=0))


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("bart", {**COMBINED, "forced_bos_token_id": 17, "forced_eos_token_id": 2, "num_beams": 3}),
        pytest.param("llama", {**COMBINED, "num_beams": 2}, marks=pytest.mark.full),
        *(pytest.param("bart", {**other, "num_beams": 2}, marks=pytest.mark.full) for other in OTHERS),
    ],
    ids=str,
)
def test_beams_equal_the_oracle(
    model_type: str,
    settings: dict[str, Any],
    made: Callable[[Case], Made],  # noqa: F811
) -> None:
    checkpoint = made(case_of(model_type))
    ids, mask = batch(checkpoint.case, "none")
    given = {"max_new_tokens": 12, "pad_token_id": 0, **settings}
    theirs = checkpoint.oracle_greedy(ids, mask, **given)
    np.testing.assert_array_equal(np.asarray(checkpoint.ours.generate(ids, mask, **given)), theirs)


def new_tokens(model: PreTrainedModel, ids: np.ndarray, mask: np.ndarray, **settings: Any) -> np.ndarray:
    out = np.asarray(model.generate(ids, mask, **{"max_new_tokens": 8, "eos_token_id": None, **settings}))
    return out[:, -8:]


@pytest.mark.parametrize("name", [pytest.param("llama", marks=pytest.mark.full), "t5"])
def test_a_row_has_its_own_history_alone(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    settings = {**COMBINED, **OTHERS[1], "forced_eos_token_id": None}
    ids, mask = prompts(3, 15, 9, 4)
    together = new_tokens(model, ids, mask, **settings)
    for i, n in enumerate((3, 15, 9)):
        alone = new_tokens(model, ids[i : i + 1, -n:], mask[i : i + 1, -n:], **settings)
        np.testing.assert_array_equal(together[i], alone[0])


def test_settings_that_are_off_and_other_values_compile_nothing(llama: PreTrainedModel) -> None:
    ids, mask = prompts(5, 4)
    new_tokens(llama, ids, mask)
    generator = llama._generator
    count = generator.decode._cache_size()
    new_tokens(llama, ids, mask, no_repeat_ngram_size=0, suppress_tokens=[], sequence_bias=None, typical_p=1.0)
    assert generator.decode._cache_size() == count
    for size, words, penalty in ((2, [[7], [9, 8]], 1.2), (4, [[30, 3], [4]], 1.9)):
        new_tokens(llama, ids, mask, no_repeat_ngram_size=size, bad_words_ids=words, repetition_penalty=penalty)
    assert generator.decode._cache_size() == count + 1


def even_only(input_ids: jax.Array, scores: jax.Array) -> jax.Array:
    return jnp.where(jnp.arange(scores.shape[1]) % 2 == 0, scores, -jnp.inf)


def not_the_last(input_ids: jax.Array, scores: jax.Array) -> jax.Array:
    rows = jnp.arange(len(scores))
    return scores.at[rows, input_ids[:, -1]].set(-jnp.inf)


def never_again(input_ids: jax.Array, scores: jax.Array) -> jax.Array:
    return scores.at[jnp.arange(len(scores))[:, None], input_ids].set(-jnp.inf)


def test_a_users_function_runs_in_the_compiled_loop(llama: PreTrainedModel) -> None:
    ids, mask = prompts(5, 2)
    even = new_tokens(llama, ids, mask, logits_processor=[even_only, not_the_last])
    assert (even % 2 == 0).all() and (even[:, 1:] != even[:, :-1]).all()
    # A function that looks back sees each row's tokens and no padding: the same as a ban of 1-grams.
    ours = new_tokens(llama, ids, mask, logits_processor=never_again)
    np.testing.assert_array_equal(ours, new_tokens(llama, ids, mask, no_repeat_ngram_size=1))
    count = llama._generator.decode._cache_size()
    new_tokens(llama, ids, mask, logits_processor=never_again)
    new_tokens(llama, ids, mask, logits_processor=jax.tree_util.Partial(offset, jnp.ones(VOCABULARY)))
    new_tokens(llama, ids, mask, logits_processor=jax.tree_util.Partial(offset, jnp.zeros(VOCABULARY)))
    assert llama._generator.decode._cache_size() == count + 1


def offset(added: jax.Array, input_ids: jax.Array, scores: jax.Array) -> jax.Array:
    return scores + added


def test_a_users_function_with_beams_and_sampling(llama: PreTrainedModel) -> None:
    ids, mask = prompts(5, 2)
    for settings in ({"num_beams": 2}, {"do_sample": True, "seed": 3, "num_return_sequences": 2}):
        assert (new_tokens(llama, ids, mask, logits_processor=[even_only], **settings) % 2 == 0).all()


def branches(input_ids: jax.Array, scores: jax.Array) -> jax.Array:
    return scores if scores[0, 0] > 0 else -scores


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            [even_only, branches],
            r"logits_processor\[1\], .*branches.*cannot be traced by jax: TracerBoolConversionError",
        ),
        (lambda ids, scores: np.log(scores), r"logits_processor\[0\].*cannot be traced"),
        (lambda ids: ids, r"logits_processor\[0\].*cannot be traced by jax: TypeError"),
        (lambda ids, scores: scores[0], r"logits_processor\[0\].*returns .*floats of shape \(2, 61\)"),
        (lambda ids, scores: scores > 0, r"logits_processor\[0\].*returns .*bool"),
        ([3], r"logits_processor\[0\], 3, is no function"),
        (3, "logits_processor=3: expected a function"),
    ],
)
def test_functions_that_cannot_run_in_the_loop_are_refused(llama: PreTrainedModel, given: Any, message: str) -> None:
    count = llama._generator.prefill._cache_size()
    with pytest.raises(ValueError, match=message):
        new_tokens(llama, *prompts(5, 2), logits_processor=given)
    assert llama._generator.prefill._cache_size() == count


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 1}], ids=str)
def test_prefix_allowed_tokens_are_the_only_ones(llama: PreTrainedModel, settings: dict[str, Any]) -> None:
    seen = []

    def allowed(prompt: int, ids: np.ndarray) -> list[int]:
        seen.append((prompt, len(ids)))
        return [10 + prompt, 20 + prompt + int(ids[-1]) % 2]

    ids, mask = prompts(5, 2)
    out = new_tokens(llama, ids, mask, prefix_allowed_tokens_fn=allowed, **settings)
    last = np.concatenate([ids[:, -1:], out[:, :-1]], axis=1)
    for prompt in range(2):
        assert np.isin(out[prompt] - prompt, (10, 20, 21)).all()
        others = out[prompt] != 10 + prompt
        assert (out[prompt] == 20 + prompt + last[prompt] % 2)[others].all()
    assert {prompt for prompt, _ in seen} == {0, 1} and {length for prompt, length in seen if prompt} == set(
        range(2, 10)
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"prefix_allowed_tokens_fn": lambda prompt, ids: [10 + prompt, 20 + int(ids[-1]) % 2]},
        {"watermarking_config": {"bias": 4.0}},
        {"watermarking_config": {"bias": 4.0, "seeding_scheme": "selfhash", "context_width": 3}},
    ],
    ids=["prefix", "lefthash", "selfhash"],
)
def test_the_host_is_asked_by_a_device_that_is_not_the_first_of_the_cpu(
    llama: PreTrainedModel, settings: dict[str, Any]
) -> None:
    """What the host is given lies on the CPU's first device; the mesh of the call may be of others, such as a GPU."""
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[-1:])
    elsewhere = AutoModelForCausalLM.from_config(llama.config, seed=1, mesh=mesh)
    ids, mask = prompts(5, 2)
    np.testing.assert_array_equal(
        new_tokens(elsewhere, ids, mask, **settings), new_tokens(llama, ids, mask, **settings)
    )


def test_another_prefix_function_compiles_nothing_and_its_errors_come_out(llama: PreTrainedModel) -> None:
    ids, mask = prompts(5, 2)
    new_tokens(llama, ids, mask, prefix_allowed_tokens_fn=lambda prompt, ids: [5])
    count = llama._generator.decode._cache_size()
    assert (new_tokens(llama, ids, mask, prefix_allowed_tokens_fn=lambda prompt, ids: [6 + prompt])[1] == 7).all()
    assert llama._generator.decode._cache_size() == count
    for function, message in (
        (lambda prompt, ids: [] if prompt else [3], "allows no token for prompt 1"),
        (lambda prompt, ids: [61], r"returned \[61\] for prompt 0; expected token ids from 0 to 60"),
        (lambda prompt, ids: [0.5], "expected token ids"),
        (lambda prompt, ids: ids[99], "out of bounds"),
    ):
        with pytest.raises((ValueError, IndexError), match=message) as caught:
            new_tokens(llama, ids, mask, prefix_allowed_tokens_fn=function)
        assert "In prefix_allowed_tokens_fn, prompt" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match="prefix_allowed_tokens_fn=3: expected a function"):
        new_tokens(llama, ids, mask, prefix_allowed_tokens_fn=3)


def test_a_prefix_function_is_not_asked_for_rows_that_ended(llama: PreTrainedModel) -> None:
    def allowed(prompt: int, ids: np.ndarray) -> list[int]:
        assert not (prompt == 0 and len(ids) > 6), "asked after the end"
        return [9] if prompt or len(ids) < 6 else [2]

    ids, mask = prompts(5, 2)
    out = np.asarray(llama.generate(ids, mask, max_new_tokens=5, pad_token_id=0, prefix_allowed_tokens_fn=allowed))
    assert out[:, 5:].tolist() == [[9, 2, 0, 0, 0], [9] * 5]
