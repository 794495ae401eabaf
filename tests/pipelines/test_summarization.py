"""summarization: what it adds to text2text-generation."""

import re

import pytest

from jaxpipe.pipelines import SummarizationPipeline, Text2TextGenerationPipeline, pipeline
from tests.pipelines.conftest import make_tokenizer
from tests.pipelines.seq2seq_model import ArithmeticSeq2Seq

TEXTS = ["the cat sat on the mat and ate", "a dog", "hello world again and again"]


def make(model=None, **parameters):
    made = ArithmeticSeq2Seq(**(model or {}))
    return pipeline("summarization", model=made, tokenizer=make_tokenizer(), **parameters)


def test_results():
    pipe = make()
    assert isinstance(pipe, SummarizationPipeline) and pipe.task == "summarization"
    answers = Text2TextGenerationPipeline(pipe.model, pipe.tokenizer)
    call = {"num_beams": 1, "max_new_tokens": 4}
    texts = [record["generated_text"] for record in answers(TEXTS, **call)]
    assert pipe(TEXTS, **call) == [{"summary_text": text} for text in texts]
    assert list(pipe("a dog", return_tensors=True, **call)[0]) == ["summary_token_ids"]


def test_the_models_settings_of_the_task():
    own = {"prefix": "the ", "max_length": 6, "min_length": 3, "num_beams": 2}
    pipe = make({"task_specific_params": {"summarization": own, "translation_en_to_de": {"num_beams": 9}}})
    pipe("cat")
    settled = pipe.model.settled
    assert (settled.max_new_tokens, settled.min_new_tokens, settled.num_beams) == (5, 2, 2)
    assert pipe.model.calls[-1]["input_ids"].tolist() == [pipe.tokenizer("the cat")["input_ids"]]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"max_length": 9}, "max_length=9, but a text has only 3 tokens. Summaries .* consider max_length=1"),
        ({"max_new_tokens": 9}, "max_new_tokens=9, but a text has only 3 tokens"),
        ({"max_length": 3}, None),
        ({}, None),
    ],
)
def test_a_summary_that_may_be_longer_than_its_text(caplog, call, said):
    pipe = make()
    text = "zyx"
    assert len(pipe.tokenizer(text)["input_ids"]) == 3
    pipe([text] * 3, **call)
    assert len(caplog.records) == (said is not None)
    if said:
        assert caplog.text.count("Said for the first such text") == 1
        assert re.search(said, caplog.text)


def test_lengths_that_cross(caplog):
    make({"generation": {"min_length": 8}})("zyxwvutsrq", max_length=5)
    assert "min_length=8 is above max_length=5" in caplog.text
