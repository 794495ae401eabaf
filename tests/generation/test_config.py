import copy
import json
from pathlib import Path
from typing import Any

import pytest

from jaxpipe.common.logging import info_once, warn_once
from jaxpipe.generation.config import FIELDS, GenerationConfig, resolve
from jaxpipe.generation.fields import DEFAULTS, NOT_SUPPORTED, SUPPORTED, WITHOUT_EFFECT


@pytest.fixture(autouse=True)
def _messages_again() -> None:
    warn_once.cache_clear()
    info_once.cache_clear()


def _write(directory: Path, name: str, contents: dict[str, Any]) -> None:
    (directory / name).write_text(json.dumps(contents))


def test_every_setting_stands_in_one_table() -> None:
    tables = (SUPPORTED, frozenset(NOT_SUPPORTED), frozenset(WITHOUT_EFFECT))
    assert frozenset().union(*tables) == FIELDS
    assert sum(map(len, tables)) == len(FIELDS)


@pytest.mark.oracle
def test_settings_and_defaults_are_the_oracles() -> None:
    import transformers

    theirs = transformers.GenerationConfig()
    assert set(theirs.to_dict()) - {"transformers_version", "_from_model_config"} == FIELDS
    defaults = theirs._get_default_generation_params()
    assert {name: defaults[name] for name in DEFAULTS if name in defaults} == {
        name: value for name, value in DEFAULTS.items() if name in defaults
    }
    for name, refusal in NOT_SUPPORTED.items():
        default = defaults.get(name, getattr(theirs, name))
        assert default is None or default in refusal.neutral, name


def test_all_settings_start_unset() -> None:
    config = GenerationConfig(max_new_tokens=5, eos_token_id=[1, 2])
    assert config.temperature is None and config.max_new_tokens == 5
    assert config.to_diff_dict() == {"max_new_tokens": 5, "eos_token_id": [1, 2]}
    assert set(config.to_dict()) == FIELDS
    assert repr(config) == 'GenerationConfig {\n  "eos_token_id": [\n    1,\n    2\n  ],\n  "max_new_tokens": 5\n}\n'


def test_unknown_names_are_errors_that_name_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'max_new_token'.*Did you mean 'max_new_tokens'"):
        GenerationConfig(max_new_token=5)
    with pytest.raises(AttributeError, match="Did you mean 'temperature'"):
        GenerationConfig().temprature = 0.5
    with pytest.raises(AttributeError, match="'foo'"):
        _ = GenerationConfig().foo


@pytest.mark.parametrize("values", [{"max_new_tokens": 0}, {"max_new_tokens": -3}, {"early_stopping": "soon"}])
def test_values_that_can_never_be_valid(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        GenerationConfig(**values)
    with pytest.raises(ValueError, match=next(iter(values))):
        GenerationConfig().update(**values)


def test_update_returns_what_it_did_not_use() -> None:
    config = GenerationConfig(top_k=3)
    assert config.update(top_k=4, seed=1, temperature=None) == {"seed": 1}
    assert config.top_k == 4


def test_equality_and_copies() -> None:
    config = GenerationConfig.from_dict({"top_k": 3, "lang_to_id": {"en": 1}, "transformers_version": "4.1"})
    twin = copy.deepcopy(config)
    assert twin == config and config != GenerationConfig(top_k=3)
    twin.lang_to_id["de"] = 2
    twin.top_k = 9
    assert config.lang_to_id == {"en": 1} and config.top_k == 3


def test_a_files_own_entries_are_kept_and_cannot_hide_methods(tmp_path: Path) -> None:
    config = GenerationConfig.from_dict({"alignment_heads": [[1, 2]], "to_dict": 3, "_from_model_config": True})
    assert config.alignment_heads == [[1, 2]] and "to_dict" in config.to_dict()
    config.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "generation_config.json").read_text()) == {
        "alignment_heads": [[1, 2]],
        "to_dict": 3,
    }


def test_from_pretrained_reads_generation_config_json(tmp_path: Path) -> None:
    _write(
        tmp_path, "generation_config.json", {"max_length": 30, "eos_token_id": [5, 6], "transformers_version": "4.9"}
    )
    _write(tmp_path, "config.json", {"model_type": "llama", "bos_token_id": 1, "top_k": 7})
    config = GenerationConfig.from_pretrained(str(tmp_path), top_p=0.5, local_files_only=True)
    assert config.to_diff_dict() == {"max_length": 30, "eos_token_id": [5, 6], "top_p": 0.5}
    config.save_pretrained(tmp_path / "copy")
    assert GenerationConfig.from_pretrained(tmp_path / "copy") == config


def test_from_pretrained_derives_from_config_json(tmp_path: Path) -> None:
    outer = {
        "model_type": "x", "eos_token_id": 2, "top_k": 7, "min_length": None, "output_hidden_states": True,
        "text_config": {"bos_token_id": 4, "eos_token_id": 9},
    }  # fmt: skip
    _write(tmp_path, "config.json", outer)
    config = GenerationConfig.from_pretrained(tmp_path)
    assert config.to_diff_dict() == {"bos_token_id": 4, "eos_token_id": 2, "top_k": 7}


def test_from_pretrained_without_either_file(tmp_path: Path) -> None:
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig()
    with pytest.raises(OSError, match=r"other\.json"):
        GenerationConfig.from_pretrained(tmp_path, config_file_name="other.json")


def test_from_pretrained_names_the_file_and_the_argument(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'revison'.*'revision'"):
        GenerationConfig.from_pretrained(tmp_path, revison="main")
    _write(tmp_path, "generation_config.json", {"max_new_tokens": -1})
    with pytest.raises(ValueError, match=r"generation_config\.json of .*max_new_tokens=-1"):
        GenerationConfig.from_pretrained(tmp_path)


@pytest.mark.oracle
def test_both_read_each_others_files(tmp_path: Path) -> None:
    import transformers

    values = {"max_length": 30, "eos_token_id": [5, 6], "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    transformers.GenerationConfig(**values).save_pretrained(tmp_path / "theirs")
    assert GenerationConfig.from_pretrained(tmp_path / "theirs").to_diff_dict() == values
    GenerationConfig(**values).save_pretrained(tmp_path / "ours")
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "ours").to_diff_dict()
    assert {name: theirs[name] for name in values} == values


def test_call_beats_config_beats_model_beats_default() -> None:
    model = GenerationConfig(do_sample=True, temperature=0.1, top_k=3, top_p=0.3)
    settled = resolve(GenerationConfig(temperature=0.2, top_k=4), model, {"temperature": 0.4}, prompt_length=1)
    assert (settled.temperature, settled.top_k, settled.top_p, settled.min_p) == (0.4, 4, 0.3, 0.0)
    assert resolve(None, None, {"do_sample": True}, prompt_length=1).top_k == 50
    with pytest.raises(TypeError, match="dict"):
        resolve({"top_k": 3}, None, {}, prompt_length=1)  # type: ignore[arg-type]
