"""A chat's next turn reads only what is new, and says what it would say without a cache."""

from typing import Any

import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM
from jaxpipe.generation.prefix_cache import PrefixCache
from jaxpipe.pipelines import pipeline

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA), dtype="float32", seed=0)


@pytest.fixture
def starts(model, monkeypatch):
    """The first columns of the chunks that the model reads behind a cache."""
    reader = model._generator.reader
    read, found = reader.read_chunk, []

    def counted(leaves, filled, ids, lengths, start, size):
        found.append(int(start))
        return read(leaves, filled, ids, lengths, start, size)

    monkeypatch.setattr(reader, "read_chunk", counted)
    return found


def question(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_chat_goes_on(model, starts, tokenizer_of):
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer_of(model_max_length=512))
    messages = [question("the cat sat on the mat and a dog ate the rat and " * 3)]
    lengths = []
    for said in ("hello world", "again", "the cat"):
        encoded = pipe.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        lengths.append(len(encoded["input_ids"]))
        answered = pipe(messages, **GREEDY)[0]["generated_text"]
        fresh = pipeline("text-generation", model=model, tokenizer=pipe.tokenizer)
        count = len(starts)
        assert fresh(messages, **GREEDY)[0]["generated_text"] == answered
        assert len(starts) == count  # it has no cache yet
        messages = [*answered, question(said)]
    # The second and third turn read behind the prompt before at least; its answer may come back as other tokens.
    assert len(starts) == 2 and starts[0] >= lengths[0] and starts[1] >= lengths[1]
    # Another chat begins anew, as do prompts and batches.
    pipe([question("hello")], **GREEDY)
    pipe("hello world again", **GREEDY)
    pipe([messages, messages], **GREEDY)
    assert len(starts) == 2


def test_a_prefix_cache_of_a_pipeline(model, starts, tokenizer_of):
    cache = PrefixCache("10MB", block_size=4)
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer_of(model_max_length=512), prefix_cache=cache)
    plain = pipeline("text-generation", model=model, tokenizer=pipe.tokenizer)
    system = {"role": "system", "content": "the cat sat on the mat and a dog ate the rat"}
    chats = [[system, question(text)] for text in ("hello", "the rat", "a dog sat")]
    wanted = [plain(chat, **GREEDY) for chat in chats]
    del starts[:]
    assert [pipe(chat, **GREEDY) for chat in chats] == wanted
    assert cache.hits == 2 and cache.misses == 1 and starts == [24, 24]
    assert pipe(chats, batch_size=3, **GREEDY) == wanted
    assert cache.hits == 5
