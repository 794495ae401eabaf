"""Sentence similarity: forms of inputs, batches and errors, on a model that is arithmetic."""

import itertools
import json

import numpy as np
import pytest

from jaxpipe.pipelines import FeatureExtractionPipeline, SentenceSimilarityPipeline

SENTENCES = ["the cat sat on the mat", "a dog ate", "hello", "hello world again a dog"]
ITEM = {"source_sentence": "the cat", "sentences": SENTENCES}
OTHER = {"source_sentence": "a dog ate the rat", "sentences": ["hello", "the mat"]}


@pytest.fixture
def compare(model, tokenizer):
    return SentenceSimilarityPipeline(model, tokenizer, pooling="mean")


def test_cosines(compare, extractor):
    result = compare(ITEM)
    source, *others = (np.array(extractor(text)[0]).mean(axis=0) for text in ["the cat", *SENTENCES])
    wanted = [source @ other / np.linalg.norm(source) / np.linalg.norm(other) for other in others]
    np.testing.assert_allclose(result, wanted, atol=1e-6)
    assert all(type(value) is float for value in result)
    assert json.loads(json.dumps(result)) == result
    assert compare({"source_sentence": "the cat", "sentences": ["the cat"]}) == pytest.approx([1])


def test_forms(compare):
    alone = [compare(ITEM), compare(OTHER)]
    assert compare(source_sentence="the cat", sentences=SENTENCES) == alone[0]
    assert compare(source_sentence="the cat", sentences=tuple(SENTENCES)) == alone[0]
    assert compare([ITEM]) == alone[:1]
    assert compare([ITEM, OTHER]) == alone
    assert list(compare(item for item in [ITEM, OTHER])) == alone
    assert list(itertools.islice(compare(itertools.cycle([ITEM, OTHER])), 3)) == [*alone, alone[0]]
    assert compare([]) == []
    assert ITEM["sentences"] is SENTENCES


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_batches_change_nothing(compare, batch_size):
    alone = [compare(ITEM, batch_size=1), compare(OTHER, batch_size=1)]
    assert compare([ITEM, OTHER], batch_size=batch_size) == alone


def test_sentences_of_all_items_share_batches(compare):
    compare([ITEM, OTHER] * 3, batch_size=64)
    assert len(compare.model.calls) == 1
    compare.model.calls.clear()
    compare(ITEM)
    assert len(compare.model.calls) == 1


def test_parameters(compare, model, tokenizer):
    assert compare(ITEM, pooling="max") != compare(ITEM) == compare(ITEM, pooling="mean")
    same = {"source_sentence": "hello the cat", "sentences": ["hello " + sentence for sentence in SENTENCES]}
    assert compare(ITEM, prompt="hello ") == compare(same)
    cut = compare(ITEM, truncation=True, tokenize_kwargs={"max_length": 1})
    assert cut != compare(ITEM)
    assert SentenceSimilarityPipeline(model, tokenizer, pooling="max")(ITEM) == compare(ITEM, pooling="max")


def test_a_repository_that_says_nothing(model, tokenizer):
    with pytest.raises(ValueError, match=r"modules\.json.*lacks; give pooling= 'cls'"):
        SentenceSimilarityPipeline(model, tokenizer)
    with pytest.raises(ValueError, match=r"modules\.json"):
        FeatureExtractionPipeline(model, tokenizer)("a", pooling="auto")


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        (None, TypeError, "inputs is None; expected a mapping"),
        ("a", TypeError, "inputs is str 'a'; expected a mapping"),
        (["a"], TypeError, r"inputs\[0\] is str"),
        ({}, ValueError, "inputs lacks 'source_sentence' and 'sentences'"),
        ([ITEM, {"source_sentence": "a"}], ValueError, r"inputs\[1\] lacks 'sentences'"),
        ({**ITEM, "sentence": "a"}, ValueError, "unknown key 'sentence'.*Did you mean 'sentences'"),
        ({**ITEM, "sentences": []}, ValueError, r"inputs\['sentences'\] is empty"),
        ({**ITEM, "sentences": "a"}, TypeError, r"inputs\['sentences'\] is str 'a'; expected a list"),
        ({**ITEM, "sentences": ["a", 3]}, TypeError, r"inputs\['sentences'\]\[1\] is int 3"),
        ({**ITEM, "source_sentence": None}, TypeError, r"inputs\['source_sentence'\] is None"),
        ({**ITEM, "sentences": ["a", ""]}, ValueError, r"'sentences'\[1\] '' has no tokens"),
        ({**ITEM, "source_sentence": ""}, ValueError, "'source_sentence' '' has no tokens"),
    ],
)
def test_wrong_inputs(compare, inputs, error, text):
    with pytest.raises(error, match=text):
        compare(inputs)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"normalize": True}, TypeError, "'normalize' is no parameter"),
        ({"pool": "mean"}, TypeError, "'pool' is no parameter.*Did you mean 'pooling'"),
        ({"pooling": "average"}, ValueError, "'average' is not known"),
        ({"prompt": 3}, TypeError, "prompt= takes a str"),
        ({"prompt_name": "query"}, ValueError, "none of the prompts"),
    ],
)
def test_wrong_arguments(compare, model, tokenizer, arguments, error, text):
    with pytest.raises(error, match=text):
        compare(ITEM, **arguments)
    with pytest.raises(error, match=text):
        SentenceSimilarityPipeline(model, tokenizer, **{"pooling": "mean", **arguments})


def test_wrong_calls(compare, model):
    with pytest.raises(ValueError, match="not both"):
        compare(ITEM, source_sentence="a")
    with pytest.raises(ValueError, match="lacks 'sentences'"):
        compare(source_sentence="a")
    with pytest.raises(ValueError, match="tokenizer="):
        SentenceSimilarityPipeline(model)


def test_nan(compare, monkeypatch):
    call = type(compare.model).__call__

    def broken(self, input_ids, attention_mask):
        outputs = call(self, input_ids, attention_mask)
        outputs.last_hidden_state = outputs.last_hidden_state.at[:, 0].set(np.nan)
        return outputs

    monkeypatch.setattr(type(compare.model), "__call__", broken)
    with pytest.raises(ValueError, match="NaN or infinity") as caught:
        compare([ITEM, OTHER])
    assert any("item 0" in note for note in caught.value.__notes__)
