"""The call contract of text2text-generation, on an encoder-decoder whose every token can be computed by hand."""

import itertools
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxpipe.common.logging import warn_once
from jaxpipe.common.random import set_seed
from jaxpipe.generation.config import GenerationConfig
from jaxpipe.pipelines import KeyDataset, Text2TextGenerationPipeline, pipeline
from jaxpipe.pipelines.text2text_generation import ReturnType
from tests.pipelines.conftest import ArithmeticModel, make_tokenizer
from tests.pipelines.seq2seq_model import START, ArithmeticSeq2Seq

GREEDY = {"num_beams": 1, "max_new_tokens": 5}
TEXTS = ["the cat", "a dog ate the rat and sat", "hello", "hello world again a dog"]


def make(tokenizer=None, model=None, task="text2text-generation", **parameters):
    made = ArithmeticSeq2Seq(**(model or {}))
    return Text2TextGenerationPipeline(made, make_tokenizer(**(tokenizer or {})), task, **parameters)


@pytest.fixture
def pipe():
    return make()


def ids_of(result):
    return result[0]["generated_token_ids"]


# ---- the nesting of results


def test_one_text(pipe):
    [record] = pipe("the cat", **GREEDY)
    assert list(record) == ["generated_text"]
    assert record["generated_text"]
    assert not record["generated_text"].startswith("the cat")


def test_lists_of_single_records_are_flat(pipe):
    alone = [pipe(text, **GREEDY)[0] for text in TEXTS]
    assert pipe(TEXTS, **GREEDY) == alone
    assert pipe(tuple(TEXTS), **GREEDY) == alone
    assert pipe(TEXTS[:1], **GREEDY) == alone[:1]
    assert pipe([], **GREEDY) == []


def test_several_sequences_nest(pipe):
    call = {"max_new_tokens": 4, "num_beams": 1, "do_sample": True, "seed": 0, "num_return_sequences": 3}
    assert [len(records) for records in pipe(TEXTS, **call)] == [3] * 4
    assert len(pipe("hello", **call)) == 3
    assert [len(records) for records in pipe(["hello"], **call)] == [3]


def test_lazy_inputs_keep_their_nesting(pipe):
    alone = [pipe(text, **GREEDY) for text in TEXTS]
    assert list(pipe((text for text in TEXTS), **GREEDY)) == alone
    assert list(pipe(KeyDataset([{"text": text} for text in TEXTS], "text"), **GREEDY)) == alone
    assert list(itertools.islice(pipe(itertools.cycle(TEXTS), **GREEDY), 6)) == [*alone, *alone[:2]]


def test_results_are_json(pipe):
    assert json.dumps([pipe(TEXTS, **GREEDY), pipe("a", return_tensors=True, **GREEDY)])


# ---- what records hold


@pytest.mark.parametrize("how", [{"return_type": "tensors"}, {"return_type": ReturnType.TENSORS}])
def test_token_ids(pipe, how):
    [record] = pipe("the cat", return_tensors=True, **GREEDY)
    assert list(record) == ["generated_token_ids"]
    ids = record["generated_token_ids"]
    assert ids[0] == START and 2 <= len(ids) <= 6 and all(type(token) is int for token in ids)
    assert pipe("the cat", **how, **GREEDY) == [record]
    [text] = pipe("the cat", **GREEDY)
    assert pipe.tokenizer.decode(ids, skip_special_tokens=True) == text["generated_text"]


def test_what_means_text(pipe):
    text = pipe("the cat", **GREEDY)
    for call in ({"return_tensors": False}, {"return_text": True}, {"return_type": "text"}):
        assert pipe("the cat", **call, **GREEDY) == text
    assert pipe("the cat", return_type="text", return_tensors=True, **GREEDY) == text


def test_spaces_are_kept_unless_asked(monkeypatch, pipe):
    asked = []
    decode = type(pipe.tokenizer).decode
    monkeypatch.setattr(type(pipe.tokenizer), "decode", lambda *a, **k: (asked.append(k), decode(*a, **k))[1])
    pipe("the cat", **GREEDY)
    pipe("the cat", clean_up_tokenization_spaces=True, **GREEDY)
    assert [k["clean_up_tokenization_spaces"] for k in asked] == [False, True]


# ---- inputs


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (None, "inputs is None; expected a text"),
        (7, "inputs is int 7; expected a text"),
        (["a", None], r"inputs\[1\] is None"),
        (["a", ["b", "c"]], r"inputs\[1\] is list"),
        ({"text": "a"}, "inputs is dict .*KeyDataset"),
    ],
)
def test_what_is_no_text(pipe, inputs, text):
    with pytest.raises(TypeError, match=text):
        pipe(inputs, **GREEDY)
    assert pipe.model.calls == []


def test_a_wrong_item_of_a_lazy_input_is_named(pipe):
    results = pipe((item for item in ("a", 3)), **GREEDY)
    with pytest.raises(TypeError, match=r"inputs\[1\] is int 3"):
        list(results)


def test_an_empty_text(pipe):
    with pytest.raises(ValueError, match="The text '' has no tokens") as caught:
        pipe(["a", ""], **GREEDY)
    assert caught.value.__notes__ == ["Raised for item 1 of the inputs."]
    assert make({"bos": True})("", **GREEDY)  # the tokenizer's own token is an input


def test_too_many_tokens_for_learned_positions():
    pipe = make(model={"limit": 6}, tokenizer={"model_max_length": None})
    with pytest.raises(ValueError, match=r"has 10 tokens, but the model has learned positions for 6; pass trunc") as e:
        pipe(["ab", "zyxwvutsrq"], **GREEDY)
    assert e.value.__notes__ == ["Raised for item 1 of the inputs."]
    pipe("zyxwvutsrq", truncation=True, **GREEDY)
    assert pipe.model.calls[-1]["input_ids"].shape == (1, 6)


def test_truncation_to_the_tokenizers_length():
    pipe = make({"model_max_length": 4}, {"limit": 9})
    pipe("zyxwvutsrq", truncation=True, **GREEDY)
    assert pipe.model.calls[-1]["input_ids"].shape == (1, 4)
    with pytest.raises(ValueError, match="truncation='some' is not known"):
        pipe("a", truncation="some", **GREEDY)


def test_the_prefix_of_the_config():
    plain, prefixed = make(), make(model={"prefix": "the "})
    assert prefixed("cat", **GREEDY) == plain("the cat", **GREEDY)
    own = {"prefix": "no ", "task_specific_params": {"text2text-generation": {"prefix": "the "}}}
    assert make(model=own)("cat", **GREEDY) == plain("the cat", **GREEDY)
    other = {"task_specific_params": {"summarization": {"prefix": "the "}}}
    assert make(model=other)("cat", **GREEDY) == plain("cat", **GREEDY)
    assert own["task_specific_params"] == {"text2text-generation": {"prefix": "the "}}


# ---- settings


def settled(pipe, **call):
    pipe("the cat", **call)
    return pipe.model.settled


def test_defaults():
    one = settled(make())
    assert (one.max_new_tokens, one.num_beams, one.do_sample, one.pad_token_id) == (256, 4, False, 2)


def test_the_default_of_new_tokens_fits_the_positions():
    assert settled(make(model={"limit": 12})).max_new_tokens == 12
    assert settled(make(model={"limit": 12}), decoder_input_ids=[5, 6]).max_new_tokens == 10
    assert settled(make(model={"limit": 12}), max_new_tokens=3).max_new_tokens == 3


def test_precedence():
    specific = {"task_specific_params": {"text2text-generation": {"num_beams": 3, "min_length": 4, "prefix": "a "}}}
    model = {"generation": {"num_beams": 2, "max_new_tokens": 9, "repetition_penalty": 1.5}, **specific}
    pipe = make(model=model, max_new_tokens=7)
    found = settled(pipe)
    assert (found.num_beams, found.max_new_tokens, found.min_new_tokens) == (3, 7, 3)
    assert found.repetition_penalty == 1.5
    assert settled(pipe, num_beams=1).num_beams == 1
    assert settled(pipe, max_new_tokens=6).max_new_tokens == 6
    assert settled(make(model=model, num_beams=1)).num_beams == 1
    assert settled(make(model={"generation": {"num_beams": 2}})).num_beams == 2


def test_max_length_stands_against_the_default_of_new_tokens():
    assert settled(make(), max_length=8).max_new_tokens == 7
    assert settled(make(max_length=8)).max_new_tokens == 7
    assert settled(make(model={"generation": {"max_length": 8}})).max_new_tokens == 7
    specific = {"task_specific_params": {"text2text-generation": {"max_length": 8, "min_length": 6}}}
    assert settled(make(model=specific)).max_new_tokens == 7
    asked = settled(make(model=specific), max_new_tokens=3)
    assert (asked.max_new_tokens, asked.min_new_tokens) == (3, 3)
    asked = settled(make(model=specific), max_length=5)
    assert (asked.max_new_tokens, asked.min_new_tokens) == (4, 4)


def test_a_generation_config_stands_instead_of_the_tasks_settings():
    specific = {"task_specific_params": {"text2text-generation": {"num_beams": 3, "min_length": 4}}}
    pipe = make(model=specific, num_beams=2)
    own = GenerationConfig(max_new_tokens=5)
    found = settled(pipe, generation_config=own)
    assert (found.max_new_tokens, found.num_beams, found.min_new_tokens, found.pad_token_id) == (5, 1, 0, 2)
    assert own == GenerationConfig(max_new_tokens=5)
    with pytest.raises(TypeError, match="generation_config="):
        pipe("a", generation_config={"max_new_tokens": 5})


def test_stop_sequence(pipe, caplog):
    plain = ids_of(pipe("the cat", return_tensors=True, eos_token_id=299, num_beams=1, max_new_tokens=20))
    stop = plain[4]
    text = pipe.tokenizer.decode([stop])
    assert pipe.tokenizer(text)["input_ids"] == [stop]
    got = ids_of(pipe("the cat", return_tensors=True, stop_sequence=text, num_beams=1, max_new_tokens=20))
    assert got == plain[: plain.index(stop, 1) + 1]
    warn_once.cache_clear()
    pipe("a", stop_sequence="zyx", **GREEDY)
    assert "stop_sequence='zyx' has 3 tokens, of which the first, 'z'" in caplog.text


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        ({"stop_sequence": ""}, ValueError, "stop_sequence='' has no tokens"),
        ({"stop_sequence": ["a"]}, TypeError, "stop_sequence= takes a text, not list"),
        ({"stop_sequence": "a", "eos_token_id": 4}, ValueError, "give one of them"),
        ({"return_type": "ids"}, ValueError, r"return_type='ids': expected \['tensors', 'text'\]"),
        ({"return_type": 1}, TypeError, "return_type="),
        ({"max_new_token": 3}, ValueError, "Did you mean 'max_new_tokens'"),
        ({"return_tensor": True}, ValueError, "Did you mean 'return_tensors'"),
        ({"src_lang": "en"}, ValueError, "'src_lang' is neither"),
        ({"prefix": "a"}, ValueError, "'prefix' is neither"),
        ({"input_ids": [[1]]}, ValueError, "input_ids= is made by"),
        ({"return_dict_in_generate": True}, ValueError, "call model.generate"),
        ({"decoder_input_ids": [[1], [2]]}, ValueError, r"decoder_input_ids= of shape \(2, 1\)"),
        ({"num_return_sequences": 2, "num_beams": 1}, ValueError, "num_return_sequences=2"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens"),
    ],
)
def test_wrong_parameters(pipe, call, error, text):
    with pytest.raises(error, match=text):
        pipe("a", **{**GREEDY, **call})


def test_wrong_parameters_of_the_constructor():
    with pytest.raises(ValueError, match="'max_new_token' is neither"):
        make(max_new_token=3)


def test_answers_that_begin_with_given_tokens(pipe):
    whole = [ids_of(pipe(t, decoder_input_ids=[START, 9], return_tensors=True, **GREEDY)) for t in TEXTS]
    assert all(ids[:2] == [START, 9] and len(ids) <= 7 for ids in whole)
    many = pipe(TEXTS, decoder_input_ids=np.array([[9]]), return_tensors=True, **GREEDY)
    assert [record["generated_token_ids"] for record in many] == whole
    # The end token among them is no end.
    ended = ids_of(pipe("the cat", decoder_input_ids=[1], return_tensors=True, **GREEDY))
    assert ended[:2] == [START, 1] and len(ended) > 2


# ---- batches, and what results may not depend on


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "call",
    [
        GREEDY,
        {**GREEDY, "max_new_tokens": 30, "return_tensors": True},
        {**GREEDY, "max_length": 9, "max_new_tokens": None, "return_tensors": True},
        {**GREEDY, "max_new_tokens": 30, "stop_strings": "a", "return_tensors": True},
        {"max_new_tokens": 6, "num_beams": 1, "do_sample": True, "seed": 3, "num_return_sequences": 2},
    ],
)
@pytest.mark.parametrize("pad_token", ["<pad>", "</s>", None])
def test_batches_change_nothing(batch_size, call, pad_token):
    pipe = make({"pad_token": pad_token})
    alone = [pipe(text, item_offset=index, **call) for index, text in enumerate(TEXTS)]
    flat = alone if call.get("num_return_sequences") else [record for records in alone for record in records]
    assert pipe(TEXTS, batch_size=batch_size, **call) == flat
    assert list(pipe(iter(TEXTS), batch_size=batch_size, **call)) == alone


def test_texts_are_padded_on_the_right(pipe):
    pipe(TEXTS, batch_size=4, **GREEDY)
    [call] = pipe.model.calls
    lengths = [len(pipe.tokenizer(text)["input_ids"]) for text in TEXTS]
    assert call["attention_mask"].sum(axis=1).tolist() == lengths
    assert call["input_ids"].shape == (4, max(lengths))
    assert (call["attention_mask"][:, 0] == 1).all() and call["input_ids"][2, -1] == 2


def test_token_type_ids_do_not_reach_the_model():
    pipe = make({"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]})
    assert "token_type_ids" in pipe.tokenizer("a")
    pipe("the cat", **GREEDY)
    assert "token_type_ids" not in pipe.model.calls[-1]


@pytest.mark.parametrize(("call", "rows"), [({"num_beams": 1}, [4]), ({"num_beams": 4}, [2, 2]), ({}, [2, 2])])
def test_beams_take_room_in_default_batches(pipe, call, rows):
    pipe(TEXTS, max_new_tokens=3, **call)
    assert [len(made["input_ids"]) for made in pipe.model.calls] == rows


def test_a_streamer_gets_rows_one_by_one(pipe):
    pipe(TEXTS, streamer=object(), **GREEDY)
    assert [len(made["input_ids"]) for made in pipe.model.calls] == [1] * 4


def test_sampling_is_fixed_by_seed_and_index(pipe):
    call = {"max_new_tokens": 6, "num_beams": 1, "do_sample": True, "return_tensors": True}
    first = pipe(["hello"] * 3, seed=5, **call)
    assert first == pipe(["hello"] * 3, seed=5, **call)
    assert first[1:] == pipe(["hello"] * 2, seed=5, item_offset=1, **call)
    assert first != pipe(["hello"] * 3, seed=6, **call)
    assert first[0] != first[1]
    set_seed(1)
    drawn = pipe(TEXTS, **call)
    set_seed(1)
    assert drawn == pipe(TEXTS, batch_size=1, **call)


# ---- construction


def test_other_models_are_refused():
    with pytest.raises(
        ValueError, match=r"needs an encoder-decoder model, and ArithmeticModel is none.*text-generation"
    ):
        Text2TextGenerationPipeline(ArithmeticModel(), make_tokenizer())
    with pytest.raises(ValueError, match="summarization needs an encoder-decoder model"):
        pipeline("summarization", model=ArithmeticModel(), tokenizer=make_tokenizer())


def test_a_tokenizer_is_needed():
    with pytest.raises(ValueError, match="text2text-generation needs a tokenizer"):
        Text2TextGenerationPipeline(ArithmeticSeq2Seq())


def test_a_checkpoint_for_another_task_says_which(tmp_path):
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 8}
    config |= {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"model.norm.weight": np.ones(8, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no head for sequence-to-sequence") as caught:
        pipeline("text2text-generation", model=tmp_path)
    assert "is for the task 'text-generation', not for 'text2text-generation'" in caught.value.__notes__[0]
