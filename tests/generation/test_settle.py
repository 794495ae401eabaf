import logging
import math
import random
import warnings
from typing import Any

import numpy as np
import pytest

from jaxpipe.common.logging import info_once, warn_once
from jaxpipe.generation.config import GenerationConfig, resolve
from jaxpipe.generation.fields import NOT_SUPPORTED, NOT_SUPPORTED_ARGUMENTS, WITHOUT_EFFECT
from jaxpipe.generation.settle import Settled


@pytest.fixture(autouse=True)
def _messages_again() -> None:
    warn_once.cache_clear()
    info_once.cache_clear()


def _resolve(prompt_length: int = 4, model: dict[str, Any] | None = None, **kwargs: Any) -> Settled:
    return resolve(None, GenerationConfig.from_dict(model or {}), kwargs, prompt_length=prompt_length)


LENGTHS = {"max_new_tokens": (3, 8), "max_length": (4, 9, 14), "min_length": (2, 7, 12), "min_new_tokens": (0, 2, 6)}


def _length_cases(count: int) -> list[tuple[dict[str, int], dict[str, int] | None, dict[str, int]]]:
    rng = random.Random(0)

    def some() -> dict[str, int]:
        return {name: rng.choice(values) for name, values in LENGTHS.items() if rng.random() < 0.3}

    return [(some(), some() if rng.random() < 0.5 else None, some()) for _ in range(count)]


@pytest.mark.oracle
def test_lengths_equal_the_oracles_generate() -> None:
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=16, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.ones((1, 5), dtype=torch.long)

    class WantsEos(transformers.LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores[:, 3] += 1e4
            return scores

    def new_tokens(generation_config: Any, kwargs: dict[str, int], eos: int | None) -> int | type[Exception]:
        try:
            output = model.generate(
                ids, generation_config=generation_config, logits_processor=[WantsEos()], pad_token_id=0,
                eos_token_id=eos, **kwargs,
            )  # fmt: skip
        except ValueError:
            return ValueError
        return output.shape[1] - 5

    cases = [({}, None, {}), ({}, None, {"max_length": 5}), ({"max_length": 40}, None, {}), *_length_cases(60)]
    outcomes, refused = set(), 0
    for of_model, of_config, kwargs in cases:
        model.generation_config = transformers.GenerationConfig(**of_model)
        theirs_config = None if of_config is None else transformers.GenerationConfig(**of_config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = (new_tokens(theirs_config, kwargs, None), new_tokens(theirs_config, kwargs, 3))
        ours_config = None if of_config is None else GenerationConfig(**of_config)
        try:
            settled = resolve(ours_config, GenerationConfig(**of_model), kwargs, prompt_length=5, max_positions=16)
            ours = (settled.max_new_tokens, min(settled.min_new_tokens + 1, settled.max_new_tokens))
        except ValueError as error:
            if "is above the maximum" in str(error):
                assert theirs[0] == theirs[1]  # they generate to the maximum, with a warning
                refused += 1
                continue
            ours = (ValueError, ValueError)
        assert ours == theirs, (of_model, of_config, kwargs)
        outcomes.add(ours)
    assert len(outcomes) > 8 and refused >= 2


def test_lengths_without_the_oracle(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="jaxpipe")
    assert _resolve(max_length=9).max_new_tokens == 5
    assert not caplog.records
    assert _resolve().max_new_tokens == 20
    assert resolve(None, None, {}, prompt_length=4, max_positions=10).max_new_tokens == 6
    assert "Neither max_new_tokens nor max_length" in caplog.text
    assert _resolve(max_length=9, max_new_tokens=7).max_new_tokens == 7
    assert "max_new_tokens is followed" in caplog.text
    assert _resolve(model={"max_length": 9}, max_length=None).max_new_tokens == 20
    assert _resolve(min_length=7).min_new_tokens == 3
    assert _resolve(min_length=7, min_new_tokens=5).min_new_tokens == 5
    assert "min_new_tokens is followed" in caplog.text
    assert _resolve(model={"min_new_tokens": 31}, max_new_tokens=30).min_new_tokens == 31
    assert _resolve(min_length=14, max_new_tokens=9).min_new_tokens == 10  # not so with a longer prompt
    assert "31 new tokens is above the maximum of 30" in caplog.text
    assert _resolve(max_new_tokens=np.int64(3)).max_length == 7


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_length": 4}, "4 positions and max_length.*is 4"),
        ({"max_new_tokens": 0}, "max_new_tokens=0.*at least 1"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5"),
        ({"max_new_tokens": True}, "max_new_tokens=True"),
        ({"min_new_tokens": -1}, "min_new_tokens=-1"),
        ({"min_new_tokens": 31, "max_new_tokens": 30}, r"31 new tokens is above the maximum of 30 \(min_new_tokens=31"),
        ({"min_length": 12, "max_length": 10}, r"8 new tokens is above the maximum of 6 \(min_length=12"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 with greedy"),
        ({"num_return_sequences": 0}, "num_return_sequences=0"),
        ({"do_sample": "yes"}, "do_sample='yes'.*True or False"),
        ({"do_sample": True, "temperature": 0.0}, "temperature=0.0.*do_sample=False"),
        ({"do_sample": True, "temperature": -1.0}, "temperature=-1.0"),
        ({"do_sample": True, "temperature": math.nan}, "temperature=nan"),
        ({"do_sample": True, "temperature": math.inf}, "temperature=inf"),
        ({"do_sample": True, "temperature": "1"}, "temperature='1'"),
        ({"do_sample": True, "top_p": 1.5}, "top_p=1.5.*from 0 to 1"),
        ({"do_sample": True, "top_p": -0.1}, "top_p=-0.1"),
        ({"do_sample": True, "top_k": 2.0}, "top_k=2.0"),
        ({"do_sample": True, "top_k": -2}, "top_k=-2"),
        ({"do_sample": True, "min_p": 1.1}, "min_p=1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"max_time": -1}, "max_time=-1"),
        ({"eos_token_id": "</s>"}, "eos_token_id='</s>'"),
        ({"eos_token_id": [1, 2.5]}, "eos_token_id"),
        ({"stop_strings": ["a", ""]}, "stop_strings.*none of them empty"),
        ({"stop_strings": 3}, "stop_strings=3"),
    ],
)
def test_wrong_values_name_the_argument(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _resolve(**kwargs)


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p", "typical_p"])
def test_greedy_ignores_sampling_settings_with_a_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    settled = _resolve(max_new_tokens=2, **{name: 0})
    assert settled == _resolve(max_new_tokens=2)
    assert f"{name}=0 is ignored: it only acts with do_sample=True" in caplog.text
    warn_once.cache_clear()
    caplog.clear()
    assert _resolve(max_new_tokens=2, model={name: 0}) == settled
    assert not caplog.records


def test_none_turns_a_models_setting_off() -> None:
    model = {"do_sample": True, "top_k": 5, "top_p": 0.5, "temperature": 0.5, "min_p": 0.1, "eos_token_id": 3}
    off = dict.fromkeys(["top_k", "top_p", "temperature", "min_p", "eos_token_id"])
    settled = _resolve(model=model, max_new_tokens=2, **off)
    assert (settled.top_k, settled.top_p, settled.temperature, settled.min_p) == (0, 1.0, 1.0, 0.0)
    assert settled.eos_token_ids == ()


def test_special_tokens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="jaxpipe")
    settled = _resolve(max_new_tokens=1, model={"eos_token_id": [5, 6, 5], "bos_token_id": 1})
    assert (settled.eos_token_ids, settled.pad_token_id, settled.bos_token_id) == ((5, 6), 5, 1)
    _resolve(max_new_tokens=1, eos_token_id=[5])
    assert caplog.text.count("pad_token_id is not set") == 1
    assert _resolve(max_new_tokens=1, eos_token_id=np.int32(7), pad_token_id=0).pad_token_id == 0
    assert _resolve(max_new_tokens=1).pad_token_id is None
    assert _resolve(max_new_tokens=1, eos_token_id=7, pad_token_id=-1).pad_token_id == 7
    assert "[-1] is ignored" in caplog.text


def test_what_else_is_settled() -> None:
    settled = _resolve(
        max_new_tokens=1, do_sample=True, num_return_sequences=3, stop_strings="x", max_time=2, output_logits=True,
        return_dict_in_generate=True, output_scores=True, repetition_penalty=2,
    )  # fmt: skip
    assert (settled.num_return_sequences, settled.stop_strings, settled.max_time) == (3, ("x",), 2.0)
    assert settled.return_dict_in_generate and settled.output_scores and settled.output_logits
    assert settled.repetition_penalty == 2.0
    assert hash(settled) == hash(settled)


ACTIVE = {
    "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "penalty_alpha": 0.6, "dola_layers": "low",
    "cache_implementation": "quantized", "typical_p": 0.9, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1,
    "encoder_repetition_penalty": 1.1, "no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2,
    "guidance_scale": 1.5, "exponential_decay_length_penalty": (3, 1.1), "suppress_tokens": [1],
    "begin_suppress_tokens": [1], "sequence_bias": {(1,): 2.0}, "bad_words_ids": [[1]], "forced_bos_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    refusal = NOT_SUPPORTED[name]
    neutral = refusal.neutral[0] if refusal.neutral else None
    value = ACTIVE.get(name, True)
    on = {"max_new_tokens": 2, "do_sample": True, "return_dict_in_generate": True}
    with pytest.raises(
        ValueError, match=rf"{name}=.*argument of generate.*not supported yet; its neutral value is {neutral!r}"
    ):
        _resolve(**on, **{name: value})
    model = GenerationConfig.from_dict({name: value})
    model._origin = "generation_config.json of some/model"
    with pytest.raises(ValueError, match=rf"{name}=.*of some/model.*pass {name}={neutral!r} to generate"):
        resolve(None, model, on, prompt_length=1)
    # The remedy that the message gives works.
    assert resolve(None, model, {**on, name: neutral}, prompt_length=1) == resolve(None, None, on, prompt_length=1)
    for value in refusal.neutral:
        assert _resolve(**on, **{name: value}) == _resolve(**on)


def test_neutral_values_of_other_number_types() -> None:
    assert _resolve(max_new_tokens=1, guidance_scale=1, num_beam_groups=1.0, no_repeat_ngram_size=0)
    with pytest.raises(ValueError, match="no_repeat_ngram_size=False"):
        _resolve(max_new_tokens=1, no_repeat_ngram_size=False)


def test_outputs_of_layers() -> None:
    settled = _resolve(max_new_tokens=1, output_attentions=True, return_dict_in_generate=True)
    assert settled.output_attentions
    assert not settled.output_hidden_states
    with pytest.raises(ValueError, match="output_hidden_states=3"):
        _resolve(max_new_tokens=1, output_hidden_states=3)


@pytest.mark.parametrize("name", [*WITHOUT_EFFECT, "use_cache"])
def test_what_has_no_effect_is_accepted_and_said_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="jaxpipe")
    value = False if name in ("use_cache", "early_stopping") else 3
    for _ in range(2):
        assert _resolve(max_new_tokens=1, **{name: value}) == _resolve(max_new_tokens=1)
    assert caplog.text.count("is accepted and has no effect") == 1


def test_unknown_arguments_name_the_nearest() -> None:
    for wrong, right in (("max_new_token", "max_new_tokens"), ("temprature", "temperature"), ("streamr", "streamer")):
        with pytest.raises(ValueError, match=f"unknown argument '{wrong}'.*Did you mean '{right}'"):
            _resolve(**{wrong: 3})
    with pytest.raises(ValueError, match=r"unknown argument 'zzz'\. Accepted are input_ids"):
        _resolve(zzz=None)


@pytest.mark.parametrize("name", NOT_SUPPORTED_ARGUMENTS)
def test_arguments_that_are_not_supported_are_refused_unless_none(name: str) -> None:
    assert _resolve(max_new_tokens=1, **{name: None}) == _resolve(max_new_tokens=1)
    with pytest.raises(ValueError, match=f"{name!r} is not supported yet"):
        _resolve(max_new_tokens=1, **{name: object()})
