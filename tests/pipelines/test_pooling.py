"""Pooling: each way beside plain numpy, padding left out, meshes, and compilations."""

import functools

import jax
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModel
from jaxpipe.pipelines import FeatureExtractionPipeline, SentenceSimilarityPipeline, pipeline
from jaxpipe.pipelines import pooling as module
from jaxpipe.pipelines.pooling import MODES, Dense, Normalize, Recipe, check_modes, cosine, pool
from jaxpipe.sharding.mesh import make_mesh

LENGTHS = [5, 1, 7, 3]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.fixture
def states():
    """States (4, 7, 6), and the mask of four lengths; at padding they are NaN, which nothing may reach."""
    states = np.random.default_rng(0).normal(size=(len(LENGTHS), 7, 6)).astype(np.float32)
    mask = (np.arange(7) < np.array(LENGTHS)[:, None]).astype(np.int32)
    states[mask == 0] = np.nan
    return jax.numpy.asarray(states), mask


def alone(mode, tokens):
    """The vector of one text's tokens (T, D)."""
    places = np.arange(1, len(tokens) + 1)[:, None]
    return {
        "cls": lambda: tokens[0],
        "lasttoken": lambda: tokens[-1],
        "max": lambda: tokens.max(axis=0),
        "mean": lambda: tokens.mean(axis=0),
        "mean_sqrt_len_tokens": lambda: tokens.sum(axis=0) / np.sqrt(len(tokens)),
        "weightedmean": lambda: (tokens * places).sum(axis=0) / places.sum(),
    }[mode]()


@pytest.mark.parametrize("mode", MODES)
def test_modes(states, mode):
    got = pool(*states, Recipe((mode,)))
    assert got.dtype == np.float32
    wanted = [alone(mode, np.asarray(row[:length])) for row, length in zip(states[0], LENGTHS, strict=True)]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_tokens_that_are_left_out_at_the_beginning(states, mode):
    values, mask = np.nan_to_num(np.asarray(states[0])), states[1].copy()
    mask[:, 0] = 0
    mask[1, 1] = 1
    got = pool(values, mask, Recipe((mode,)))
    places = np.arange(1, 8)[:, None] if mode == "weightedmean" else np.ones((7, 1))
    for row, kept, vector in zip(values, mask > 0, got, strict=True):
        wanted = alone(mode, row[kept])
        if mode == "weightedmean":
            wanted = (row * places)[kept].sum(axis=0) / places[kept].sum()
        np.testing.assert_allclose(vector, wanted, rtol=1e-5, atol=1e-6)


def test_half_precision_is_pooled_in_float32(states):
    values = jax.numpy.nan_to_num(states[0]).astype("bfloat16")
    got = pool(values, states[1], Recipe(("mean",)))
    assert got.dtype == np.float32
    wanted = pool(values.astype("float32"), states[1], Recipe(("mean",)))
    np.testing.assert_array_equal(got, wanted)


def test_recipes(states):
    random = np.random.default_rng(1)
    first = random.normal(size=(12, 5)).astype(np.float32), random.normal(size=5).astype(np.float32)
    second = (random.normal(size=(5, 3)).astype(np.float32),)
    recipe = Recipe(("mean", "max"), (Dense("tanh", True), Dense("linear", False), Normalize()), (first, second))
    pooled = np.asarray(pool(*states, Recipe(("mean", "max"))))
    np.testing.assert_allclose(pooled[:, :6], pool(*states, Recipe(("mean",))), rtol=1e-6)
    raw = np.tanh(pooled @ first[0] + first[1]) @ second[0]
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(pool(*states, recipe), unit, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(pool(*states, recipe.normalized(False)), raw, rtol=1e-4, atol=1e-6)
    assert recipe.normalized(None) is recipe.normalized(True) is recipe
    zero = pool(np.zeros((1, 2, 3), np.float32), np.ones((1, 2), np.int32), Recipe(("mean",), (Normalize(),)))
    assert np.asarray(zero).tolist() == [[0, 0, 0]]
    with pytest.raises(ValueError, match="takes 12 numbers, but is given 6"):
        pool(*states, Recipe(("mean",), recipe.steps, recipe.weights))


@pytest.mark.parametrize("value", ["means", "", 3, True, ["mean", "average"], [], None])
def test_unknown_modes(value):
    with pytest.raises(ValueError, match="known are 'cls'"):
        check_modes(value)


def test_cosines():
    values = cosine(np.array([3.0, 4.0]), np.array([[6.0, 8.0], [-3.0, -4.0], [4.0, -3.0], [0.0, 0.0]]))
    assert values == [1.0, -1.0, 0.0, 0.0]
    assert all(type(value) is float for value in values)


@pytest.fixture(scope="module")
def encoder(tokenizer_of):
    @functools.cache
    def make(mesh=None):
        config = AutoConfig.for_model(
            "bert", **SIZES, vocab_size=300, initializer_range=0.3, max_position_embeddings=64
        )
        model = AutoModel.from_config(config, dtype="float32", mesh=mesh, device_map=None if mesh else "cpu")
        return pipeline("feature-extraction", model=model, tokenizer=tokenizer_of())

    return make


TEXTS = ["the cat", "a dog ate the rat and sat on the mat", "hello", "hello world again a dog", "on a mat"]


@pytest.mark.parametrize("mode", MODES)
def test_batches_change_nothing(encoder, mode):
    pipe = encoder()
    tokens = [np.array(pipe(text))[0] for text in TEXTS]
    for batch_size in (1, 3):
        got = pipe(TEXTS, pooling=mode, batch_size=batch_size)
        np.testing.assert_allclose(got, [alone(mode, row) for row in tokens], rtol=1e-4, atol=1e-5)


def test_a_mesh(encoder):
    mesh = make_mesh({"data": 2, "tensor": 2}, jax.devices()[:4])
    alone, together = encoder()(TEXTS, pooling="mean"), encoder(mesh=mesh)(TEXTS, pooling="mean", batch_size=4)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_shapes_are_compiled_once_a_bucket_and_states_stay_on_the_device(encoder, monkeypatch):
    pipe = encoder()
    compare = SentenceSimilarityPipeline(pipe.model, pipe.tokenizer, pooling="mean")
    compiled: list[str] = []
    listener = lambda event, duration, **_: compiled.append(event) if "compile" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    fetched: list[tuple[int, ...]] = []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda value: fetched.append(np.shape(value)) or get(value))
    long = "a dog ate the rat and " * 3
    ragged = ["a", "the rat sat on", "hello world", "on", "and a dog sat on the mat " * 2, long, "hello " * 9]
    assert 16 < len(pipe.tokenizer(long)["input_ids"]) <= 32
    try:
        arguments = {"pooling": "mean", "normalize": True, "batch_size": 4}
        for text in ("the cat", long):
            for count in (1, 2, 4):
                pipe([text] * count, **arguments)
        compare({"source_sentence": "a", "sentences": ["b"] * 3 + [long] * 4}, batch_size=4)
        before = len(compiled), module._pool._cache_size()
        for count in range(1, len(ragged) + 1):
            pipe(ragged[:count], **arguments)
        compare([{"source_sentence": "hello", "sentences": ["the " * 20, "a", "the cat"]}] * 3, batch_size=4)
        assert (len(compiled), module._pool._cache_size()) == before
        assert before[0] > 0
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert {shape[1:] for shape in fetched} == {(32,)}


def test_heads_cannot_be_pooled(tokenizer):
    from jaxpipe.common.outputs import LogitsOutput

    class Head:
        name_or_path = ""
        mesh = None
        config = None

        def __call__(self, input_ids, attention_mask):
            return LogitsOutput(jax.numpy.zeros((*input_ids.shape, 3)))

    pipe = FeatureExtractionPipeline(Head(), tokenizer)
    assert np.shape(pipe("the cat"))[2] == 3
    with pytest.raises(ValueError, match="needs the last hidden state, but Head gives \\['logits'\\]"):
        pipe("the cat", pooling="mean")
