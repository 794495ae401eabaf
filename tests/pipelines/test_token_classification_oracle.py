"""Token classification beside Transformers' own, on tiny checkpoints: structure, keys, texts and places equal."""

import numpy as np
import pytest

from jaxpipe.pipelines import KeyDataset, pipeline
from jaxpipe.pipelines.entities import AggregationStrategy, Token, aggregate, merge_overlapping
from tests.pipelines import same
from tests.pipelines.frozen.encoders import NER_LABELS, write_checkpoint

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

FAMILIES = ("bert", "roberta")
STRATEGIES = tuple(strategy.value for strategy in AggregationStrategy)
TEXTS = [
    "Sarah lives in New York, 9 microsoft.",
    "john",
    "Zoë's dog ate  the cat: 1987!",
    "",
    # More tokens than the tokenizer's limit, so it is cut.
    "My name is Wolfgang and I live in Berlin. Sarah was born in York and works for Hugging Face in PARIS. The river "
    "flows through Paris and the city of London; the dog ate the cat, who sat on the mat. Paris is the capital.",
]
WORDS = [["sarah", "lives", "in", "New-York"], ["microsoft"], ["", "9", "Zoë"]]
LONG = TEXTS[4]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def pair(family, tmp_path_factory):
    """(Transformers' pipeline, ours)."""
    import transformers as theirs

    path = write_checkpoint(tmp_path_factory.mktemp("ner") / family, family, "ner", seed=3)
    return theirs.pipeline("ner", model=str(path), device="cpu"), pipeline("ner", model=path, device_map="cpu")


@pytest.fixture
def short(pair):
    """The pair with tokenizers of 16 tokens."""
    before = pair[0].tokenizer.model_max_length
    for pipe in pair:
        pipe.tokenizer.model_max_length = 16
    yield pair
    for pipe in pair:
        pipe.tokenizer.model_max_length = before


def python(result):
    """Their result with scores that are Python's."""
    if isinstance(result, dict):
        return {key: python(value) for key, value in result.items()}
    if isinstance(result, list):
        return [python(value) for value in result]
    return float(result) if isinstance(result, np.floating) else result


def assert_same(got, wanted):
    same.assert_same(got, python(wanted))


@pytest.mark.parametrize("ignore_labels", [None, [], ["O", "LOC"], ["B-LOC", "I-PER", "MISC"]], ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies(pair, strategy, ignore_labels):
    theirs, ours = pair
    given = {} if ignore_labels is None else {"ignore_labels": ignore_labels}
    got = ours(TEXTS, aggregation_strategy=strategy, **given)
    assert_same(got, theirs(TEXTS, aggregation_strategy=strategy, **given))
    assert any(map(len, got))


def test_labels_of_all_kinds_come_out(pair):
    found = {record["entity"] for records in pair[1](TEXTS, ignore_labels=[]) for record in records}
    assert {"O", "B-LOC", "I-LOC", "B-PER", "I-PER"} <= found


FORMS = {
    "text": lambda: TEXTS[0],
    "list of one": lambda: TEXTS[:1],
    "list": lambda: TEXTS,
    "generator": lambda: (text for text in TEXTS),
}


@pytest.mark.parametrize("strategy", ["none", "simple"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(pair, form, strategy):
    got, wanted = (pipe(FORMS[form](), aggregation_strategy=strategy) for pipe in reversed(pair))
    assert isinstance(got, list) == isinstance(wanted, list) == (form != "generator")
    assert_same(list(got), list(wanted))


def test_columns(pair):
    from transformers.pipelines.pt_utils import KeyDataset as TheirKeyDataset

    rows = [{"text": text} for text in TEXTS]
    theirs, ours = pair
    assert_same(list(ours(KeyDataset(rows, "text"))), list(theirs(TheirKeyDataset(rows, "text"))))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_our_batches_are_their_single_rows(pair, batch_size):
    theirs, ours = pair
    given = {"aggregation_strategy": "average", "ignore_labels": []}
    assert_same(ours(TEXTS, batch_size=batch_size, **given), theirs(TEXTS, **given))


@pytest.mark.parametrize("delimiter", [None, "", " - "])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("words", [WORDS[0], WORDS], ids=["one", "several"])
def test_words(pair, words, strategy, delimiter):
    theirs, ours = pair
    given = {"is_split_into_words": True, "aggregation_strategy": strategy, "ignore_labels": []}
    given |= {} if delimiter is None else {"delimiter": delimiter}
    assert_same(ours(words, **given), theirs(words, **given))


@pytest.mark.parametrize("stride", [0, 3, 13])
@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_strides(short, strategy, stride):
    theirs, ours = short
    given = {"aggregation_strategy": strategy, "stride": stride, "ignore_labels": ["O", "MISC"]}
    got = ours(TEXTS, batch_size=3, **given)
    assert_same(got, theirs(TEXTS, **given))
    assert got[4][-1]["end"] > 150


def test_a_stride_over_words(short):
    theirs, ours = short
    given = {"aggregation_strategy": "first", "stride": 4, "is_split_into_words": True, "ignore_labels": []}
    assert_same(ours(LONG.split(), **given), theirs(LONG.split(), **given))


@pytest.mark.parametrize("strategy", ["none", "simple"])
def test_texts_are_cut(short, strategy):
    theirs, ours = short
    given = {"aggregation_strategy": strategy, "ignore_labels": []}
    got = ours(LONG, **given)
    assert_same(got, theirs(LONG, **given))
    assert got[-1]["end"] < len(LONG) / 2


def test_offset_mapping(pair):
    theirs, ours = pair
    count = len(ours.tokenizer("sarah lives")["input_ids"])
    mapping = [(0, 0), *((index, index + 1) for index in range(count - 2)), (0, 0)]
    for given in ({}, {"aggregation_strategy": "first"}):
        given = {**given, "ignore_labels": [], "offset_mapping": mapping}
        assert_same(ours("sarah lives", **given), theirs("sarah lives", **given))
        assert_same(ours(["sarah lives"], **given), theirs(["sarah lives"], **given))


def test_constructor(pair, tmp_path):
    import transformers as oracle

    pair[1].save_pretrained(tmp_path)
    given = {"aggregation_strategy": "max", "ignore_labels": ["O", "PER"]}
    theirs = oracle.pipeline("token-classification", model=str(tmp_path), device="cpu", **given)
    ours = pipeline("token-classification", model=tmp_path, device_map="cpu", **given)
    assert_same(ours(TEXTS), theirs(TEXTS))
    assert_same(ours(TEXTS, ignore_labels=[]), theirs(TEXTS, ignore_labels=[]))


@pytest.mark.parametrize(
    ("inputs", "arguments", "error"),
    [
        ("a", {"aggregation_strategy": "sum"}, KeyError),
        ("a", {"grouped_entities": True}, TypeError),
        ("a", {"ignore_labels": "O"}, TypeError),
        ("a", {"stride": 48, "aggregation_strategy": "simple"}, ValueError),
        ("a", {"stride": 3, "aggregation_strategy": "none"}, ValueError),
        (["a", "b"], {"offset_mapping": [[(0, 0), (0, 1), (0, 0)]]}, ValueError),
    ],
)
def test_errors_are_of_the_same_kind(pair, inputs, arguments, error):
    for pipe in pair:
        with pytest.raises(error):
            pipe(inputs, **arguments)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_hand_made_scores(pair, strategy):
    """Random scores of words in pieces, so that pieces of a word disagree and neighbours mix B- and I-."""
    from transformers.pipelines.token_classification import AggregationStrategy as Theirs

    theirs, ours = pair
    random = np.random.default_rng(0)
    id2label, join = dict(enumerate(NER_LABELS)), ours.tokenizer.convert_tokens_to_string
    for _ in range(40):
        count = int(random.integers(1, 12))
        scores = random.dirichlet(np.full(len(NER_LABELS), 0.3), size=count)
        tokens = [
            Token(word, scores[i], 2 * i, 2 * i + 2, i, bool(random.random() < 0.4))
            for i, word in enumerate(random.choice(["micro", "soft", "com", "pany"], size=count).tolist())
        ]
        wanted = theirs.aggregate([dict(vars(token)) for token in tokens], Theirs(strategy))
        assert_same(aggregate(tokens, AggregationStrategy(strategy), id2label, join), wanted)


def test_overlaps(pair):
    random = np.random.default_rng(1)
    for _ in range(60):
        records = []
        for start in random.integers(0, 40, size=random.integers(0, 10)).tolist():
            end = start + int(random.integers(1, 9))
            records.append({"entity_group": "LOC", "score": float(random.random()), "start": start, "end": end})
        assert merge_overlapping(records) == pair[0].aggregate_overlapping_entities(list(records))
