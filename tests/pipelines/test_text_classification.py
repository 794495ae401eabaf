"""Text classification: inputs, nesting, functions, tokenizer arguments and errors, on a model that is arithmetic."""

import itertools
import json
import types

import numpy as np
import pytest

from jaxpipe.common.outputs import LogitsOutput
from jaxpipe.pipelines import KeyDataset, KeyPairDataset, TextClassificationPipeline, check_task, pipeline

TEXTS = ["the cat", "a dog ate the rat and sat", "hello", "hello world again a dog"]
PAIR = {"text": "the cat", "text_pair": "a dog"}


class LabelModel:
    """Gives logits that depend on a row's own unmasked tokens alone."""

    name_or_path = ""

    def __init__(self, labels=3, broken=None, limit=None, **config):
        names = {index: f"label {index}" for index in range(labels)}
        self.config = types.SimpleNamespace(id2label=names, longest_input=lambda: limit, **config)
        self.labels, self.broken = labels, broken
        self.dtype, self.mesh = np.dtype(np.float32), None
        self.shapes = []

    def __call__(self, input_ids, attention_mask, token_type_ids=None):
        self.shapes.append(input_ids.shape)
        total = (input_ids * attention_mask).sum(axis=1)[:, None]
        if token_type_ids is not None:
            total = total + 7 * token_type_ids.sum(axis=1)[:, None]
        logits = np.sin(total * (1.0 + np.arange(self.labels))) * 3
        if self.broken is not None:
            logits[input_ids[:, 0] == self.broken] = np.nan
        return LogitsOutput(np.asarray(logits, np.float32))


@pytest.fixture
def classifier_of(tokenizer_of):
    def make(model=None, tokenizer=None, **parameters):
        return TextClassificationPipeline(model or LabelModel(), tokenizer or tokenizer_of(), **parameters)

    return make


@pytest.fixture
def classifier(classifier_of):
    return classifier_of()


def logits_of(classifier, text):
    ids = classifier.tokenizer(text, return_tensors="np")["input_ids"]
    return classifier.model(ids, np.ones_like(ids)).logits[0].astype(np.float64)


# ---- nesting


def test_one_text(classifier):
    logits = logits_of(classifier, "the cat")
    best = int(logits.argmax())
    chance = np.exp(logits[best]) / np.exp(logits).sum()
    assert classifier("the cat") == [{"label": f"label {best}", "score": pytest.approx(chance)}]
    assert json.dumps(classifier("the cat", top_k=None))


def test_forms(classifier):
    one = [classifier(text)[0] for text in TEXTS]
    assert classifier(TEXTS) == one
    assert classifier(tuple(TEXTS)) == one
    assert classifier(TEXTS[:1]) == one[:1]
    assert classifier([]) == []
    for lazy in (iter(TEXTS), KeyDataset([{"t": text} for text in TEXTS], "t")):
        results = classifier(lazy)
        assert not isinstance(results, list)
        assert list(results) == one
    assert list(itertools.islice(classifier(itertools.cycle(TEXTS)), 6)) == [*one, *one[:2]]


def test_pairs(classifier):
    bare = classifier(PAIR)
    assert set(bare) == {"label", "score"}
    assert bare != classifier("the cat")[0]
    assert classifier([PAIR]) == [bare]
    assert classifier([[["the cat", "a dog"]]]) == [bare]
    assert classifier([[["the cat", "a dog"]], [("the cat", "a dog")]]) == [bare, bare]
    assert classifier([PAIR, "the cat"]) == [bare, classifier("the cat")[0]]
    assert classifier({"text": "the cat"}) == classifier("the cat")[0]
    rows = [{"a": "the cat", "b": "a dog"}, {"a": "hello", "b": "the rat"}]
    assert list(classifier(KeyPairDataset(rows, "a", "b"))) == [
        bare,
        classifier({"text": "hello", "text_pair": "the rat"}),
    ]


def test_top_k(classifier):
    every = classifier("the cat", top_k=None)
    assert len(every) == 3
    assert [record["score"] for record in every] == sorted((record["score"] for record in every), reverse=True)
    assert classifier("the cat", top_k=1) == every[:1] == classifier("the cat")
    assert classifier("the cat", top_k=2) == every[:2]
    assert classifier("the cat", top_k=np.int64(2)) == every[:2]
    assert classifier("the cat", top_k=9) == every
    assert classifier(["the cat"], top_k=2) == [every[:2]]
    assert classifier(PAIR, top_k=1) == [classifier(PAIR)]
    assert list(classifier(iter(["the cat"]), top_k=1)) == [every[:1]]
    assert classifier("the cat", top_k="") == every[:1]


@pytest.mark.parametrize("top_k", [1, 2, None])
def test_top_k_of_the_constructor_is_that_of_a_call(classifier_of, top_k):
    fixed, plain = classifier_of(top_k=top_k), classifier_of()
    assert fixed("the cat") == plain("the cat", top_k=top_k)
    assert fixed(TEXTS) == plain(TEXTS, top_k=top_k)
    assert fixed(PAIR) == plain(PAIR, top_k=top_k)
    assert fixed("the cat", top_k=3) == plain("the cat", top_k=3)


# ---- functions


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def as_they_are(logits):
    return logits


@pytest.mark.parametrize(
    ("config", "default"),
    [
        ({}, softmax),
        ({"problem_type": "single_label_classification"}, softmax),
        ({"problem_type": "multi_label_classification"}, sigmoid),
        ({"problem_type": "regression"}, as_they_are),
        ({"labels": 1}, sigmoid),
        ({"labels": 1, "problem_type": "single_label_classification"}, sigmoid),
        ({"labels": 1, "problem_type": "regression"}, as_they_are),
    ],
)
def test_functions(classifier_of, config, default):
    classifier = classifier_of(LabelModel(**config))
    logits = logits_of(classifier, "the cat")
    functions = {None: default, "default": default, "sigmoid": sigmoid, "SOFTMAX": softmax, "none": as_they_are}
    for name, function in functions.items():
        scores = {
            record["label"]: record["score"] for record in classifier("the cat", top_k=None, function_to_apply=name)
        }
        wanted = {f"label {index}": pytest.approx(value) for index, value in enumerate(function(logits))}
        assert scores == wanted, name


def test_default_function_undoes_the_constructors(classifier_of):
    fixed, plain = classifier_of(function_to_apply="none"), classifier_of()
    assert fixed("the cat") == plain("the cat", function_to_apply="none") != plain("the cat")
    assert fixed("the cat", function_to_apply=None) == fixed("the cat")
    assert fixed("the cat", function_to_apply="default") == plain("the cat")


def test_large_logits_do_not_overflow(classifier_of):
    class Large(LabelModel):
        def __call__(self, *args, **kwargs):
            return LogitsOutput(np.sign(super().__call__(*args, **kwargs).logits) * np.float32(1e30))

    classifier = classifier_of(Large())
    for function in ("softmax", "sigmoid"):
        assert all(0 <= r["score"] <= 1 for r in classifier("the cat", top_k=None, function_to_apply=function))


def test_equal_scores_keep_the_order_of_the_labels(classifier_of):
    class Equal(LabelModel):
        def __call__(self, *args, **kwargs):
            return LogitsOutput(np.zeros_like(super().__call__(*args, **kwargs).logits))

    labels = [record["label"] for record in classifier_of(Equal())("the cat", top_k=None)]
    assert labels == ["label 0", "label 1", "label 2"]


# ---- batches and the tokenizer


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batches_change_nothing(classifier, batch_size):
    alone = [classifier(text, top_k=None) for text in TEXTS]
    assert classifier(TEXTS, top_k=None, batch_size=batch_size) == alone


@pytest.mark.parametrize("arguments", [{}, {"padding": True}, {"truncation": True, "max_length": 2}])
def test_items_are_the_same_together_and_alone(classifier, arguments):
    items = [*TEXTS, PAIR, {"text": "hello"}, {"text": "hello", "text_pair": ""}, {"text": "", "text_pair": "a dog"}]
    together = classifier.preprocess_batch(items, **arguments)
    for got, item in zip(together, items, strict=True):
        wanted = classifier.preprocess(item, **arguments)
        assert {name: array.tolist() for name, array in got.items()} == {
            name: array.tolist() for name, array in wanted.items()
        }


def test_tokenizer_arguments(classifier_of):
    classifier = classifier_of()
    assert classifier("a dog ate", truncation=True, max_length=1) == classifier(classifier.tokenizer.decode(
        classifier.tokenizer("a dog ate")["input_ids"][:1]
    ))  # fmt: skip
    assert classifier_of(max_length=1, truncation=True)("a dog ate") == classifier(
        "a dog ate", truncation=True, max_length=1
    )
    classifier.model.shapes.clear()
    padded = classifier("a dog ate", padding="max_length", max_length=20)
    assert padded == classifier("a dog ate")
    assert classifier.model.shapes[0][1] >= 20
    words = {"text": ["hello", "hello"]}
    assert classifier(words, is_split_into_words=True) == classifier("hellohello")[0]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"truncaton": True}, TypeError, "'truncaton' is neither .* Did you mean 'truncation'"),
        ({"topk": 2}, TypeError, "'topk' is neither .* Did you mean 'top_k'"),
        ({"return_all_scores": True}, TypeError, "Pass top_k=None instead"),
        ({"return_tensors": "np"}, ValueError, "return_tensors= cannot be given"),
        ({"return_overflowing_tokens": True}, ValueError, "a text is one row"),
        ({"text_pair": "a"}, ValueError, "pair of texts is an input"),
        ({"function_to_apply": "sigmoyd"}, ValueError, "default, sigmoid, softmax, none.* Did you mean 'sigmoid'"),
        ({"function_to_apply": 3}, ValueError, "function_to_apply=3 is unknown"),
        ({"top_k": 0}, ValueError, "at least 1, not int 0"),
        ({"top_k": True}, ValueError, "at least 1, not bool True"),
        ({"top_k": "3"}, ValueError, "at least 1, not str '3'"),
    ],
)
def test_wrong_arguments(classifier_of, arguments, error, text):
    with pytest.raises(error, match=text):
        classifier_of()("a", **arguments)
    with pytest.raises(error, match=text):
        classifier_of(**arguments)


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        (None, TypeError, "inputs is None; expected a text"),
        (["a", 3], TypeError, r"inputs\[1\] is int 3"),
        ([["a", "b"]], ValueError, r"inputs\[0\] is list .*'text_pair'"),
        ([["a"]], ValueError, r"inputs\[0\] is list"),
        ([[["a", "b", "c"]]], ValueError, r"inputs\[0\] is list"),
        ({"text_pair": "a"}, ValueError, "inputs lacks 'text'"),
        ({"text": "a", "label": 1}, ValueError, "inputs has the key 'label'"),
        ({"text": "a", "text_par": "b"}, ValueError, "Did you mean 'text_pair'"),
        (["a", {"text": None}], TypeError, r"inputs\[1\]\['text'\] is None"),
        ([{"text": "a", "text_pair": 4}], TypeError, r"\['text_pair'\] is int 4"),
        ({"text": ["a", "b"]}, TypeError, "is_split_into_words"),
        ("", ValueError, "has no tokens"),
    ],
)
def test_wrong_inputs(classifier, inputs, error, text):
    with pytest.raises(error, match=text):
        classifier(inputs)


def test_long_texts_name_their_item(classifier_of, tokenizer_of):
    classifier = classifier_of(LabelModel(limit=5), tokenizer_of(model_max_length=5))
    texts = ["the cat", "a dog ate the rat and sat on the mat"]
    with pytest.raises(ValueError, match=r"positions for 5\. Cut it with truncation=True") as caught:
        classifier(texts)
    assert "Raised for item 1 of the inputs." in caught.value.__notes__
    assert len(classifier(texts, truncation=True)) == 2


def test_nan_names_its_item(classifier_of, tokenizer):
    first = tokenizer(TEXTS[2])["input_ids"][0]
    classifier = classifier_of(LabelModel(broken=first))
    assert classifier(TEXTS[:2])
    for function in ("softmax", "sigmoid", "none"):
        with pytest.raises(ValueError, match="gave nan as a score of a label") as caught:
            classifier(TEXTS, function_to_apply=function)
        assert caught.value.__notes__ == ["Raised for item 2 of the inputs."]


def test_other_models(classifier_of, model):
    model.config.id2label = {0: "a"}
    with pytest.raises(TypeError, match=r"gives no logits.*AutoModelForSequenceClassification"):
        classifier_of(model)("the cat")
    wrong = LabelModel()
    wrong.config.id2label = {0: "a", 1: "b"}
    with pytest.raises(ValueError, match=r"scores 3 labels, but id2label .* names 2"):
        classifier_of(wrong)("the cat")
    with pytest.raises(ValueError, match="tokenizer="):
        TextClassificationPipeline(LabelModel())


def test_the_task(tokenizer):
    assert check_task("sentiment-analysis")[1]["impl"] is TextClassificationPipeline
    made = pipeline("sentiment-analysis", model=LabelModel(), tokenizer=tokenizer)
    assert made.task == "sentiment-analysis"
    assert made.predict("the cat") == made.transform("the cat") == made("the cat")
