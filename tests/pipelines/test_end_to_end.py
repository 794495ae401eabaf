"""Real models with random weights: seeds, batches, meshes, streams and compilations."""

import threading

import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModel, AutoModelForCausalLM
from jaxpipe.common.random import set_seed
from jaxpipe.generation.streamers import TextIteratorStreamer
from jaxpipe.pipelines import pipeline

PROMPTS = ["the cat", "a dog ate the rat and sat on the mat", "hello", "hello world again a dog", "on a mat"]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
LLAMA = {**SIZES, "num_key_value_heads": 2, "vocab_size": 300, "initializer_range": 0.3, "bos_token_id": 0}


@pytest.fixture(scope="module")
def generator(tokenizer_of):
    config = AutoConfig.for_model("llama", **LLAMA, eos_token_id=1)
    model = AutoModelForCausalLM.from_config(config, dtype="float32", device_map="cpu")
    return pipeline("text-generation", model=model, tokenizer=tokenizer_of())


@pytest.fixture(scope="module")
def extractor(tokenizer_of):
    config = AutoConfig.for_model("bert", **SIZES, vocab_size=300, initializer_range=0.3, max_position_embeddings=40)
    model = AutoModel.from_config(config, dtype="float32", device_map="cpu")
    return pipeline("feature-extraction", model=model, tokenizer=tokenizer_of())


@pytest.mark.parametrize(
    "arguments",
    [
        {"do_sample": False, "return_tensors": True},
        {"temperature": 0.9, "top_p": 0.9, "seed": 11, "return_tensors": True},
        {"seed": 3, "num_return_sequences": 2},
    ],
)
def test_generation_does_not_depend_on_the_batch(generator, arguments):
    arguments = {"max_new_tokens": 12, **arguments}
    alone = [generator(prompt, item_offset=index, **arguments) for index, prompt in enumerate(PROMPTS)]
    assert generator(PROMPTS, batch_size=4, **arguments) == alone
    assert list(generator(iter(PROMPTS[2:]), item_offset=2, batch_size=3, **arguments)) == alone[2:]


def test_set_seed_fixes_calls(generator):
    def draw():
        set_seed(4)
        return [generator(PROMPTS[:2], max_new_tokens=8) for _ in range(2)]

    first = draw()
    assert first == draw()
    assert first[0] != first[1]


def test_features_do_not_depend_on_the_batch(extractor):
    alone = [extractor(text, return_tensors=True) for text in PROMPTS]
    for batch_size in (2, 5):
        for got, wanted in zip(extractor(PROMPTS, batch_size=batch_size, return_tensors=True), alone, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_mesh(generator, extractor):
    device_map = {"data": 2, "tensor": 2}
    config = generator.model.config
    spread = AutoModelForCausalLM.from_config(config, dtype="float32", device_map=device_map)
    arguments = {"do_sample": False, "max_new_tokens": 6}
    pipe = pipeline("text-generation", model=spread, tokenizer=generator.tokenizer)
    assert pipe(PROMPTS, batch_size=4, **arguments) == generator(PROMPTS, batch_size=4, **arguments)
    spread = AutoModel.from_config(extractor.model.config, dtype="float32", device_map=device_map)
    pipe = pipeline("feature-extraction", model=spread, tokenizer=extractor.tokenizer)
    for got, wanted in zip(pipe(PROMPTS, batch_size=3), extractor(PROMPTS), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_a_stream_is_the_text(generator):
    streamer = TextIteratorStreamer(generator.tokenizer, skip_prompt=True, skip_special_tokens=True)
    arguments = {"do_sample": False, "max_new_tokens": 8}
    worker = threading.Thread(target=lambda: generator("the cat", streamer=streamer, **arguments))
    worker.start()
    text = "".join(streamer)
    worker.join()
    assert text == generator("the cat", return_full_text=False, **arguments)[0]["generated_text"]


def test_shapes_are_compiled_once_a_bucket(extractor):
    compiled = extractor.model._forward._cache_size
    before = compiled()
    for letter in "ab":
        for length in range(1, 31, 2):
            extractor([letter * length] * (1 + length % 4), batch_size=4)
        # Batches of 2 and 4 rows, of 16 and 32 tokens.
        assert compiled() - before <= 4
