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
