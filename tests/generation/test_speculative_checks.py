"""What speculative decoding refuses, by name and before anything compiles; its settings; its place in pipelines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from jaxpipe.generation.config import GenerationConfig, resolve
from jaxpipe.generation.speculative_checks import rule_for, width_for
from jaxpipe.model import PreTrainedModel

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
IDS = np.array([[5, 6, 7, 5, 6]])


def make(seed: int = 0, model_type: str = "llama", mesh: Any = None, **settings: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(
        model_type, **{"vocab_size": 40, "initializer_range": 0.5, "eos_token_id": None, **SHAPE, **settings}
    )
    return AutoModelForCausalLM.from_config(config, seed=seed, device_map=mesh)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make()


@pytest.fixture(scope="module")
def t5() -> PreTrainedModel:
    shape = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 24, "num_layers": 1, "vocab_size": 40}
    config = AutoConfig.for_model("t5", decoder_start_token_id=0, eos_token_id=None, **shape)
    return AutoModelForSeq2SeqLM.from_config(config, seed=1)


def mamba2() -> PreTrainedModel:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1}
    config = AutoConfig.for_model("mamba2", vocab_size=40, eos_token_id=None, **shape)
    return AutoModelForCausalLM.from_config(config)


class Tokenizer:
    def __repr__(self) -> str:  # tests are named by it, alike in every process
        return f"Tokenizer({len(self._vocab)})"

    def __init__(self, size: int, first: str = "a"):
        self._vocab = {first: 0} | {f"t{i}": i for i in range(1, size)}

    def get_vocab(self) -> dict[str, int]:
        return self._vocab


def refused(
    model: PreTrainedModel, *texts: str, ids: np.ndarray = IDS, error: Any = ValueError, **settings: Any
) -> None:
    with pytest.raises(error) as caught:
        model.generate(ids, **{"max_new_tokens": 8, **settings})
    for text in texts:
        assert text in str(caught.value)
    assert not model._generator._speculations


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        ({"prompt_lookup_num_tokens": 0}, ("prompt_lookup_num_tokens=0", "at least 1")),
        ({"prompt_lookup_num_tokens": "ten"}, ("prompt_lookup_num_tokens='ten'",)),
        ({"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 0}, ("max_matching_ngram_size=0", "at least 1")),
        ({"num_assistant_tokens": 0}, ("num_assistant_tokens=0", "at least 1")),
        ({"num_assistant_tokens_schedule": "linear"}, ("num_assistant_tokens_schedule='linear'", "'heuristic'")),
        ({"assistant_confidence_threshold": 1.5}, ("assistant_confidence_threshold=1.5", "from 0 to 1")),
        ({"prompt_lookup_num_tokens": 3, "num_beams": 2}, ("prompt_lookup_num_tokens=3", "num_beams=2")),
        (
            {"prompt_lookup_num_tokens": 3, "penalty_alpha": 0.5, "top_k": 4},
            ("prompt_lookup_num_tokens=3", "penalty_alpha=0.5"),
        ),
        ({"prompt_lookup_num_tokens": 3, "dola_layers": [0]}, ("prompt_lookup_num_tokens=3", "dola_layers")),
        ({"prompt_lookup_num_tokens": 3, "guidance_scale": 1.5}, ("prompt_lookup_num_tokens=3", "guidance_scale=1.5")),
        (
            {"prompt_lookup_num_tokens": 3, "return_dict_in_generate": True, "output_hidden_states": True},
            ("output_hidden_states", "prompt_lookup_num_tokens=3"),
        ),
        ({"assistant_tokenizer": Tokenizer(40)}, ("assistant_tokenizer", "assistant_model")),
        ({"assistant_ensemble_weight": 0.5}, ("assistant_ensemble_weight=0.5",)),
        ({"assistant_early_exit": 1}, ("assistant_early_exit=1",)),
    ],
    ids=str,
)
def test_settings(settings: dict[str, Any], texts: tuple[str, ...], model: PreTrainedModel) -> None:
    refused(model, *texts, **settings)


def test_assistants_that_do_not_fit(model: PreTrainedModel, t5: PreTrainedModel) -> None:
    for wrong in ("gpt2", 3, object()):
        refused(model, "assistant_model", type(wrong).__name__, error=TypeError, assistant_model=wrong)
    refused(model, "assistant_model", "prompt_lookup_num_tokens=3", assistant_model=make(1), prompt_lookup_num_tokens=3)
    refused(model, "assistant_model", "num_beams=2", assistant_model=make(1), num_beams=2)
    refused(model, "assistant_model", "vocabulary of 44", "40", assistant_model=make(1, vocab_size=44))
    refused(model, "is an encoder-decoder ('t5')", "'llama'", assistant_model=t5)
    refused(t5, "is a decoder ('llama')", assistant_model=make(1))
    refused(model, "mesh", "2 device(s)", "mesh=model.mesh", assistant_model=make(1, mesh={"data": 2}))
    short = make(1, "gpt2", n_positions=10, n_embd=16, n_head=2, n_layer=1)
    refused(model, "12 positions", "gpt2 (assistant_model)", "learned 10", assistant_model=short)


def test_an_assistant_s_own_settings_are_checked(model: PreTrainedModel) -> None:
    for name, value in (
        ("num_assistant_tokens", 0),
        ("num_assistant_tokens_schedule", "often"),
        ("assistant_confidence_threshold", 2.0),
    ):
        assistant = make(1)
        setattr(assistant.generation_config, name, value)
        refused(model, f"{name}={value!r}", "generation_config of the assistant_model", assistant_model=assistant)


def test_tokenizers_show_whether_vocabularies_are_one(model: PreTrainedModel) -> None:
    padded, tokenizer = make(1, vocab_size=48), Tokenizer(39)
    refused(model, "tokenizer=", assistant_model=padded, assistant_tokenizer=tokenizer)
    other: dict[str, Any] = {"tokenizer": tokenizer, "assistant_tokenizer": Tokenizer(39, "b")}
    refused(model, "another vocabulary", "id 0", assistant_model=padded, **other)
    refused(model, "another vocabulary", assistant_model=make(1), **other)


@pytest.mark.full
@pytest.mark.parametrize("size", [34, 48])
@pytest.mark.parametrize("do_sample", [False, True])
def test_a_vocabulary_that_is_padded_otherwise(size: int, do_sample: bool) -> None:
    """Tokens that the assistant does not have are never proposed, and do no harm."""
    model = make()
    assistant, tokenizer = make(0, vocab_size=size), Tokenizer(min(size, 40))
    both = {"tokenizer": tokenizer, "assistant_tokenizer": Tokenizer(min(size, 40))}
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": do_sample, "seed": 1}
    found = np.asarray(model.generate(IDS, assistant_model=assistant, **both, **settings))
    if do_sample:
        assert found.shape == (1, 17) and found.max() < 40
    else:
        np.testing.assert_array_equal(found, model.generate(IDS, **settings))


def test_models_that_cannot_go_back(model: PreTrainedModel) -> None:
    state_space = mamba2()
    refused(state_space, "prompt_lookup_num_tokens=3", "'mamba2'", "running state", prompt_lookup_num_tokens=3)
    refused(model, "assistant_model", "'mamba2'", "running state", assistant_model=state_space)


@pytest.mark.full
def test_rotations_that_depend_on_the_length() -> None:
    factors = [1.0 + i for i in range(4)]
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": factors, "long_factor": factors}
    limits = {"max_position_embeddings": 64, "original_max_position_embeddings": 16}
    long = make(0, "phi3", rope_parameters=rope, pad_token_id=0, **limits)
    refused(long, "beyond 16 tokens", "'phi3'", prompt_lookup_num_tokens=3)
    long.generate(IDS, max_new_tokens=3, prompt_lookup_num_tokens=3)  # not as long


def settled(**settings: Any) -> Any:
    return resolve(None, GenerationConfig(), {"max_new_tokens": 50, **settings}, prompt_length=5)


def test_the_number_of_tokens_is_rounded_up_to_few() -> None:
    assert [width_for(n) for n in (1, 2, 3, 4, 5, 7, 10, 20, 64, 200)] == [2, 4, 4, 6, 6, 8, 12, 24, 128, 256]
    rule = rule_for(settled(prompt_lookup_num_tokens=10, max_matching_ngram_size=3), None)
    assert (rule.count, rule.width, rule.ngram, rule.most, bool(rule.adaptive)) == (10, 12, 3, 4, False)
    assert rule_for(settled(prompt_lookup_num_tokens=10, max_new_tokens=4), None).count == 3
    assert rule_for(settled(prompt_lookup_num_tokens=10, max_new_tokens=1), None).count == 1


def test_whose_settings_hold(model: PreTrainedModel) -> None:
    """The call's, then the assistant's, then the defaults; never those of the model's own generation config."""
    assistant = model._generator.as_assistant(GenerationConfig(), "other")
    rule = rule_for(settled(), assistant)
    assert (rule.count, rule.width, bool(rule.adaptive), float(rule.threshold)) == (20, 24, False, np.float32(0.4))
    own = GenerationConfig(num_assistant_tokens=7, num_assistant_tokens_schedule="heuristic")
    rule = rule_for(settled(), assistant._replace(defaults=own))
    assert (rule.count, rule.width, bool(rule.adaptive)) == (7, 24, True)
    given = settled(num_assistant_tokens=3, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0)
    rule = rule_for(given, assistant._replace(defaults=own))
    assert (rule.count, rule.width, bool(rule.adaptive), float(rule.threshold)) == (3, 4, False, 0.0)
    models = GenerationConfig(num_assistant_tokens=9)
    assert rule_for(resolve(None, models, {"max_new_tokens": 50}, prompt_length=5), assistant).count == 20


@pytest.mark.full
def test_the_number_of_tokens_follows_the_schedule(model: PreTrainedModel) -> None:
    """The model as its own assistant is always right, so the number grows by two in every step."""
    assistant = make()
    settings = {"assistant_model": assistant, "num_assistant_tokens": 2, "assistant_confidence_threshold": 0.0}
    for schedule, kept in (("constant", None), ("heuristic_transient", None), ("heuristic", 8)):
        out = model.generate(IDS, max_new_tokens=16, num_assistant_tokens_schedule=schedule, **settings)
        assert out.shape == (1, 21)
        assert assistant.generation_config.num_assistant_tokens == kept  # 3 + 5 + 7 of 15 tokens: thrice more
    del settings["num_assistant_tokens"]
    model.generate(IDS, max_new_tokens=16, num_assistant_tokens_schedule="heuristic", **settings)
    assert assistant.generation_config.num_assistant_tokens == 12  # 9 of 15, then 6 to the end
    unlike = make(9)
    model.generate(IDS, max_new_tokens=16, num_assistant_tokens_schedule="heuristic", assistant_model=unlike)
    assert (unlike.generation_config.num_assistant_tokens or 20) < 20


@pytest.mark.full
def test_a_model_s_own_setting_looks_up(model: PreTrainedModel) -> None:
    plain = np.asarray(model.generate(IDS, max_new_tokens=12))
    config = GenerationConfig(prompt_lookup_num_tokens=3, max_new_tokens=12)
    np.testing.assert_array_equal(model.generate(IDS, generation_config=config), plain)


@pytest.mark.full
def test_pipelines_take_an_assistant(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from jaxpipe import AutoTokenizer, pipeline

    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<unk>": 0, **{f"w{i}": i for i in range(1, 40)}}, "<unk>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    for name, seed in (("model", 0), ("assistant", 1)):
        make(seed).save_pretrained(tmp_path / name)
        backend.save(str(tmp_path / name / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = ["w5 w6 w7 w5", "w8"]
    settings: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False}
    wanted = pipeline("text-generation", model=model, tokenizer=tokenizer)(texts, **settings)
    for given in (str(tmp_path / "assistant"), AutoModelForCausalLM.from_pretrained(tmp_path / "assistant")):
        pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, assistant_model=given)
        count = len(model._generator._speculations)
        assert pipe(texts, **settings) == wanted
        assert len(model._generator._speculations) == count + 1
    lookup = pipeline("text-generation", model=model, tokenizer=tokenizer, prompt_lookup_num_tokens=4)
    assert lookup(texts, **settings) == wanted
