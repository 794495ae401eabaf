"""Streams: pieces that make up the answer, errors at the consumer, and nothing left behind."""

import asyncio
import gc
import itertools
import threading

import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from jaxpipe.common.random import set_seed
from jaxpipe.generation.config import GenerationConfig
from jaxpipe.pipelines import pipeline
from jaxpipe.pipelines.streaming import TextPieces

SIZES = {"vocab_size": 300, "initializer_range": 0.3}
LLAMA = {
    **SIZES, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
T5 = {
    **SIZES, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "initializer_factor": 3.0,
    "decoder_start_token_id": 2, "pad_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
CHAT = [{"role": "user", "content": "the cat"}]
GREEDY = {"do_sample": False, "max_new_tokens": 24, "min_new_tokens": 12}


@pytest.fixture(scope="module")
def generator(tokenizer_of):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA), dtype="float32", device_map="cpu")
    return pipeline("text-generation", model=model, tokenizer=tokenizer_of())


@pytest.fixture(scope="module")
def answerer(tokenizer_of):
    entries = {name: value for name, value in T5.items() if name != "initializer_range"}
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **entries), dtype="float32", device_map="cpu")
    return pipeline("text2text-generation", model=model, tokenizer=tokenizer_of())


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert [thread.name for thread in threading.enumerate() if thread not in before] == []


def counted():
    """A stopping criterion that stops nothing, and the list in which it counts."""
    calls: list[int] = []

    def criterion(input_ids, scores, **_):
        calls.append(input_ids.shape[1])
        return False

    return criterion, calls


async def collected(pieces):
    return [piece async for piece in pieces]


# ---- the pieces make up the answer


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"return_full_text": False},
        {"skip_special_tokens": False, "prefix": "hello "},
        {"clean_up_tokenization_spaces": True, "return_type": "new_text"},
        {"do_sample": True, "seed": 5, "temperature": 1.3},
        {"stop_sequence": "a", "min_new_tokens": 0},
        {"eos_token_id": list(range(3, 250)), "min_new_tokens": 5, "skip_special_tokens": False},
        {"max_new_tokens": None, "max_length": 40, "min_new_tokens": None},
    ],
    ids=str,
)
def test_of_a_prompt(generator, call):
    call = {**GREEDY, **call}
    pieces = list(generator.stream("the cat sat", **call))
    assert "".join(pieces) == generator("the cat sat", **call)[0]["generated_text"]
    assert all(pieces)
    if call.get("min_new_tokens") == GREEDY["min_new_tokens"]:
        assert len(pieces) > 2
    if "prefix" not in call and call.get("return_type") is None and call.get("return_full_text", True):
        assert pieces[0] == "the cat sat"


def test_of_an_empty_prompt(generator):
    for call in ({}, {"skip_special_tokens": False}):
        pieces = list(generator.stream("", **GREEDY, **call))
        assert "".join(pieces) == generator("", **GREEDY, **call)[0]["generated_text"]
        assert len(pieces) > 2


def test_of_a_chat(generator):
    call = {**GREEDY, "return_full_text": True}
    pieces = list(generator.stream(CHAT, **call))
    assert "".join(pieces) == generator(CHAT, **call)[0]["generated_text"][-1]["content"]
    begun = [*CHAT, {"role": "assistant", "content": "a dog"}]
    whole = generator(begun, **call)[0]["generated_text"][-1]["content"]
    assert "a dog" + "".join(generator.stream(begun, **call)) == whole


def test_constructor_parameters_hold(generator, tokenizer_of):
    pipe = pipeline(
        "text-generation", model=generator.model, tokenizer=tokenizer_of(), return_full_text=False, **GREEDY
    )
    assert "".join(pipe.stream("the cat")) == pipe("the cat")[0]["generated_text"]


def test_of_an_encoder_decoder(answerer):
    call = {**GREEDY, "num_beams": 1}
    pieces = list(answerer.stream("the cat", **call))
    assert "".join(pieces) == answerer("the cat", **call)[0]["generated_text"]
    assert len(pieces) > 2


def test_with_beams_the_answer_is_one_piece(answerer):
    call = {"max_new_tokens": 6, "min_new_tokens": 6}  # the task's default is 4 beams
    assert list(answerer.stream("the cat", **call)) == [answerer("the cat", **call)[0]["generated_text"]]


@pytest.mark.full
def test_with_beams_of_a_decoder_the_answer_is_one_piece(generator):
    call = {**GREEDY, "num_beams": 2, "return_full_text": False}
    assert list(generator.stream("the cat", **call)) == [generator("the cat", **call)[0]["generated_text"]]


def test_a_stream_takes_one_seed(generator):
    def texts(first):
        set_seed(7)
        return [first(), *(generator("a dog", max_new_tokens=6)[0]["generated_text"] for _ in range(2))]

    streamed = texts(lambda: "".join(generator.stream("the cat", max_new_tokens=6)))
    assert streamed == texts(lambda: generator("the cat", max_new_tokens=6)[0]["generated_text"])


def test_async(generator):
    async def run():
        together = await asyncio.gather(
            collected(generator.astream("the cat", **GREEDY)), collected(generator.astream(CHAT, **GREEDY))
        )
        # As in a notebook, whose loop runs while the plain iterator is used.
        return [*together, list(generator.stream("the cat", **GREEDY))]

    prompt, chat, plain = asyncio.run(run())
    assert prompt == plain == list(generator.stream("the cat", **GREEDY))
    assert chat == list(generator.stream(CHAT, **GREEDY))


def test_the_event_loop_is_free_in_between(generator):
    async def run():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        seen = [ticks async for _ in generator.astream("the cat", **GREEDY)]
        ticking.cancel()
        return seen

    seen = asyncio.run(run())
    assert seen[-1] > seen[0]


def test_a_streamer_gets_prompts_and_answers_in_order(generator):
    class Noting:
        def __init__(self):
            self.texts, self.ids = [], []

        def put(self, value):
            self.ids += np.asarray(value).reshape(-1).tolist()

        def end(self):
            self.texts.append(generator.tokenizer.decode(self.ids, skip_special_tokens=True))
            self.ids = []

    prompts = ["the cat", "a dog ate the rat and sat", "hello"]
    streamer = Noting()
    records = generator(prompts, streamer=streamer, **GREEDY)
    assert streamer.texts == [record["generated_text"] for [record] in records]
    assert [text.startswith(prompt) for text, prompt in zip(streamer.texts, prompts, strict=True)] == [True] * 3


# ---- ends


def test_breaking_off_ends_the_generation(generator):
    criterion, steps = counted()
    for piece in generator.stream("the cat", do_sample=False, max_new_tokens=1500, stopping_criteria=[criterion]):
        if piece != "the cat":
            break
    gc.collect()
    assert 0 < len(steps) < 100


def test_close_ends_the_generation(generator):
    criterion, steps = counted()
    pieces = generator.stream("the cat", do_sample=False, max_new_tokens=1500, stopping_criteria=[criterion])
    assert list(itertools.islice(pieces, 3))
    pieces.close()
    assert len(steps) < 100
    assert list(pieces) == []


def test_a_stream_that_is_not_read_does_not_start(generator):
    criterion, steps = counted()
    generator.stream("the cat", stopping_criteria=[criterion], **GREEDY)
    gc.collect()
    assert steps == []


def test_breaking_off_async_ends_the_generation(generator):
    criterion, steps = counted()
    call = {"do_sample": False, "max_new_tokens": 1500, "stopping_criteria": [criterion]}

    async def leave():
        async for _ in generator.astream("the cat", **call):
            break

    async def close():
        pieces = generator.astream("the cat", **call)
        await anext(pieces)
        await pieces.aclose()

    async def cancel():
        task = asyncio.create_task(collected(generator.astream("the cat", **call)))
        while not steps:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for end in (leave, close, cancel):
        steps.clear()
        asyncio.run(end())
        assert len(steps) < 200


# ---- errors


@pytest.mark.parametrize(
    ("inputs", "call", "error", "words"),
    [
        ("the cat", {"max_new_token": 3}, ValueError, "max_new_tokens"),
        ("the cat", {"streamer": object()}, ValueError, "streamer"),
        ("the cat", {"num_return_sequences": 2}, ValueError, "num_return_sequences=2"),
        ("the cat", {"return_tensors": True}, ValueError, "return_tensors"),
        (["the cat", "a dog"], {}, TypeError, "one item"),
        (iter(["the cat"]), {}, TypeError, "one item"),
        (None, {}, TypeError, "None"),
        (5, {}, TypeError, "prompt"),
    ],
)
def test_what_cannot_be_streamed_is_an_error_at_once(generator, inputs, call, error, words):
    for start in (generator.stream, generator.astream):
        with pytest.raises(error, match=words):
            start(inputs, **call)


def test_errors_of_generate_come_with_the_first_piece(generator):
    pieces = generator.stream("the cat", return_full_text=False, do_sample=True, temperature=0.0)
    with pytest.raises(ValueError, match="temperature"):
        next(pieces)
    with pytest.raises(ValueError, match="temperature"):
        asyncio.run(collected(generator.astream("the cat", do_sample=True, temperature=0.0)))


def test_errors_on_the_way_come_after_the_pieces_so_far(generator):
    def fails(input_ids, scores, **_):
        if input_ids.shape[1] > 12:
            raise RuntimeError("enough")
        return False

    given: list[str] = []
    with pytest.raises(RuntimeError, match="enough"):
        for piece in generator.stream("the cat", **GREEDY, stopping_criteria=[fails]):
            given.append(piece)
    assert given
    assert generator("the cat", **GREEDY)[0]["generated_text"].startswith("".join(given))


# ---- final text


class Cleaning:
    """Decodes letters, and takes out spaces before punctuation, as `clean_up_tokenization_spaces` does."""

    rules = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"))
    rules += ((" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))

    def __call__(self, ids):
        text = "".join(map(chr, ids))
        for old, new in self.rules:
            text = text.replace(old, new)
        return text


@pytest.mark.parametrize("seed", range(20))
def test_pieces_survive_cleaning(seed):
    rng = np.random.default_rng(seed)
    words = ["do", " n't", " 's", " .", " , ", " ' ", "I", " 've", " 'm", " ", "longer-words", " a", "??", " ?"]
    text = "".join(rng.choice(words, 120))
    decode, pieces = Cleaning(), TextPieces(Cleaning(), cleans=True)
    given = [pieces.add([ord(letter)]) for letter in text]
    joined = "".join(given)
    assert len(joined) > 100
    assert joined == decode([ord(letter) for letter in text])[: len(joined)]


def test_characters_of_several_bytes_are_given_whole(tokenizer_of):
    tokenizer = tokenizer_of()
    text = "a naïve 猫が座った 🙂 the cat" * 20
    pieces = TextPieces(tokenizer.decode)
    given = [pieces.add([token]) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert "\ufffd" not in "".join(given)
    assert text.startswith("".join(given))
    assert "".join(given) == text
    assert len([piece for piece in given if piece]) > len(text) / 4


def test_settings_of_a_config_are_seen(generator):
    config = GenerationConfig(num_return_sequences=2, do_sample=True)
    with pytest.raises(ValueError, match="num_return_sequences=2"):
        generator.stream("the cat", generation_config=config)
