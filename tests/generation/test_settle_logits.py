"""What of the settings that change the logits is accepted, refused, and read from checkpoints."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpipe.common.logging import info_once, warn_once
from jaxpipe.generation.config import GenerationConfig, resolve
from jaxpipe.generation.processors import processors_for
from jaxpipe.generation.settle import Settled


@pytest.fixture(autouse=True)
def _messages_again() -> None:
    warn_once.cache_clear()
    info_once.cache_clear()


def settled(prompt_length: int = 4, model: dict[str, Any] | None = None, **kwargs: Any) -> Settled:
    given = {"max_new_tokens": 8, **kwargs}
    return resolve(None, GenerationConfig.from_dict(model or {}), given, prompt_length=prompt_length)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size=-1"),
        ({"no_repeat_ngram_size": 2.5}, "no_repeat_ngram_size=2.5"),
        ({"encoder_no_repeat_ngram_size": -3}, "encoder_no_repeat_ngram_size=-3"),
        ({"encoder_repetition_penalty": 0.0}, "encoder_repetition_penalty=0.0"),
        ({"bad_words_ids": []}, r"bad_words_ids=\[\].*none of them empty"),
        ({"bad_words_ids": [[]]}, r"bad_words_ids=\[\[\]\]"),
        ({"bad_words_ids": [3]}, r"bad_words_ids=\[3\].*list of lists"),
        ({"bad_words_ids": [[3, -1]]}, r"bad_words_ids=.*at least 0"),
        ({"bad_words_ids": [["a"]]}, "bad_words_ids"),
        ({"bad_words_ids": {3: 4}}, "bad_words_ids"),
        ({"bad_words_ids": [[2], [5]], "eos_token_id": [2, 5]}, r"bad_words_ids=.*eos_token_id \[2, 5\].*never banned"),
        ({"sequence_bias": {(): 1.0}}, "sequence_bias"),
        ({"sequence_bias": {3: 1.0}}, "sequence_bias"),
        ({"sequence_bias": {(3,): "x"}}, "sequence_bias"),
        ({"sequence_bias": {(3,): math.nan}}, "sequence_bias"),
        ({"sequence_bias": {(3,): math.inf}}, "sequence_bias.*below inf"),
        ({"sequence_bias": [[[3], 1.0, 2]]}, "sequence_bias"),
        ({"sequence_bias": [[[-3], 1.0]]}, "sequence_bias.*at least 0"),
        ({"sequence_bias": 4}, "sequence_bias=4"),
        ({"suppress_tokens": [-1]}, r"suppress_tokens=\[-1\].*at least 0"),
        ({"suppress_tokens": "ab"}, "suppress_tokens='ab'"),
        ({"begin_suppress_tokens": [1.5]}, r"begin_suppress_tokens=\[1.5\]"),
        ({"exponential_decay_length_penalty": 3, "eos_token_id": 1}, r"exponential_decay.*=3.*\(start, factor\)"),
        ({"exponential_decay_length_penalty": (3,), "eos_token_id": 1}, r"exponential_decay.*\(start, factor\)"),
        ({"exponential_decay_length_penalty": (-3, 1.2), "eos_token_id": 1}, "exponential_decay"),
        ({"exponential_decay_length_penalty": (3, 0.0), "eos_token_id": 1}, "exponential_decay"),
        ({"exponential_decay_length_penalty": (3, "a"), "eos_token_id": 1}, "exponential_decay"),
        ({"exponential_decay_length_penalty": (3, 1.2)}, "exponential_decay.*an eos_token_id as well"),
        ({"remove_invalid_values": 1}, "remove_invalid_values=1.*True or False"),
        ({"renormalize_logits": "yes"}, "renormalize_logits='yes'"),
        ({"do_sample": True, "typical_p": 0.0}, "typical_p=0.0.*above 0 to 1"),
        ({"do_sample": True, "typical_p": 1.5}, "typical_p=1.5"),
        ({"do_sample": True, "top_h": 0}, "top_h=0.*above 0 to 1"),
        ({"do_sample": True, "top_h": 1.01}, "top_h=1.01"),
        ({"do_sample": True, "epsilon_cutoff": 1.0}, "epsilon_cutoff=1.0.*from 0 and below 1"),
        ({"do_sample": True, "eta_cutoff": -0.1}, "eta_cutoff=-0.1"),
        ({"do_sample": True, "eta_cutoff": math.nan}, "eta_cutoff=nan"),
        ({"forced_eos_token_id": [3, 4], "suppress_tokens": [3, 4, 5]}, r"forced_eos_token_id=\[3, 4\] and suppress"),
        (
            {"forced_eos_token_id": 3, "begin_suppress_tokens": [3], "max_new_tokens": 1},
            r"forced_eos_token_id=\[3\] and begin_suppress_tokens=\[3\]",
        ),
    ],
)  # fmt: skip
def test_wrong_values_name_the_argument_before_anything_compiles(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settled(**kwargs)


def test_what_is_forced_first_may_not_be_suppressed_but_may_be_at_the_beginning() -> None:
    with pytest.raises(ValueError, match=r"forced_bos_token_id=\[3\] and suppress_tokens=\[3\]"):
        settled(prompt_length=1, forced_bos_token_id=3, suppress_tokens=[3])
    # The beginning comes after what is forced; and after a longer prompt nothing is forced.
    assert settled(prompt_length=1, forced_bos_token_id=3, begin_suppress_tokens=[3]).begin_step == 1
    assert settled(prompt_length=2, forced_bos_token_id=3, suppress_tokens=[3]).begin_step == 0
    assert settled(forced_eos_token_id=[3, 4], suppress_tokens=[4]).suppress_tokens == (4,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bad_words_ids", [[1], [3, 37]]),
        ("sequence_bias", [[[37], 1.0]]),
        ("suppress_tokens", [0, 37]),
        ("begin_suppress_tokens", [37]),
        ("forced_eos_token_id", 37),
    ],
)
def test_tokens_outside_the_vocabulary_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}=37.*0 to 36"):
        processors_for(settled(**{name: value}), 37)


def test_one_token_at_least_must_be_left() -> None:
    with pytest.raises(ValueError, match="bad_words_ids, suppress_tokens and begin_suppress_tokens name all 5 tokens"):
        processors_for(settled(bad_words_ids=[[0], [1, 2]], suppress_tokens=[1, 2], begin_suppress_tokens=[3, 4]), 5)


def test_what_is_off_adds_nothing() -> None:
    off = {
        "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": None, "encoder_repetition_penalty": 1.0,
        "sequence_bias": {}, "suppress_tokens": [], "begin_suppress_tokens": None, "remove_invalid_values": False,
        "renormalize_logits": None, "bad_words_ids": None, "exponential_decay_length_penalty": None, "top_k": 0,
        "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0, "top_h": None, "do_sample": True,
    }  # fmt: skip
    assert settled(**off) == settled(do_sample=True, top_k=0)
    assert processors_for(settled(**off), 37) == ()


def test_both_forms_of_sequence_bias_and_arrays_of_ids() -> None:
    pairs = settled(sequence_bias=[[[3, 4], 2], [(5,), -1.5], [[3, 4], 7.0]])
    mapping = settled(sequence_bias={(3, 4): 7, (np.int64(5),): -1.5})
    assert pairs.sequence_bias == mapping.sequence_bias == (((3, 4), 7.0), ((5,), -1.5))
    assert settled(suppress_tokens=np.array([4, 5, 4])).suppress_tokens == (4, 5)
    assert settled(bad_words_ids=[(3, 4), [2], [3, 4]], eos_token_id=2).bad_words_ids == ((3, 4),)
    assert hash(pairs) == hash(pairs)


def test_both_forms_of_sequence_bias_are_written_as_the_list(tmp_path: Path) -> None:
    GenerationConfig(sequence_bias={(3, 4): 2.0, (5,): -1.5}).save_pretrained(tmp_path)
    read = GenerationConfig.from_pretrained(tmp_path)
    assert read.sequence_bias == [[[3, 4], 2.0], [[5], -1.5]]
    assert settled(model=read.to_dict()).sequence_bias == (((3, 4), 2.0), ((5,), -1.5))


# As the checkpoints have them: facebook/bart-large-cnn and Helsinki-NLP/opus-mt-en-de.
BART_LARGE_CNN = {
    "_from_model_config": True, "bos_token_id": 0, "decoder_start_token_id": 2, "early_stopping": True,
    "eos_token_id": 2, "forced_bos_token_id": 0, "forced_eos_token_id": 2, "length_penalty": 2.0, "max_length": 142,
    "min_length": 56, "no_repeat_ngram_size": 3, "num_beams": 4, "pad_token_id": 1, "transformers_version": "4.31.0",
}  # fmt: skip
MARIAN = {
    "_from_model_config": True, "bad_words_ids": [[58100]], "bos_token_id": 0, "decoder_start_token_id": 58100,
    "eos_token_id": 0, "forced_eos_token_id": 0, "max_length": 512, "num_beams": 6, "pad_token_id": 58100,
    "renormalize_logits": True, "transformers_version": "4.32.0.dev0",
}  # fmt: skip


def names(settings: Settled, vocab_size: int) -> list[str]:
    return [type(processor).__name__ for processor in processors_for(settings, vocab_size)]


def test_settings_of_bart_large_cnn(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(BART_LARGE_CNN))
    config = GenerationConfig.from_pretrained(tmp_path)
    found = resolve(None, config, {}, prompt_length=1)
    assert (found.num_beams, found.early_stopping, found.length_penalty) == (4, True, 2.0)
    assert (found.max_new_tokens, found.min_new_tokens, found.no_repeat_ngram_size) == (141, 55, 3)
    assert (found.forced_bos_token_id, found.forced_eos_token_ids, found.pad_token_id) == (0, (2,), 1)
    assert names(found, 50264) == ["NoRepeatNgram", "MinNewTokens", "ForcedTokens", "ForcedTokens"]
    short = resolve(None, config, {"max_length": 20}, prompt_length=1)  # with a warning: the minimum is the model's
    assert (short.max_new_tokens, short.min_new_tokens) == (19, 55)
    assert resolve(None, config, {"num_beams": 1}, prompt_length=1).num_beams == 1


def test_settings_of_marian(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(MARIAN))
    found = resolve(None, GenerationConfig.from_pretrained(tmp_path), {}, prompt_length=1)
    assert (found.num_beams, found.max_new_tokens, found.bad_words_ids) == (6, 511, ((58100,),))
    assert names(found, 58101) == ["SequenceBias", "ForcedTokens", "Renormalize"]


@pytest.mark.oracle
@pytest.mark.parametrize("contents", [BART_LARGE_CNN, MARIAN], ids=["bart", "marian"])
def test_the_oracle_reads_the_same(contents: dict[str, Any], tmp_path: Path) -> None:
    import transformers

    (tmp_path / "generation_config.json").write_text(json.dumps(contents))
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path).to_dict()
    ours = GenerationConfig.from_pretrained(tmp_path).settings()
    assert {name: theirs[name] for name in ours} == ours
