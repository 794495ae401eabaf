"""Answers beside those of Transformers 4.57.6, which are frozen: see frozen/make_question_answering.py."""

import json
from pathlib import Path

import pytest

from jaxpipe.pipelines import pipeline
from jaxpipe.pipelines.inputs import ResultIterator
from tests.pipelines.frozen.encoders import write_checkpoint
from tests.pipelines.frozen.question_answering_cases import CONTEXT, ERRORS, FORMS, LONG, PAIR, QUESTION, calls, plain
from tests.pipelines.same import assert_same

FAMILIES = ("bert", "roberta")
FROZEN = json.loads((Path(__file__).parent / "frozen" / "question_answering.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def answer(family, tmp_path_factory):
    path = write_checkpoint(tmp_path_factory.mktemp("question-answering") / family, family, "qa")
    return pipeline("question-answering", model=path, device_map="cpu")


def assert_close(got, wanted, where):
    assert_same(got, wanted, where, tolerance=2e-5)


def test_every_call_is_frozen():
    names = [*calls(), *(f"error: {name}" for name in ERRORS)]
    assert sorted(FROZEN) == sorted(f"{family}, {name}" for family in FAMILIES for name in names)


@pytest.mark.parametrize("name", calls())
def test_calls(answer, family, name):
    inputs, parameters = calls()[name]
    result = plain(answer(*inputs, **parameters))
    assert_close(result, FROZEN[f"{family}, {name}"], name)
    assert json.dumps(result)


@pytest.mark.parametrize("name", FORMS)
def test_iterators_give_iterators(answer, name):
    inputs, parameters = FORMS[name]()
    assert isinstance(answer(*inputs, **parameters), ResultIterator) == name.startswith("generator")


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_of_the_same_kind(answer, family, name):
    inputs, parameters = ERRORS[name]()
    wanted = {"ValueError": ValueError, "KeyError": KeyError}[FROZEN[f"{family}, error: {name}"]]
    with pytest.raises(wanted):
        answer(*inputs, **parameters)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_change_nothing(answer, family, batch_size):
    pairs = [PAIR, {"question": QUESTION, "context": LONG}, {"question": QUESTION, "context": CONTEXT}]
    got = answer(pairs, batch_size=batch_size, doc_stride=8, top_k=2)
    for pair, result in zip(pairs, got, strict=True):
        assert_close(result, answer(pair, doc_stride=8, top_k=2), "alone")
    assert_close(got[1], FROZEN[f"{family}, stride: long"], "frozen")


def test_places_in_the_context(answer):
    for record in answer(question=QUESTION, context=LONG, top_k=20):
        assert LONG[record["start"] : record["end"]] == record["answer"]
