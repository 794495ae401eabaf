"""Question answering: spans of hand-made scores, forms of calls, long contexts, and bad input."""

import itertools
import json
import types

import jax
import numpy as np
import pytest

from jaxpipe.common.outputs import QuestionAnsweringOutput
from jaxpipe.pipelines import QuestionAnsweringPipeline, pipeline
from jaxpipe.pipelines.spans import answers_of, decode_spans, piece_of
from tests.pipelines.frozen.encoders import LENGTH, write_checkpoint
from tests.pipelines.frozen.question_answering_cases import CONTEXT, LONG, OTHER, PAIR, QUESTION, SECOND


class PlaceModel:
    """Scores a token by its id alone, times ``scale``; ``wrong`` is an id whose scores are NaN."""

    name_or_path = ""

    def __init__(self, scale=0.5, wrong=None, positions=None):
        self.config = types.SimpleNamespace(longest_input=lambda: positions)
        self.scale, self.wrong = scale, wrong
        self.dtype = np.dtype(np.float32)
        self.mesh = None
        self.calls = []

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None):
        self.calls.append({"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids})
        start, end = ((input_ids * factor) % 17 * self.scale - self.scale for factor in (5, 11))
        if self.wrong is not None:
            start = np.where(input_ids == self.wrong, np.nan, start)
        return QuestionAnsweringOutput(
            start_logits=jax.numpy.asarray(start, np.float32), end_logits=jax.numpy.asarray(end, np.float32)
        )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("qa") / "bert", "bert", "qa")


def load(path):
    from jaxpipe.tokenization import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def wordpiece(checkpoint):
    return load(checkpoint)


@pytest.fixture(scope="module")
def byte_bpe(tmp_path_factory):
    return load(write_checkpoint(tmp_path_factory.mktemp("qa") / "roberta", "roberta", "qa"))


@pytest.fixture(params=["wordpiece", "byte_bpe"])
def answer(request):
    return QuestionAnsweringPipeline(PlaceModel(), request.getfixturevalue(request.param))


@pytest.fixture
def by_word(wordpiece):
    return QuestionAnsweringPipeline(PlaceModel(), wordpiece)


def spans(*arguments):
    firsts, lasts, scores = decode_spans(*arguments)
    return list(zip(firsts.tolist(), lasts.tolist(), scores.tolist(), strict=True))


def test_spans():
    start, end = np.array([0.9, 0.1, 0.6, 0.3]), np.array([0.8, 0.2, 0.5, 0.4])
    every = np.array([False, True, True, True])
    assert spans(start, end, 1, 3, every) == [(2, 2, pytest.approx(0.3))]
    wanted = [(2, 2, 0.3), (2, 3, 0.24), (3, 3, 0.12), (1, 2, 0.05), (1, 3, 0.04), (1, 1, 0.02)]
    assert spans(start, end, 9, 3, every) == [(i, j, pytest.approx(score)) for i, j, score in wanted]
    assert spans(start, end, 9, 1, every) == [(2, 2, 0.3), (3, 3, pytest.approx(0.12)), (1, 1, pytest.approx(0.02))]
    assert [span[:2] for span in spans(start, end, 9, 99, every & (start > 0.2))] == [(2, 2), (2, 3), (3, 3)]
    assert spans(start, end, 9, 9, every & False) == []


def test_spans_are_those_of_the_whole_matrix():
    random = np.random.default_rng(0)
    for _ in range(30):
        length, longest = int(random.integers(1, 12)), int(random.integers(1, 14))
        start, end, candidates = random.random(length), random.random(length), random.random(length) < 0.8
        matrix = {
            (i, j): start[i] * end[j]
            for i, j in itertools.product(range(length), repeat=2)
            if 0 <= j - i < longest and candidates[i] and candidates[j]
        }
        best = sorted(matrix, key=lambda span: -matrix[span])[:5]
        assert [span[:2] for span in spans(start, end, 5, longest, candidates)] == best


def test_equal_spans_come_in_the_order_of_the_text():
    flat = np.full(4, 0.25)
    assert [span[:2] for span in spans(flat, flat, 3, 2, np.ones(4, bool))] == [(0, 0), (0, 1), (1, 1)]


def test_answers_of_several_pieces_are_summed(wordpiece):
    context = "Paris and paris"
    encoding = wordpiece("who", context).encodings[0]
    piece = piece_of(context, encoding, 1, wordpiece.cls_token_id)
    assert piece.null == 0 and piece.candidates.tolist() == [False] * 3 + [True] * 3 + [False]
    logits = np.full(7, -50.0)
    logits[[3, 5]] = 0
    given = {"align_to_words": True, "handle_impossible_answer": False}
    answers = answers_of([(piece, logits, logits), (piece, logits, logits)], 2, 1, **given)
    assert answers[0] == {"score": pytest.approx(1.0), "start": 0, "end": 5, "answer": "Paris"}
    assert answers[1]["answer"] == "and" and answers[1]["score"] < 1e-20


@pytest.mark.parametrize("align_to_words", [True, False])
def test_places_are_of_words_or_of_tokens(by_word, align_to_words):
    answers = by_word(question=QUESTION, context="microsoft", top_k=9, align_to_words=align_to_words)
    if align_to_words:
        # A single answer is given bare; its score is the sum of those of its spans.
        assert answers["answer"] == "microsoft"
    else:
        assert {record["answer"] for record in answers} == {"micro", "soft", "microsoft"}


@pytest.mark.parametrize("context", [CONTEXT, LONG])
def test_answers_lie_in_the_context(answer, context):
    for record in answer(question=QUESTION, context=context, top_k=30):
        assert list(record) == ["score", "start", "end", "answer"]
        assert context[record["start"] : record["end"]] == record["answer"] != ""
        assert [type(value) for value in record.values()] == [float, int, int, str]
    assert json.dumps(answer(question=QUESTION, context=context, top_k=30))


def test_there_are_no_more_answers_than_spans(by_word):
    assert len(by_word(question=QUESTION, context="sarah lives", top_k=50)) == 3
    assert by_word(question=QUESTION, context="sarah", top_k=50)["answer"] == "sarah"


@pytest.mark.parametrize("scale", [1e6, -1e6])
def test_large_scores(wordpiece, scale):
    answer = QuestionAnsweringPipeline(PlaceModel(scale), wordpiece)
    found = answer(question=QUESTION, context=CONTEXT, top_k=3)
    assert all(record["answer"] and np.isfinite(record["score"]) for record in found)
    assert found[0]["score"] >= found[1]["score"] >= found[2]["score"]


def test_tokens_outside_the_context_never_win(wordpiece):
    encoding = wordpiece("who", "sarah lives in").encodings[0]
    piece = piece_of("sarah lives in", encoding, 1, wordpiece.cls_token_id)
    logits = np.array([-9e6, 0, 0, -2e6, -1e6, -3e6, 0])
    given = {"align_to_words": True, "handle_impossible_answer": True}
    best = answers_of([(piece, logits, logits)], 1, 9, **given)
    assert best == [{"score": 1.0, "start": 6, "end": 11, "answer": "lives"}]


def test_impossible_answers(by_word):
    none = {"start": 0, "end": 0, "answer": ""}
    every = by_word(question=QUESTION, context="sarah lives", top_k=50, handle_impossible_answer=True)
    null = next(record for record in every if record["answer"] == "")
    assert null == {"score": null["score"], **none} and null["score"] > 0
    assert [record for record in every if record["answer"]] == by_word(QUESTION, "sarah lives", top_k=50)
    assert every == sorted(every, key=lambda record: -record["score"])


def test_without_a_token_for_no_answer(tokenizer_of):
    answer = QuestionAnsweringPipeline(PlaceModel(), tokenizer_of())
    found = answer(question="a dog", context="the cat sat", top_k=50, handle_impossible_answer=True)
    assert found[-1] == {"score": 0.0, "start": 0, "end": 0, "answer": ""}


def test_forms(answer):
    one, two = answer(PAIR), answer(SECOND)
    both = [PAIR, SECOND]
    for got in (
        answer(both),
        answer(tuple(both)),
        answer(*both),
        answer(question=[QUESTION, OTHER], context=[CONTEXT, LONG]),
        answer(question=(QUESTION, OTHER), context=(CONTEXT, LONG)),
        answer([QUESTION, OTHER], [CONTEXT, LONG]),
        answer({"question": [QUESTION, OTHER], "context": [CONTEXT, LONG]}),
        answer(answer.create_sample([QUESTION, OTHER], [CONTEXT, LONG])),
        answer(data=both),
        list(answer(iter(both))),
        list(answer(types.SimpleNamespace(question_text=p["question"], context_text=p["context"]) for p in both)),
    ):
        assert got == [one, two]
    for got in (answer(QUESTION, CONTEXT), answer(X=[PAIR]), answer(**PAIR), answer({**PAIR, "id": 3})):
        assert got == one
    assert answer({"question": [QUESTION, QUESTION], "context": CONTEXT}) == [one, one]


def test_iterators_are_read_lazily(answer):
    endless = answer({"question": QUESTION, "context": f"{CONTEXT} {number}"} for number in itertools.count())
    assert next(endless) == answer(QUESTION, f"{CONTEXT} 0")
    assert len(list(itertools.islice(endless, 5))) == 5
    assert list(answer(iter([]))) == []


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_change_nothing(answer, batch_size):
    given = {"doc_stride": 5, "top_k": 3}
    alone = [answer(pair, **given) for pair in (PAIR, SECOND, PAIR)]
    assert answer([PAIR, SECOND, PAIR], batch_size=batch_size, **given) == alone
    assert list(answer(iter([PAIR, SECOND, PAIR]), batch_size=batch_size, **given)) == alone


def test_pieces(by_word):
    by_word(question=QUESTION, context=LONG, max_seq_len=20, doc_stride=4)
    (call,) = by_word.model.calls
    question = by_word.tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    context = by_word.tokenizer(LONG, add_special_tokens=False)["input_ids"]
    room = 20 - len(question) - 3
    first = call["input_ids"][0][:20].tolist()
    second = call["input_ids"][1][:20].tolist()
    assert first == [2, *question, 3, *context[:room], 3]
    assert second == [2, *question, 3, *context[room - 4 : 2 * room - 4], 3]
    assert call["token_type_ids"][0][:20].tolist() == [0] * (len(question) + 2) + [1] * (room + 1)


def test_a_long_question_leaves_room_for_small_pieces(by_word):
    """The stride unless given is half of what is left; one that is given and fits nowhere is refused."""
    question = "who is sarah " * 12
    found = by_word(question=question, context=LONG, top_k=3)
    assert len(by_word.model.calls[0]["input_ids"]) > 8 and len(found) == 3
    with pytest.raises(ValueError, match="doc_stride=20 must be less than the 9 tokens"):
        by_word(question=question, context=LONG, doc_stride=20)
    # It is of no matter where the context is one piece.
    assert by_word(question=question, context="sarah", doc_stride=20)["answer"] == "sarah"


def test_tokenizers_that_pad_on_the_left_read_the_context_first(wordpiece, monkeypatch):
    answer = QuestionAnsweringPipeline(PlaceModel(), wordpiece)
    every = {"question": QUESTION, "context": "Sarah lives in Paris.", "top_k": 99}
    wanted = {record["answer"]: record for record in answer(**every)}
    monkeypatch.setattr(wordpiece, "padding_side", "left")
    got = {record["answer"]: record for record in answer(**every)}
    # Sums in another order may differ in the last digit.
    assert got == {text: {**record, "score": pytest.approx(record["score"])} for text, record in wanted.items()}
    assert answer.model.calls[-1]["input_ids"][0][1:3].tolist() == wordpiece.encode("sarah lives")[1:3]
    for record in answer(question=QUESTION, context=LONG, top_k=30, padding="max_length"):
        assert LONG[record["start"] : record["end"]] == record["answer"] != ""


def test_learned_positions(wordpiece, monkeypatch):
    answer = QuestionAnsweringPipeline(PlaceModel(positions=30), wordpiece)
    assert answer(question=QUESTION, context=LONG)["answer"]
    with pytest.raises(ValueError, match="40 tokens, but the model has learned positions for 30; give max_seq_len=30"):
        answer(question=QUESTION, context=LONG, max_seq_len=40)
    # A text that fits is no error.
    assert answer(question=QUESTION, context="sarah", max_seq_len=40)["answer"] == "sarah"
    monkeypatch.setattr(wordpiece, "model_max_length", 10**30)
    free = QuestionAnsweringPipeline(PlaceModel(), wordpiece)
    free(question=QUESTION, context=f"{LONG} " * 9)
    assert len(free.model.calls[-1]["input_ids"]) == 2


def test_constructor_and_call(wordpiece):
    answer = QuestionAnsweringPipeline(PlaceModel(), wordpiece, top_k=2, max_answer_len=1)
    assert len(answer(**PAIR)) == 2
    assert all(" " not in record["answer"] for record in answer(**PAIR))
    assert isinstance(answer(**PAIR, top_k=1), dict)
    assert len(answer(**PAIR)) == 2


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        ([None], TypeError, "inputs is None"),
        ([3], TypeError, "inputs is int 3; expected a mapping"),
        (["who"], TypeError, "inputs is str 'who'; expected a mapping"),
        ([[PAIR, None]], TypeError, r"inputs\[1\] is None"),
        ([[PAIR, ["who", "sarah"]]], TypeError, r"inputs\[1\] is list"),
        ([[PAIR, {"question": QUESTION, "contxt": "a"}]], KeyError, r"inputs\[1\] lacks 'context'.*mean 'contxt'"),
        ([{"context": "a"}], KeyError, "inputs lacks 'question'"),
        ([[PAIR, {"question": None, "context": "a"}]], ValueError, r"inputs\[1\]: the question is None"),
        ([[PAIR, {"question": "a", "context": 3}]], TypeError, r"inputs\[1\]: the context is int 3"),
        ([[PAIR, {"question": "a", "context": ""}]], ValueError, r"inputs\[1\]: the context is empty"),
        ([{"question": " \n", "context": "a"}], ValueError, "the question is empty"),
        ([QUESTION, None], ValueError, "the context is None"),
        ([[PAIR, {"question": "a", "context": "\x00"}]], ValueError, "has no tokens, so there is no answer"),
        ([["a", "b"], ["c"]], ValueError, "2 questions and 1 contexts"),
        (["a", ["c"]], ValueError, "one question, str 'a', for 1 contexts"),
        ([[PAIR, {"question": "who " * 50, "context": "a"}]], ValueError, "50 tokens, which leaves no room"),
    ],
)
def test_wrong_inputs(by_word, inputs, error, text):
    with pytest.raises(error, match=text):
        by_word(*inputs)


def test_wrong_items_are_named(by_word):
    with pytest.raises(ValueError, match="no room") as caught:
        by_word([PAIR, {"question": "who " * 50, "context": "a"}])
    assert caught.value.__notes__ == ["Raised for item 1 of the inputs."]
    results = by_word(iter([PAIR, {"question": "who"}]))
    assert next(results) == by_word(PAIR)
    with pytest.raises(KeyError, match=r"inputs\[1\] lacks 'context'"):
        next(results)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, ValueError, "give question= and context="),
        ({"question": "a"}, ValueError, "only question= is given"),
        ({**PAIR, "top_k": 0}, ValueError, "top_k= takes a whole number of at least 1, not int 0"),
        ({**PAIR, "topk": 0}, ValueError, "top_k="),
        ({**PAIR, "max_answer_len": 0}, ValueError, "max_answer_len= takes a whole number of at least 1"),
        ({**PAIR, "max_answer_len": 1.5}, ValueError, "max_answer_len="),
        ({**PAIR, "doc_stride": -1}, ValueError, "doc_stride= takes a whole number of at least 0"),
        ({**PAIR, "doc_stride": LENGTH + 1}, ValueError, "doc_stride=49 is larger than max_seq_len=48"),
        ({**PAIR, "doc_stride": 9, "max_seq_len": 8}, ValueError, "doc_stride=9 is larger than max_seq_len=8"),
        ({**PAIR, "max_seq_len": 0}, ValueError, "max_seq_len="),
        ({**PAIR, "max_seq_len": 8}, ValueError, "no room for the context in max_seq_len=8"),
        ({**PAIR, "max_question_len": 0}, ValueError, "max_question_len="),
        ({**PAIR, "padding": "longst"}, ValueError, "padding='longst' is not known"),
        ({**PAIR, "align_to_words": 1}, ValueError, "align_to_words= takes True or False"),
        ({**PAIR, "handle_impossible": True}, TypeError, "Did you mean 'handle_impossible_answer'"),
        ({**PAIR, "return_tensors": "np"}, TypeError, "'return_tensors' is no parameter"),
    ],
)
def test_wrong_arguments(by_word, arguments, error, text):
    with pytest.raises(error, match=text):
        by_word(**arguments)


def test_inputs_given_twice(by_word):
    with pytest.raises(ValueError, match="given twice: by position and as question= and context="):
        by_word(PAIR, question=QUESTION, context=CONTEXT)


def test_wrong_constructors(wordpiece, model):
    with pytest.raises(ValueError, match="tokenizer="):
        QuestionAnsweringPipeline(PlaceModel())
    with pytest.raises(TypeError, match="AutoModelForQuestionAnswering"):
        QuestionAnsweringPipeline(model, wordpiece)(PAIR)


def test_scores_that_are_not_finite(wordpiece):
    answer = QuestionAnsweringPipeline(PlaceModel(wrong=wordpiece.convert_tokens_to_ids("dog")), wordpiece)
    assert answer(PAIR)
    with pytest.raises(ValueError, match="nan as a score of a place in the context") as caught:
        answer([PAIR, {"question": "a", "context": "the dog"}], batch_size=2)
    assert "Raised for item 1 of the inputs." in caught.value.__notes__


def test_a_real_model_without_compilations(checkpoint, tmp_path):
    answer = pipeline("question-answering", model=checkpoint, device_map="cpu")
    answer([PAIR, SECOND], batch_size=4)
    compiled = []

    def note(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        answer([SECOND, {"question": OTHER, "context": LONG + CONTEXT}], batch_size=4, top_k=4, align_to_words=False)
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    answer.save_pretrained(tmp_path)
    again = pipeline(model=tmp_path)
    assert again.task == "question-answering" and again(PAIR) == answer(PAIR)
