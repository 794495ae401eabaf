"""The call contract of text-generation, on a model whose every token can be computed by hand."""

import itertools
import json

import pytest

from jaxpipe.common.random import set_seed
from jaxpipe.generation.config import GenerationConfig
from jaxpipe.pipelines import KeyDataset, ReturnType, TextGenerationPipeline

GREEDY = {"do_sample": False, "max_new_tokens": 5}
PROMPTS = ["the cat", "a dog ate the rat and sat", "hello", "hello world again a dog"]
CHAT = [{"role": "user", "content": "the cat"}]
PREFILLED = [*CHAT, {"role": "assistant", "content": "sat on"}]


def text_of(result):
    return result[0]["generated_text"]


@pytest.fixture
def pipe_of(model_of, tokenizer_of):
    """Makes a pipeline: ``pipe_of({"bos": True}, generation={...}, max_new_tokens=4, ...)``."""

    def make(tokenizer=None, generation=None, limits=None, **parameters):
        config = GenerationConfig(**(generation or {"bos_token_id": 0, "eos_token_id": 1}))
        model = model_of(generation_config=config, limits=limits)
        return TextGenerationPipeline(model, tokenizer_of(**(tokenizer or {})), **parameters)

    return make


# ---- the nesting of results


def test_one_prompt(generator):
    result = generator("the cat", **GREEDY)
    assert list(result[0]) == ["generated_text"]
    assert text_of(result).startswith("the cat")
    assert len(text_of(result)) > len("the cat")


def test_lists_nest(generator):
    one = generator("the cat", **GREEDY)
    assert generator(["the cat"], **GREEDY) == [one]
    assert generator(("the cat", "hello"), **GREEDY) == [one, generator("hello", **GREEDY)]
    assert generator([], **GREEDY) == []


def test_return_sequences(generator):
    two = generator("the cat", max_new_tokens=4, num_return_sequences=2, seed=0)
    assert len(two) == 2
    many = generator(["the cat", "hello"], max_new_tokens=4, num_return_sequences=3, seed=0)
    assert [len(records) for records in many] == [3, 3]


def test_results_are_json(generator):
    assert json.dumps(generator(PROMPTS, **GREEDY))
    assert json.dumps(generator(CHAT, **GREEDY))
    assert json.dumps(generator("a", return_tensors=True, **GREEDY))


def test_generators_are_lazy(generator):
    results = generator((prompt for prompt in itertools.cycle(PROMPTS)), **GREEDY)
    expected = generator(PROMPTS, **GREEDY)
    assert list(itertools.islice(results, 6)) == [*expected, *expected[:2]]


# ---- what records hold


def test_only_the_new_text(generator):
    full, new = generator("the cat", **GREEDY), generator("the cat", return_full_text=False, **GREEDY)
    assert text_of(full) == "the cat" + text_of(new)


@pytest.mark.parametrize("return_type", [ReturnType.TENSORS, "tensors"])
def test_token_ids(generator, return_type):
    [record] = generator("the cat", return_tensors=True, **GREEDY)
    assert list(record) == ["generated_token_ids"]
    prompt = generator.tokenizer("the cat")["input_ids"]
    assert record["generated_token_ids"][: len(prompt)] == prompt
    assert len(prompt) < len(record["generated_token_ids"]) <= len(prompt) + 5
    assert generator("the cat", return_type=return_type, **GREEDY) == [record]


def test_return_tensors_false_is_text(generator):
    assert generator("the cat", return_tensors=False, **GREEDY) == generator("the cat", **GREEDY)


@pytest.mark.parametrize(
    "pair",
    [
        {"return_full_text": True, "return_text": True},
        {"return_full_text": True, "return_tensors": True},
        {"return_text": True, "return_tensors": True},
    ],
)
def test_exclusive_parameters(generator, pair):
    with pytest.raises(ValueError, match="mutually exclusive"):
        generator("a", **pair)


def test_wrong_return_types(generator):
    with pytest.raises(ValueError, match=r"return_type='new': expected .*'new_text'"):
        generator("a", return_type="new")
    with pytest.raises(TypeError, match="return_type="):
        generator("a", return_type=1)


def test_special_tokens_stay_on_request(pipe_of):
    pipe = pipe_of()
    ended = next(
        p for p in map(str, range(60)) if pipe(p, return_tensors=True, **GREEDY)[0]["generated_token_ids"][-1] == 1
    )
    assert not text_of(pipe(ended, **GREEDY)).endswith("</s>")
    assert text_of(pipe(ended, skip_special_tokens=False, **GREEDY)).endswith("</s>")


def test_scores(generator):
    plain = generator(PROMPTS, **GREEDY, return_tensors=True)
    records = generator(PROMPTS, **GREEDY, return_dict_in_generate=True, output_scores=True)
    for [record], [ids], prompt in zip(records, plain, PROMPTS, strict=True):
        assert list(record) == ["generated_text", "scores"]
        new = len(ids["generated_token_ids"]) - len(generator.tokenizer(prompt)["input_ids"])
        assert [step[0] for step in record["scores"]] == [float(i) for i in ids["generated_token_ids"][-new:]]
        assert {len(step) for step in record["scores"]} == {3}
    assert json.dumps(records)


# ---- chats


def test_a_chat_gets_an_answer(generator):
    messages = text_of(generator(CHAT, **GREEDY))
    assert messages[:-1] == CHAT
    assert messages[-1]["role"] == "assistant"
    assert text_of(generator(CHAT, return_full_text=False, **GREEDY)) == messages[-1]["content"]
    rendered = generator.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text_of(generator(rendered, return_full_text=False, **GREEDY)) == messages[-1]["content"]


def test_an_assistants_last_message_is_continued(generator):
    messages = text_of(generator(PREFILLED, **GREEDY))
    assert len(messages) == 2
    assert messages[1]["role"] == "assistant"
    assert messages[1]["content"].startswith("sat on")
    assert PREFILLED[1]["content"] == "sat on"
    assert generator(PREFILLED, continue_final_message=True, **GREEDY) == [{"generated_text": messages}]


def test_a_new_message_on_request(generator):
    messages = text_of(generator(PREFILLED, continue_final_message=False, **GREEDY))
    assert [message["role"] for message in messages] == ["user", "assistant", "assistant"]
    continued = text_of(generator(CHAT, continue_final_message=True, **GREEDY))
    assert [message["role"] for message in continued] == ["user"]


def test_many_chats(generator):
    alone = [generator(CHAT, **GREEDY), generator(PREFILLED, **GREEDY)]
    assert generator([CHAT, PREFILLED], **GREEDY) == alone
    assert generator([tuple(CHAT), PREFILLED], **GREEDY) == alone
    assert list(generator((chat for chat in (CHAT, PREFILLED)), **GREEDY)) == alone
    rows = [{"messages": CHAT}, {"messages": PREFILLED}]
    assert list(generator(KeyDataset(rows, "messages"), **GREEDY)) == alone


def test_a_generator_of_messages_is_one_chat(generator):
    assert generator((message for message in PREFILLED), **GREEDY) == generator(PREFILLED, **GREEDY)


def test_prompts_and_chats_mix(generator):
    assert generator(["hello", CHAT], **GREEDY) == [generator("hello", **GREEDY), generator(CHAT, **GREEDY)]


def test_template_arguments(pipe_of):
    pipe = pipe_of({"chat_template": "{{ messages[0].content }}{{ tools | length }}{{ documents | length }}{{ mood }}"})
    arguments = {"tools": [{"a": 1}] * 2, "documents": [{"title": "t", "text": "x"}] * 3}
    extra = {"tokenizer_encode_kwargs": {"mood": "!"}}
    answer = text_of(pipe(CHAT, **arguments, **extra, **GREEDY))[-1]["content"]
    assert answer == text_of(pipe("the cat23!", return_full_text=False, **GREEDY))


def test_add_special_tokens_is_for_prompts(pipe_of):
    pipe = pipe_of({"bos": True})
    ids = [pipe("hello", return_tensors=True, add_special_tokens=add, **GREEDY)[0] for add in (True, False)]
    assert ids[0]["generated_token_ids"][0] == 0
    assert ids[1]["generated_token_ids"][0] != 0
    assert pipe(CHAT, add_special_tokens=True, **GREEDY) == pipe(CHAT, add_special_tokens=False, **GREEDY)


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        (None, TypeError, "inputs is None; expected a prompt"),
        (7, TypeError, "inputs is int 7"),
        (["a", 7], TypeError, r"inputs\[1\] is int 7"),
        ([["a"]], TypeError, r"inputs\[0\] is list"),
        ([CHAT, []], ValueError, r"inputs\[1\] is a chat without messages"),
        ({"role": "user", "content": "a"}, TypeError, "a single message; a chat is a list"),
        ([{"role": "user"}], ValueError, r"inputs\[0\]"),
        ([CHAT[0], {"role": "user"}], ValueError, "message 1 lacks 'content'"),
        ([CHAT, [*CHAT, "b"]], TypeError, r"inputs\[1\], message 1"),
        ({"text": "a"}, TypeError, "KeyDataset"),
        ([*CHAT, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}], ValueError, "cannot be continued"),
    ],
)
def test_wrong_inputs(generator, inputs, error, text):
    if isinstance(inputs, list) and inputs == [{"role": "user"}]:
        error = TypeError  # a mapping that is no message is no chat
    with pytest.raises(error, match=text):
        generator(inputs, **GREEDY)


def test_a_chat_without_template(pipe_of):
    with pytest.raises(ValueError, match="template"):
        pipe_of({"chat_template": None})(CHAT, **GREEDY)


# ---- settings


def test_defaults_sample(generator, model):
    generator("the cat")
    settled = model.settled
    assert (settled.max_new_tokens, settled.do_sample, settled.temperature) == (256, True, 0.7)
    assert settled.pad_token_id == 2


def test_precedence(pipe_of):
    pipe = pipe_of(generation={"max_new_tokens": 9, "temperature": 0.3, "eos_token_id": 1}, max_new_tokens=7, top_k=5)
    settled = lambda **call: (pipe("the cat", **call), pipe.model.settled)[1]  # noqa: E731
    model_and_init = settled()
    assert (model_and_init.max_new_tokens, model_and_init.temperature, model_and_init.top_k) == (7, 0.3, 5)
    assert settled(max_new_tokens=3).max_new_tokens == 3
    own = settled(generation_config=GenerationConfig(do_sample=True))
    assert (own.max_new_tokens, own.top_k) == (9, 50)
    assert settled(generation_config=GenerationConfig(max_new_tokens=2), max_new_tokens=4).max_new_tokens == 4
    assert settled().max_new_tokens == 7


def test_a_users_generation_config_stays_as_it_is(generator, model):
    config = GenerationConfig(max_new_tokens=3)
    generator("the cat", generation_config=config)
    assert config == GenerationConfig(max_new_tokens=3)
    assert (model.settled.max_new_tokens, model.settled.temperature) == (3, 0.7)
    with pytest.raises(TypeError, match="generation_config="):
        generator("a", generation_config={"max_new_tokens": 3})


def test_greedy_calls_get_no_sampling_defaults(generator, model):
    generator("the cat", **GREEDY)
    assert "temperature" not in model.calls[-1]


def test_max_length_stands_against_the_default_of_new_tokens(pipe_of):
    pipe = pipe_of(generation={"max_length": 12})
    ids = pipe("the cat", return_tensors=True, do_sample=False)[0]["generated_token_ids"]
    assert len(ids) <= 12
    assert "max_new_tokens" not in pipe.model.calls[-1]


def test_max_length_cuts_the_prompt_in_a_call_and_not_at_construction(pipe_of):
    pipe = pipe_of(max_length=8, do_sample=False, generation={"eos_token_id": None})
    long = "zyxwvutsrq"
    with pytest.raises(ValueError, match="max_length"):
        pipe(long)
    cut = pipe(long, max_length=4, max_new_tokens=2, return_tensors=True)[0]["generated_token_ids"]
    assert cut[:4] == pipe.tokenizer(long)["input_ids"][:4]
    assert len(cut) == 6


@pytest.mark.parametrize("total", [{"max_length": 40}, {"min_length": 30, "max_new_tokens": 6}, {"max_length": 30}])
@pytest.mark.parametrize("limits", [None, {"position_ids": 64}])
def test_total_lengths_do_not_depend_on_the_batch(pipe_of, total, limits):
    pipe = pipe_of(limits=limits)
    arguments = {"do_sample": False, "return_tensors": True, **total}
    assert pipe(PROMPTS, batch_size=4, **arguments) == [pipe(prompt, **arguments) for prompt in PROMPTS]


def test_prefix_is_not_part_of_the_text(generator):
    with_prefix = generator("cat", prefix="the ", **GREEDY)
    assert text_of(with_prefix).startswith("cat")
    whole = text_of(generator("the cat", return_full_text=False, **GREEDY))
    assert text_of(with_prefix) == "cat" + whole
    with pytest.raises(TypeError, match="prefix="):
        generator("cat", prefix=3)


def test_total_lengths_leave_the_prefix_out(pipe_of):
    pipe = pipe_of(generation={"eos_token_id": None})
    prefix = "zyxw"
    ids = pipe("ab", prefix=prefix, max_length=8, do_sample=False, return_tensors=True)[0]["generated_token_ids"]
    assert len(ids) == 8 + len(pipe.tokenizer(prefix)["input_ids"])


@pytest.mark.parametrize("stop", ["e", ["q", "e"]])
def test_stop_sequence(pipe_of, stop):
    pipe = pipe_of(generation={"eos_token_id": None})
    arguments = {"do_sample": False, "max_new_tokens": 40}
    texts = [
        result[0]["generated_text"][len(p) :] for result, p in zip(pipe(PROMPTS, **arguments), PROMPTS, strict=True)
    ]
    stopped = pipe(PROMPTS, stop_sequence=stop, return_full_text=False, **arguments)
    assert any("e" in text for text in texts)
    for text, result in zip(texts, stopped, strict=True):
        got = text_of(result)
        assert text.startswith(got)
        assert got == text or "e" in got[-4:] or "q" in got[-4:]
        assert not any(letter in got[:-4] for letter in stop)
    assert pipe(PROMPTS, stop_strings=stop, return_full_text=False, **arguments) == stopped
    with pytest.raises(ValueError, match="stop_sequence= and stop_strings="):
        pipe("a", stop_sequence="a", stop_strings="b")


def test_hole(pipe_of):
    pipe = pipe_of({"model_max_length": 10}, generation={"eos_token_id": None})
    long = "zyxwvutsrqponm"
    ids = pipe.tokenizer(long, verbose=False)["input_ids"]
    kept = pipe(long, handle_long_generation="hole", return_tensors=True, do_sample=False, max_new_tokens=4)
    assert kept[0]["generated_token_ids"][:6] == ids[-6:]
    assert len(kept[0]["generated_token_ids"]) == 10
    short = pipe("ab", handle_long_generation="hole", return_tensors=True, do_sample=False, max_new_tokens=4)
    assert short[0]["generated_token_ids"][:2] == pipe.tokenizer("ab")["input_ids"]
    with pytest.raises(ValueError, match="leave no room"):
        pipe(long, handle_long_generation="hole", max_new_tokens=10)
    with pytest.raises(ValueError, match="handle_long_generation='gap'"):
        pipe(long, handle_long_generation="gap")
    with pytest.raises(ValueError, match="the number of new tokens is unknown"):
        pipe(long, handle_long_generation="hole", max_length=5, truncation=False)


def test_padding_of_the_tokenizer_is_on_the_left(generator):
    padded = generator("cat", padding="max_length", tokenizer_encode_kwargs={"max_length": 12}, **GREEDY)
    assert padded == generator("cat", **GREEDY)
    assert generator.tokenizer.padding_side == "right"


# ---- batches, and what results may not depend on


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "arguments",
    [
        GREEDY,
        {**GREEDY, "max_new_tokens": 30, "return_tensors": True},
        {**GREEDY, "max_new_tokens": 30, "skip_special_tokens": False},
        {**GREEDY, "max_new_tokens": 30, "stop_sequence": "a", "return_tensors": True},
        {"max_new_tokens": 6, "seed": 3, "num_return_sequences": 2, "return_tensors": True},
    ],
)
@pytest.mark.parametrize("pad_token", ["<pad>", "</s>"])
def test_batches_change_nothing(pipe_of, batch_size, arguments, pad_token):
    pipe = pipe_of({"pad_token": pad_token})
    alone = [pipe(prompt, item_offset=index, **arguments) for index, prompt in enumerate(PROMPTS)]
    assert pipe(PROMPTS, batch_size=batch_size, **arguments) == alone
    assert list(pipe(iter(PROMPTS), batch_size=batch_size, **arguments)) == alone


def test_sampling_is_fixed_by_seed_and_index(generator, model):
    arguments = {"max_new_tokens": 6}
    first = generator(["hello"] * 3, seed=5, **arguments)
    assert first == generator(["hello"] * 3, seed=5, **arguments)
    assert first[1:] == generator(["hello"] * 2, seed=5, item_offset=1, **arguments)
    assert first != generator(["hello"] * 3, seed=6, **arguments)
    assert first[0] != first[1]
    assert model.calls[0]["item_indices"] == [0, 1, 2]


def test_one_seed_is_drawn_a_call(generator, model):
    set_seed(1)
    generator(PROMPTS, batch_size=2, max_new_tokens=2)
    seeds = [call["seed"] for call in model.calls]
    assert len(seeds) == 2 and len(set(seeds)) == 1
    generator("hello", max_new_tokens=2)
    assert model.calls[-1]["seed"] != seeds[0]
    set_seed(1)
    generator("hello", max_new_tokens=2)
    assert model.calls[-1]["seed"] == seeds[0]


def test_lists_run_in_batches_without_being_told(generator, model):
    generator(PROMPTS, **GREEDY)
    assert len(model.calls) == 1


def test_prompts_are_padded_on_the_left(generator, model):
    generator(PROMPTS, batch_size=4, **GREEDY)
    ids = model.calls[0]["input_ids"]
    assert (ids[:, -1] != 2).all() and (ids[2, 0] == 2)


def test_no_pad_token_no_batches(pipe_of):
    pipe = pipe_of({"pad_token": None})
    with pytest.raises(ValueError, match=r"batch_size=2 needs a tokenizer with a pad token.*pad_token = "):
        pipe(PROMPTS, batch_size=2)
    pipe(PROMPTS, **GREEDY)
    assert len(pipe.model.calls) == 4


def test_a_streamer_gets_rows_one_by_one(generator, model):
    class Streamer:
        pass

    generator(PROMPTS, streamer=Streamer(), **GREEDY)
    assert len(model.calls) == 4


# ---- empty prompts


def test_an_empty_prompt_starts_from_bos(pipe_of):
    pipe = pipe_of()
    ids = pipe("", return_tensors=True, **GREEDY)[0]["generated_token_ids"]
    assert ids[0] == 0
    assert text_of(pipe("", **GREEDY)) == pipe.tokenizer.decode(ids, skip_special_tokens=True)
    assert pipe(["", "hello"], batch_size=2, **GREEDY) == [pipe("", **GREEDY), pipe("hello", **GREEDY)]
    assert text_of(pipe("", bos_token_id=5, skip_special_tokens=False, **GREEDY)).startswith(pipe.tokenizer.decode([5]))


def test_an_empty_prompt_without_bos(pipe_of):
    pipe = pipe_of(generation={"eos_token_id": 1})
    with pytest.raises(ValueError, match="The prompt is empty, and the model has no bos_token_id"):
        pipe(["a", ""], **GREEDY)


# ---- wrong arguments


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"max_new_token": 3}, "'max_new_token' is neither.*Did you mean 'max_new_tokens'"),
        ({"return_fulltext": False}, "Did you mean 'return_full_text'"),
        ({"input_ids": [[1]]}, "input_ids= is made by the text-generation pipeline"),
        ({"item_indices": [1]}, "item_indices= is made by"),
    ],
)
def test_unknown_arguments(generator, model, tokenizer, arguments, text):
    with pytest.raises(ValueError, match=text):
        generator("a", **arguments)
    with pytest.raises(ValueError, match=text):
        TextGenerationPipeline(model, tokenizer, **arguments)
    assert model.calls == []


def test_encoder_decoder_models_are_refused(model, tokenizer):
    model.config.is_encoder_decoder = True
    with pytest.raises(ValueError, match="encoder-decoder"):
        TextGenerationPipeline(model, tokenizer)


def test_a_tokenizer_is_needed(model):
    with pytest.raises(ValueError, match="tokenizer="):
        TextGenerationPipeline(model)
