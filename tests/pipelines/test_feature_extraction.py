"""Features: nesting, parameters, and rows without padding."""

import json

import numpy as np
import pytest

from jaxpipe.pipelines import FeatureExtractionPipeline, KeyDataset

TEXTS = ["the cat", "a dog ate the rat and sat", "hello"]


def test_one_text(extractor):
    features = extractor("the cat")
    ids = extractor.tokenizer("the cat")["input_ids"]
    assert np.shape(features) == (1, len(ids), 3)
    assert [token[1] for token in features[0]] == ids
    assert json.dumps(features)


def test_arrays_on_request(extractor):
    array = extractor("the cat", return_tensors=True)
    assert isinstance(array, np.ndarray)
    assert array.tolist() == extractor("the cat")


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3])
def test_batches_change_nothing(extractor, batch_size):
    alone = [extractor(text) for text in TEXTS]
    assert extractor(TEXTS, batch_size=batch_size) == alone
    assert extractor(tuple(TEXTS), batch_size=batch_size) == alone
    assert list(extractor(iter(TEXTS), batch_size=batch_size)) == alone
    rows = [{"text": text} for text in TEXTS]
    assert list(extractor(KeyDataset(rows, "text"), batch_size=batch_size)) == alone


def test_truncation(extractor):
    cut = extractor("a dog ate the rat", truncation=True, tokenize_kwargs={"max_length": 2})
    assert np.shape(cut) == (1, 2, 3)
    assert np.shape(extractor("a dog ate", tokenize_kwargs={"truncation": True, "max_length": 1})) == (1, 1, 3)


def test_padding_that_was_asked_for_stays(extractor):
    padded = extractor(TEXTS, tokenize_kwargs={"padding": "max_length", "max_length": 9, "truncation": True})
    assert [np.shape(one) for one in padded] == [(1, 9, 3)] * 3


def test_words(extractor):
    words = {"tokenize_kwargs": {"is_split_into_words": True}}
    assert extractor([["hello", "hello"]], **words) == [extractor("hellohello")]
    with pytest.raises(TypeError, match="is_split_into_words"):
        extractor([["hello", "hello"]])


def test_tokenizers_without_pad_token(model, tokenizer_of):
    extractor = FeatureExtractionPipeline(model, tokenizer_of(pad_token=None))
    assert extractor(TEXTS, batch_size=3) == [extractor(text) for text in TEXTS]


def test_a_users_tokenize_kwargs_stay_as_they_are(extractor):
    given = {"max_length": 2}
    extractor("the cat", truncation=True, tokenize_kwargs=given)
    assert given == {"max_length": 2}


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        (None, TypeError, "inputs is None; expected a text"),
        (["a", 3], TypeError, r"inputs\[1\] is int 3"),
        ([{"text": "a"}], TypeError, "KeyDataset"),
        ("", ValueError, "has no tokens"),
    ],
)
def test_wrong_inputs(extractor, inputs, error, text):
    with pytest.raises(error, match=text):
        extractor(inputs)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"truncate": True}, TypeError, "'truncate' is no parameter of .*Did you mean 'truncation'"),
        ({"truncation": True, "tokenize_kwargs": {"truncation": True}}, ValueError, "truncation is given twice"),
        ({"tokenize_kwargs": {"return_tensors": "np"}}, ValueError, "return_tensors does not belong"),
    ],
)
def test_wrong_arguments(extractor, model, tokenizer, arguments, error, text):
    with pytest.raises(error, match=text):
        extractor("a", **arguments)
    with pytest.raises(error, match=text):
        FeatureExtractionPipeline(model, tokenizer, **arguments)


def test_a_tokenizer_is_needed(model):
    with pytest.raises(ValueError, match="tokenizer="):
        FeatureExtractionPipeline(model)


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_one_vector_a_text(extractor, batch_size):
    tokens = [np.array(extractor(text))[0] for text in TEXTS]
    vectors = extractor(TEXTS, pooling="mean", batch_size=batch_size)
    assert vectors == [extractor(text, pooling="mean") for text in TEXTS]
    np.testing.assert_allclose(vectors, [row.mean(axis=0) for row in tokens], rtol=1e-6)
    assert isinstance(vectors[0], list)
    assert all(type(number) is float for number in vectors[0])
    assert json.dumps(vectors)
    assert list(extractor(iter(TEXTS), pooling="mean")) == vectors
    array = extractor(TEXTS[0], pooling="mean", return_tensors=True)
    assert isinstance(array, np.ndarray)
    assert array.tolist() == vectors[0]


def test_vectors_of_length_one_and_joined_ways(extractor):
    raw = np.array(extractor(TEXTS, pooling="max"))
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(extractor(TEXTS, pooling="max", normalize=True), unit, rtol=1e-6)
    assert extractor(TEXTS, pooling="max", normalize=False) == raw.tolist()
    joined = extractor("the cat", pooling=["max", "cls"])
    assert joined == extractor("the cat", pooling="max") + extractor("the cat", pooling="cls")


def test_pooling_leaves_out_padding_that_was_asked_for(extractor):
    padding = {"tokenize_kwargs": {"padding": "max_length", "max_length": 9, "truncation": True}}
    for pooling in ("mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"):
        assert extractor("the cat", pooling=pooling, **padding) == extractor("the cat", pooling=pooling)


def test_pooling_at_construction(model, tokenizer):
    pipe = FeatureExtractionPipeline(model, tokenizer, pooling="mean", normalize=True)
    plain = FeatureExtractionPipeline(model, tokenizer)
    assert pipe("the cat") == plain("the cat", pooling="mean", normalize=True)
    assert pipe("the cat", normalize=False) == plain("the cat", pooling="mean")
    assert pipe("the cat", pooling="cls") == plain("the cat", pooling="cls", normalize=True)


def test_words_and_prompts(extractor):
    words = {"tokenize_kwargs": {"is_split_into_words": True}}
    assert extractor([["hello", "hello"]], pooling="mean", **words) == [extractor("hellohello", pooling="mean")]
    assert extractor("cat", prompt="the ") == extractor("the cat")
    with pytest.raises(ValueError, match="not with lists of words"):
        extractor([["hello"]], prompt="the ", **words)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"pooling": "meen"}, ValueError, "'meen' is not known.*Did you mean 'mean'"),
        ({"pooling": True}, ValueError, "True is not known"),
        ({"normalize": True}, ValueError, "give pooling= as well"),
        ({"normalize": "yes", "pooling": "mean"}, TypeError, "normalize= takes True, False or None"),
        ({"poolin": "mean"}, TypeError, "Did you mean 'pooling'"),
    ],
)
def test_wrong_pooling(extractor, model, tokenizer, arguments, error, text):
    with pytest.raises(error, match=text):
        extractor("a", **arguments)
    with pytest.raises(error, match=text):
        FeatureExtractionPipeline(model, tokenizer, **arguments)


@pytest.mark.parametrize("arguments", [{}, {"return_tensors": True}, {"pooling": "mean"}])
def test_nan(extractor, monkeypatch, arguments):
    call = type(extractor.model).__call__
    hello = extractor.tokenizer("hello")["input_ids"][0]

    def broken(self, input_ids, attention_mask):
        outputs = call(self, input_ids, attention_mask)
        wrong = (input_ids == hello).any(axis=1)[:, None, None]
        outputs.last_hidden_state = np.where(wrong, np.nan, outputs.last_hidden_state)
        return outputs

    monkeypatch.setattr(type(extractor.model), "__call__", broken)
    with pytest.raises(ValueError, match="NaN or infinity") as caught:
        extractor(TEXTS, **arguments)
    assert any("item 2" in note for note in caught.value.__notes__)
