"""Token classification: entities from hand-made scores, nesting, long texts, words, and bad input."""

import itertools
import json
import logging
import types

import jax
import numpy as np
import pytest

from jaxpipe.common.logging import warn_once
from jaxpipe.common.outputs import BaseModelOutput, LogitsOutput
from jaxpipe.pipelines import KeyDataset, TokenClassificationPipeline, pipeline
from jaxpipe.pipelines.entities import AggregationStrategy, Token, aggregate, group, merge_overlapping, tag_of
from tests.pipelines.frozen.encoders import write_checkpoint

TEXT = "Sarah lives in New York, 9 microsoft."
TEXTS = [TEXT, "the dog", "john works for Hugging Face in Paris and in London"]
LONG = " ".join(f"sarah lives in york and john in paris {number}" for number in range(12))
LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "I-LOC"}


class LabelModel:
    """Scores the labels of a token by its id alone; ``wrong`` is an id whose scores are NaN."""

    name_or_path = ""

    def __init__(self, wrong=None, labels=LABELS, positions=None):
        self.config = types.SimpleNamespace(id2label=labels, longest_input=lambda: positions)
        self.wrong, self.count = wrong, len(labels)
        self.dtype = np.dtype(np.float32)
        self.mesh = None
        self.shapes = []

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None):
        self.shapes.append(input_ids.shape)
        logits = np.stack([(input_ids * (7 + 4 * label)) % 13 for label in range(self.count)], axis=2) / 3.0
        if self.wrong is not None:
            logits[input_ids == self.wrong] = np.nan
        return LogitsOutput(jax.numpy.asarray(logits, np.float32))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("ner") / "bert", "bert", "ner", seed=3)


@pytest.fixture(scope="module")
def wordpiece(checkpoint):
    from jaxpipe.tokenization import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture
def tag(wordpiece):
    return TokenClassificationPipeline(LabelModel(), wordpiece)


@pytest.fixture
def logged(caplog):
    warn_once.cache_clear()
    logger = logging.getLogger("jaxpipe")
    propagate, logger.propagate = logger.propagate, True
    with caplog.at_level("WARNING", logger="jaxpipe"):
        yield caplog
    logger.propagate = propagate


def token(word, scores, is_subword=False, start=0):
    return Token(word, np.array(scores), start, start + len(word), 0, is_subword)


def company(first, second, third, fourth):
    """micro|soft com|pany, as two words."""
    return [
        token("micro", first), token("##soft", second, True, 5), token("com", third, start=10),
        token("##pany", fourth, True, 13),
    ]  # fmt: skip


def joined(tokens):
    return "".join(tokens).replace("##", "")


@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [
        ("none", [("B-PER", 0.6, "micro"), ("I-LOC", 0.9, "##soft"), ("I-LOC", 0.5, "com"), ("I-PER", 0.7, "##pany")]),
        ("simple", [("PER", 0.6, "micro"), ("LOC", 0.7, "softcom"), ("PER", 0.7, "pany")]),
        ("first", [("PER", 0.6, "microsoft"), ("LOC", 0.5, "company")]),
        ("average", [("LOC", 0.575, "microsoft"), ("PER", 0.55, "company")]),
        ("max", [("LOC", 0.9, "microsoft"), ("PER", 0.7, "company")]),
    ],
)
def test_strategies_on_hand_made_scores(strategy, wanted):
    tokens = company([0.1, 0.6, 0.05, 0.25], [0.05, 0.03, 0.02, 0.9], [0.1, 0, 0.4, 0.5], [0.1, 0, 0.7, 0.2])
    records = aggregate(tokens, AggregationStrategy(strategy), LABELS, joined)
    label = "entity" if strategy == "none" else "entity_group"
    assert [(record[label], pytest.approx(record["score"]), record["word"]) for record in records] == wanted
    keys = [label, "score", "index", "word", "start", "end"] if strategy == "none" else None
    assert all(list(record) == (keys or [label, "score", "word", "start", "end"]) for record in records)
    assert {type(record["score"]) for record in records} == {float}


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (["B-PER", "I-PER", "I-PER"], [("PER", 3)]),
        (["B-PER", "B-PER", "I-PER"], [("PER", 1), ("PER", 2)]),
        (["I-PER", "I-LOC", "I-LOC", "O", "O"], [("PER", 1), ("LOC", 2), ("O", 2)]),
        (["I-PER", "PER", "B-PER"], [("PER", 2), ("PER", 1)]),
        (["MISC", "MISC", "I-MISC-X"], [("MISC", 2), ("MISC-X", 1)]),
        ([], []),
    ],
)
def test_groups(labels, wanted):
    records = [{"entity": label, "score": 0.5, "word": "x", "start": 0, "end": 1} for label in labels]
    assert [(made["entity_group"], len(made["word"])) for made in group(records, "".join)] == wanted


def test_tags():
    assert [tag_of(label) for label in ("B-PER", "I-PER", "PER", "X-PER")] == [
        (True, "PER"), (False, "PER"), (False, "PER"), (False, "X-PER")
    ]  # fmt: skip


def test_of_overlapping_entities_the_longest_is_kept():
    def record(start, end, score=0.5):
        return {"entity_group": "PER", "score": score, "start": start, "end": end}

    assert merge_overlapping([]) == []
    assert merge_overlapping([record(8, 9), record(0, 4), record(2, 9)]) == [record(2, 9)]
    assert merge_overlapping([record(0, 4, 0.2), record(0, 4, 0.7)]) == [record(0, 4, 0.7)]
    assert merge_overlapping([record(0, 4), record(4, 6)]) == [record(0, 4), record(4, 6)]


@pytest.mark.parametrize("strategy", [strategy.value for strategy in AggregationStrategy])
def test_characters_slice_the_text(tag, strategy):
    records = tag(TEXT, aggregation_strategy=strategy, ignore_labels=[])
    for record in records:
        # Special characters of the tokens aside, the words are the text, in lower case.
        written = TEXT[record["start"] : record["end"]].lower()
        assert record["word"].removeprefix("##").replace(" ", "") == written.replace(" ", "")
    assert "".join(TEXT[record["start"] : record["end"]] for record in records).replace(" ", "") == TEXT.replace(
        " ", ""
    )
    assert json.dumps(records)


def test_labels_to_ignore(tag):
    every = tag(TEXT, ignore_labels=[])
    assert {"O", "I-LOC"} <= {record["entity"] for record in every}
    assert tag(TEXT) == [record for record in every if record["entity"] != "O"]
    assert tag(TEXT, ignore_labels=["I-LOC"]) == [record for record in every if record["entity"] != "I-LOC"]
    groups = tag(TEXT, ignore_labels=("LOC",), aggregation_strategy="simple")
    assert "LOC" not in {record["entity_group"] for record in groups}


def test_labels_to_ignore_that_the_model_lacks(tag, logged):
    tag("a", ignore_labels=["O", "PRE"])
    assert "'PRE', which is no label of the model: B-PER, I-LOC, I-PER, LOC, O, PER" in logged.text


def test_nesting(tag):
    alone = [tag(text) for text in TEXTS]
    assert tag(TEXTS) == tag(tuple(TEXTS)) == alone
    assert tag(TEXTS[:1]) == alone[:1]
    assert tag([]) == []
    assert list(tag(iter(TEXTS))) == alone
    assert list(tag(KeyDataset([{"text": text} for text in TEXTS], "text"))) == alone
    assert list(itertools.islice(tag(itertools.cycle(TEXTS)), 2)) == alone[:2]
    assert tag("") == tag("  ") == []


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_change_nothing(tag, batch_size):
    given = {"aggregation_strategy": "average", "stride": 4}
    alone = [tag(text, **given) for text in [*TEXTS, LONG]]
    assert tag([*TEXTS, LONG], batch_size=batch_size, **given) == alone
    assert list(tag(iter([*TEXTS, LONG]), batch_size=batch_size, **given)) == alone


def test_words(tag):
    words = ["Sarah", "lives", "in", "New-York"]
    (records,) = tag(words, is_split_into_words=True, ignore_labels=[])
    text = " ".join(words)
    assert [text[record["start"] : record["end"]] for record in records] == [
        "Sarah", "lives", "in", "New", "-", "York"
    ]  # fmt: skip
    assert records == tag(text, ignore_labels=[])
    assert tag([words, ["the", "dog"]], is_split_into_words=True, ignore_labels=[])[0] == records
    assert list(tag(iter([words]), is_split_into_words=True, ignore_labels=[])) == [records]
    assert tag([[]], is_split_into_words=True) == [[]]
    (apart,) = tag(words, is_split_into_words=True, delimiter="--", ignore_labels=[])
    assert [record["start"] for record in apart] == [0, 7, 14, 18, 21, 22]


def test_words_by_the_constructor(wordpiece):
    tag = TokenClassificationPipeline(LabelModel(), wordpiece, is_split_into_words=True, delimiter="")
    (records,) = tag(["sarah", "lives"], ignore_labels=[])
    assert [record["end"] for record in records] == [5, 10]
    assert tag("sarah lives", is_split_into_words=False, ignore_labels=[])[-1]["end"] == 11


def test_strides_read_all_of_a_text(tag):
    given = {"aggregation_strategy": "first", "ignore_labels": []}
    tag.tokenizer.model_max_length = 500
    whole = tag(LONG, **given)
    for length, stride in [(8, 2), (16, 0), (16, 13), (40, 20)]:
        tag.tokenizer.model_max_length = length
        records = tag(LONG, stride=stride, **given)
        covered = {place for record in records for place in range(record["start"], record["end"])}
        left_out = {place for record in whole for place in range(record["start"], record["end"])} - covered
        assert {LONG[place] for place in left_out} <= {" "}
        # Entities of several words may be cut where pieces meet; the others are what the text in one piece gives.
        places = {(record["start"], record["end"]) for record in whole}
        same = [record for record in records if (record["start"], record["end"]) in places]
        assert len(same) > len(records) / 2
    tag.tokenizer.model_max_length = 48


def test_pieces_share_batches(tag):
    tag.tokenizer.model_max_length = 16
    tag(LONG, stride=4, aggregation_strategy="simple")
    tag.tokenizer.model_max_length = 48
    assert len(tag.model.shapes) == 1 and tag.model.shapes[0][0] > 6


def test_texts_are_cut_and_the_log_says_so(tag, logged):
    records = tag(LONG, ignore_labels=[])
    assert len(records) == 46 and records[-1]["end"] < len(LONG)
    assert "cut to the tokenizer's model_max_length of 48 tokens; pass stride=" in logged.text


def test_learned_positions(wordpiece, monkeypatch):
    tag = TokenClassificationPipeline(LabelModel(positions=20), wordpiece)
    with pytest.raises(
        ValueError, match=r"48 tokens, but the model has learned positions for 20; set tokenizer\.model"
    ):
        tag(LONG)
    assert tag(LONG, stride=5, aggregation_strategy="simple")[-1]["end"] > len(LONG) - 20
    monkeypatch.setattr(wordpiece, "model_max_length", 10**30)
    with pytest.raises(ValueError, match="learned positions for 20") as caught:
        tag(["a", LONG])
    assert caught.value.__notes__ == ["Raised for item 1 of the inputs."]
    free = TokenClassificationPipeline(LabelModel(), wordpiece)
    assert free(LONG, ignore_labels=[])[-1]["end"] == len(LONG)


def test_tokenizers_that_do_not_mark_words(tokenizer, logged):
    tag = TokenClassificationPipeline(LabelModel(), tokenizer)
    records = tag("hello catdog again", aggregation_strategy="first", ignore_labels=[])
    assert sum(record["end"] - record["start"] for record in records) >= len("hellocatdogagain")
    assert "does not mark the beginning of words" in logged.text
    assert tag("hello", ignore_labels=[])[0]["word"] == "hello"
    with pytest.raises(ValueError, match="The text '' has no tokens") as caught:
        tag(["a", ""])
    assert caught.value.__notes__ == ["Raised for item 1 of the inputs."]


def test_unknown_tokens_are_the_text(tag):
    records = tag("Sarah 1987 ½", ignore_labels=[])
    assert [record["word"] for record in records] == ["sarah", "1987", "½"]


def test_offset_mapping(tag):
    ours = [(0, 0), (1, 2), (3, 4), (0, 0)]
    given = {"ignore_labels": []}
    for mapping in (ours, np.array(ours), [list(pair) for pair in ours]):
        assert [record["end"] for record in tag("the dog", offset_mapping=mapping, **given)] == [2, 4]
    both = tag(["the dog", "the"], offset_mapping=[ours, [(0, 0), (5, 9), (0, 0)]], **given)
    assert [[record["end"] for record in records] for records in both] == [[2, 4], [9]]
    (apart,) = tag(["the", "dog"], offset_mapping=ours, is_split_into_words=True, **given)
    assert [record["end"] for record in apart] == [2, 8]


@pytest.mark.parametrize(
    ("inputs", "arguments", "error", "text"),
    [
        (None, {}, TypeError, "inputs is None; expected a text"),
        (["a", None], {}, TypeError, r"inputs\[1\] is None"),
        (3, {}, TypeError, "inputs is int 3"),
        ({"text": "a"}, {}, TypeError, "KeyDataset"),
        ([["a", "b"]], {}, TypeError, "is_split_into_words=False it must be a text"),
        (["a", ["b", 3]], {}, TypeError, r"inputs\[1\], word 1, is int 3"),
        (["a", None], {"is_split_into_words": True}, TypeError, r"inputs\[0\], word 1, is None"),
        ("a b", {"is_split_into_words": True}, TypeError, "is_split_into_words=True it must be a list of words"),
        ("a", {"aggregation_strategy": "frist"}, KeyError, "none, simple, first, average, max. Did you mean 'first'"),
        ("a", {"aggregation_strategy": 3}, KeyError, "aggregation_strategy=3"),
        ("a", {"agregation_strategy": "max"}, TypeError, "Did you mean 'aggregation_strategy'"),
        ("a", {"grouped_entities": True}, TypeError, "Pass aggregation_strategy='simple'"),
        ("a", {"ignore_labels": "O"}, TypeError, "ignore_labels= takes a list"),
        ("a", {"is_split_into_words": "yes"}, ValueError, "is_split_into_words= takes True or False"),
        ("a", {"delimiter": 3}, ValueError, "delimiter= takes a text"),
        ("a", {"stride": -1}, ValueError, "stride= takes a whole number of at least 0"),
        ("a", {"stride": True}, ValueError, "stride="),
        ("a", {"stride": 46, "aggregation_strategy": "max"}, ValueError, "stride=46 must be less than the 46 tokens"),
        ("a", {"stride": 3}, ValueError, "give aggregation_strategy='simple'"),
        ("a", {"offset_mapping": [(0, 0), (0, 1)]}, ValueError, "has 2 pairs for a text of 3 tokens"),
        ("a", {"offset_mapping": [(0, 0, 1)]}, ValueError, "no list of pairs"),
        ("a", {"offset_mapping": [[(0, 0), (0.5, 1), (0, 0)]]}, ValueError, "no list of pairs .* for item 0"),
        (["a", "b"], {"offset_mapping": [[(0, 0)]]}, ValueError, "1 entries for 2 texts"),
        (iter("ab"), {"offset_mapping": [[(0, 0)]]}, ValueError, "not with a data set or generator"),
    ],
)
def test_wrong_calls(tag, inputs, arguments, error, text):
    with pytest.raises(error, match=text):
        result = tag(inputs, **arguments)
        list(result)


def test_wrong_items_of_an_iterator_are_named(tag):
    results = tag(iter(["a", "the dog", 3]))
    assert [next(results), next(results)] == [tag("a"), tag("the dog")]
    with pytest.raises(TypeError, match=r"inputs\[2\] is int 3"):
        next(results)


def test_wrong_constructors(wordpiece, model):
    with pytest.raises(ValueError, match="tokenizer="):
        TokenClassificationPipeline(LabelModel())
    with pytest.raises(ValueError, match="give it to the call"):
        TokenClassificationPipeline(LabelModel(), wordpiece, offset_mapping=[(0, 0)])
    with pytest.raises(TypeError, match="AutoModelForTokenClassification"):
        TokenClassificationPipeline(model, wordpiece)("a")
    with pytest.raises(ValueError, match="scores 4 labels, but id2label of its config names 2"):
        wrong = LabelModel()
        wrong.config.id2label = {0: "O", 1: "B"}
        TokenClassificationPipeline(wrong, wordpiece)("a")


def test_a_stride_of_the_constructor(wordpiece):
    tag = TokenClassificationPipeline(LabelModel(), wordpiece, stride=4)
    with pytest.raises(ValueError, match="give aggregation_strategy"):
        tag("a")
    assert tag(LONG, aggregation_strategy="max")[-1]["end"] > 100


def test_scores_that_are_not_finite(wordpiece):
    tag = TokenClassificationPipeline(LabelModel(wrong=wordpiece.convert_tokens_to_ids("dog")), wordpiece)
    with pytest.raises(ValueError, match="nan as a score of a label") as caught:
        tag(["the cat", "the cat", "the dog"], batch_size=2)
    assert "Raised for item 2 of the inputs." in caught.value.__notes__


def test_a_real_model_in_batches_and_without_compilations(checkpoint, tmp_path):
    tag = pipeline("ner", model=checkpoint, device_map="cpu", aggregation_strategy="average", ignore_labels=[])
    assert tag.task == "ner" and isinstance(tag, TokenClassificationPipeline)
    alone = [tag(text, batch_size=1) for text in TEXTS]
    for together in (tag(TEXTS, batch_size=2), tag(TEXTS, batch_size=4)):
        for got, wanted in zip(together, alone, strict=True):
            assert [{**record, "score": None} for record in got] == [{**record, "score": None} for record in wanted]
            scores = [record["score"] for record in wanted]
            assert [record["score"] for record in got] == pytest.approx(scores, abs=1e-5)
    compiled = []

    def note(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        tag(["john", "the cat sat on the mat", *TEXTS[1:]], batch_size=4)
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    tag.save_pretrained(tmp_path)
    assert pipeline(model=tmp_path).task == "token-classification"


def test_other_outputs_than_logits_are_refused(wordpiece):
    class Bare(LabelModel):
        def __call__(self, input_ids, **_):
            return BaseModelOutput(jax.numpy.zeros((*input_ids.shape, 3)))

    with pytest.raises(TypeError, match="Bare gives no logits"):
        TokenClassificationPipeline(Bare(), wordpiece)("a")
