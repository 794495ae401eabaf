"""Zero-shot classification: nesting, labels, templates, entailment ids, batches and errors, on an exact model."""

import itertools
import json
import logging
import types

import numpy as np
import pytest

from jaxpipe.common.outputs import LogitsOutput
from jaxpipe.pipelines import KeyDataset, ZeroShotClassificationPipeline

TEXTS = ["the cat", "a dog ate the rat and sat", "hello"]
LABELS = ["cat", "dog", "world"]


class EntailmentModel:
    """Three logits that depend on a row's own unmasked tokens alone."""

    name_or_path = ""
    dtype = np.dtype(np.float32)
    mesh = None

    def __init__(self, label2id=None, scale=1.0, broken=None, limit=None, **config):
        label2id = {"contradiction": 0, "neutral": 1, "entailment": 2} if label2id is None else label2id
        config = {"eos_token_id": 1, "is_encoder_decoder": False, **config}
        names = {index: label for label, index in label2id.items()}
        self.config = types.SimpleNamespace(
            label2id=label2id,
            id2label={i: names.get(i, str(i)) for i in range(3)},
            longest_input=lambda: limit,
            **config,
        )
        self.scale, self.broken, self.calls = scale, broken, []

    def __call__(self, input_ids, attention_mask):
        self.calls.append(input_ids)
        total = (input_ids * attention_mask).sum(axis=1, keepdims=True)
        logits = np.sin(total * np.array([[1.0, 2.0, 3.0]])) * self.scale
        if self.broken is not None:
            logits[(input_ids == self.broken).any(axis=1)] = np.nan
        return LogitsOutput(np.asarray(logits, np.float32))


@pytest.fixture
def classify(tokenizer):
    return ZeroShotClassificationPipeline(EntailmentModel(), tokenizer)


def expected(pipe, text, labels=LABELS, template="This example is {}."):
    """The logits of each label, (n, 3)."""
    rows = [pipe.tokenizer(text, template.format(label), return_tensors="np") for label in labels]
    return np.concatenate(
        [pipe.model(**{k: row[k] for k in ("input_ids", "attention_mask")})["logits"] for row in rows]
    )


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def test_one_label_holds(classify):
    result = classify(TEXTS[0], LABELS)
    assert list(result) == ["sequence", "labels", "scores"]
    assert result["sequence"] == TEXTS[0]
    scores = dict(zip(result["labels"], result["scores"], strict=True))
    wanted = softmax(expected(classify, TEXTS[0])[:, 2])
    np.testing.assert_allclose([scores[label] for label in LABELS], wanted, atol=1e-6)
    assert result["scores"] == sorted(result["scores"], reverse=True)
    assert abs(sum(result["scores"]) - 1) < 1e-9
    assert all(type(score) is float for score in result["scores"])
    assert json.loads(json.dumps(result)) == result


def test_several_labels_hold(classify):
    result = classify(TEXTS[0], LABELS, multi_label=True)
    scores = dict(zip(result["labels"], result["scores"], strict=True))
    wanted = softmax(expected(classify, TEXTS[0])[:, [0, 2]])[:, 1]
    np.testing.assert_allclose([scores[label] for label in LABELS], wanted, atol=1e-6)
    # Of one label there is nothing to share a probability with.
    alone = classify(TEXTS[0], ["dog"])
    assert alone == classify(TEXTS[0], ["dog"], multi_label=True)
    np.testing.assert_allclose(alone["scores"], scores["dog"], atol=1e-6)


def test_forms_of_labels(classify):
    wanted = classify(TEXTS[0], candidate_labels=LABELS)
    for labels in ("cat,dog,world", " cat , dog,,world ,", tuple(LABELS)):
        assert classify(TEXTS[0], labels) == wanted == classify(TEXTS[0], candidate_labels=labels)
    # A comma in a list is part of a label.
    assert classify(TEXTS[0], ["cat,dog"])["labels"] == ["cat,dog"]
    assert sorted(classify(TEXTS[0], ["cat", "dog", "cat"])["labels"]) == ["cat", "cat", "dog"]


def test_forms_of_inputs(classify):
    alone = [classify(text, LABELS) for text in TEXTS]
    assert classify(TEXTS[:1], LABELS) == alone[:1]
    assert classify(tuple(TEXTS), LABELS) == alone
    assert list(classify(iter(TEXTS), LABELS)) == alone
    assert list(classify(KeyDataset([{"t": text} for text in TEXTS], "t"), LABELS)) == alone
    assert classify([], LABELS) == []
    endless = classify(itertools.cycle(TEXTS), LABELS)
    assert list(itertools.islice(endless, 4)) == [*alone, alone[0]]


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5, 64])
def test_batches_change_nothing(classify, batch_size):
    alone = [classify(text, LABELS, batch_size=1) for text in TEXTS]
    assert classify(TEXTS, LABELS, batch_size=batch_size) == alone


def test_rows_of_all_texts_share_batches(classify):
    classify(TEXTS * 4, LABELS, batch_size=64)
    assert sum(len(ids) for ids in classify.model.calls) >= 36
    assert len(classify.model.calls) == 1
    classify.model.calls.clear()
    classify(TEXTS[0], LABELS)
    assert len(classify.model.calls) == 1


def test_defaults_of_the_constructor(tokenizer):
    given = {"candidate_labels": "cat,dog", "hypothesis_template": "a {}", "multi_label": True}
    pipe = ZeroShotClassificationPipeline(EntailmentModel(), tokenizer, **given)
    plain = ZeroShotClassificationPipeline(EntailmentModel(), tokenizer)
    assert pipe("the cat") == plain("the cat", **given)
    assert pipe("the cat", multi_label=False) == plain("the cat", **{**given, "multi_label": False})
    assert pipe("the cat", LABELS) == plain("the cat", **{**given, "candidate_labels": LABELS})
    assert pipe("the cat") == plain("the cat", **given)


@pytest.mark.parametrize(
    ("label2id", "entailment", "contradiction"),
    [
        ({"contradiction": 0, "neutral": 1, "entailment": 2}, 2, 0),
        ({"ENTAILMENT": 0, "NEUTRAL": 1, "CONTRADICTION": 2}, 0, -1),
        ({"no": 0, "Entails": 1, "entailment": 2}, 1, 0),
        ({"entailment_false": 2, "entailment": 1}, 2, 0),
        ({"LABEL_0": 0, "not_entailment": 1, "LABEL_2": 2}, -1, 0),
    ],
)
def test_entailment(tokenizer, caplog, label2id, entailment, contradiction):
    with caplog.at_level(logging.WARNING, "jaxpipe"):
        pipe = ZeroShotClassificationPipeline(EntailmentModel(label2id), tokenizer)
    assert pipe.entailment_id == entailment
    assert ("No label of" in caplog.text) == (entailment == -1)
    result = pipe(TEXTS[0], LABELS, multi_label=True)
    scores = dict(zip(result["labels"], result["scores"], strict=True))
    wanted = softmax(expected(pipe, TEXTS[0])[:, [contradiction, entailment]])[:, 1]
    np.testing.assert_allclose([scores[label] for label in LABELS], wanted, atol=1e-6)


def test_large_logits(tokenizer):
    """Exponentials of these overflow, which gives NaN without the greatest taken off first."""
    pipe = ZeroShotClassificationPipeline(EntailmentModel(scale=1e6), tokenizer)
    for multi_label in (False, True):
        scores = pipe(TEXTS[0], LABELS, multi_label=multi_label)["scores"]
        assert np.isfinite(scores).all()
        assert max(scores) == pytest.approx(1)


def test_long_texts_are_cut_and_hypotheses_are_not(tokenizer_of):
    pipe = ZeroShotClassificationPipeline(EntailmentModel(), tokenizer_of(model_max_length=24))
    pipe("a dog " * 100, ["cat", "dog"])
    ids = pipe.model.calls[0][0]
    hypothesis = pipe.tokenizer("This example is cat.")["input_ids"]
    assert len(ids[:24]) == 24
    assert ids[24 - len(hypothesis) : 24].tolist() == hypothesis
    # No room at all for the text: the pair stays whole, and the other label's is cut.
    pipe.model.calls.clear()
    result = pipe("a dog " * 20, ["hello world again " * 8, "dog"], batch_size=1)
    assert len(result["labels"]) == 2
    lengths = sorted(int((ids != 2).sum()) for ids in pipe.model.calls)
    assert lengths[0] == 24 < lengths[1]


def test_positions(tokenizer):
    pipe = ZeroShotClassificationPipeline(EntailmentModel(limit=20), tokenizer)
    with pytest.raises(ValueError, match="learned positions for 20; shorten the text") as caught:
        pipe(["a", "a dog ate the rat " * 9], LABELS)
    assert any("item 1" in note for note in caught.value.__notes__)


def test_tokenizers_without_pad_token(classify, tokenizer_of):
    pipe = ZeroShotClassificationPipeline(EntailmentModel(), tokenizer_of(pad_token=None))
    assert pipe(TEXTS, LABELS, batch_size=8) == classify(TEXTS, LABELS)
    assert pipe.tokenizer.pad_token is None


def test_nan(tokenizer):
    broken = tokenizer("hello")["input_ids"][0]
    pipe = ZeroShotClassificationPipeline(EntailmentModel(broken=broken), tokenizer)
    with pytest.raises(ValueError, match="gave nan as a score of a label") as caught:
        pipe(TEXTS, LABELS)
    assert any("item 2" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        (None, TypeError, "inputs is None; expected a text"),
        ("", ValueError, "inputs is an empty text"),
        (["a", ""], ValueError, r"inputs\[1\] is an empty text"),
        (["a", 3], TypeError, r"inputs\[1\] is int 3"),
        (3, TypeError, "inputs is int 3"),
        ([["a", "b"]], TypeError, r"inputs\[0\] is list"),
        ({"text": "a"}, TypeError, "KeyDataset"),
    ],
)
def test_wrong_inputs(classify, inputs, error, text):
    with pytest.raises(error, match=text):
        classify(inputs, LABELS)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"candidate_labels": []}, ValueError, "names no label"),
        ({"candidate_labels": " , "}, ValueError, "names no label"),
        ({"candidate_labels": ["a", " "]}, ValueError, r"candidate_labels\[1\] is empty"),
        ({"candidate_labels": ["a", 3]}, TypeError, r"candidate_labels\[1\] is int 3"),
        ({"candidate_labels": ["a", None]}, TypeError, r"candidate_labels\[1\] is None"),
        ({"candidate_labels": 3}, TypeError, "list of labels"),
        ({"candidate_labels": {"a": 1}}, TypeError, "list of labels"),
        ({"hypothesis_template": "none"}, ValueError, "has no {} where the label goes"),
        ({"hypothesis_template": "{{}}"}, ValueError, "has no {}"),
        ({"hypothesis_template": "{label}"}, ValueError, "cannot be filled in"),
        ({"hypothesis_template": "{} {}"}, ValueError, "cannot be filled in"),
        ({"hypothesis_template": "{"}, ValueError, "cannot be filled in"),
        ({"hypothesis_template": None}, TypeError, "hypothesis_template= takes a str"),
        ({"multi_label": "yes"}, ValueError, "multi_label= takes True or False"),
        ({"multi_class": True}, TypeError, "'multi_class' is no parameter .*Did you mean 'multi_label'"),
        ({"labels": ["a"]}, TypeError, "'labels' is no parameter"),
        ({"truncation": True}, TypeError, "'truncation' is no parameter"),
    ],
)
def test_wrong_arguments(classify, tokenizer, arguments, error, text):
    with pytest.raises(error, match=text):
        classify("a", **{"candidate_labels": LABELS, **arguments})
    with pytest.raises(error, match=text):
        ZeroShotClassificationPipeline(EntailmentModel(), tokenizer, **arguments)


def test_wrong_calls(classify):
    for arguments in ({}, {"candidate_labels": None}):
        with pytest.raises(TypeError, match="candidate_labels"):
            classify("a", **arguments)
    with pytest.raises(ValueError, match="found 2 beside the texts"):
        classify("a", "b", "c")
    with pytest.raises(ValueError, match="each once"):
        classify("a", "b", candidate_labels="c")


def test_wrong_models(tokenizer):
    with pytest.raises(ValueError, match="tokenizer="):
        ZeroShotClassificationPipeline(EntailmentModel())
    pipe = ZeroShotClassificationPipeline(EntailmentModel({"entailment": 7}), tokenizer)
    with pytest.raises(ValueError, match="gives entailment 7"):
        pipe("a", LABELS)
