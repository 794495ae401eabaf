"""Text ranking: forms of inputs, order, functions, truncation and errors, on a model that is arithmetic."""

import itertools
import json
import types

import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForSequenceClassification
from jaxpipe.common.errors import ConfigError
from jaxpipe.common.outputs import LogitsOutput
from jaxpipe.pipelines import TextRankingPipeline, pipeline
from jaxpipe.tokenization.tokenizer import Tokenizer

QUERY = "the cat"
DOCUMENTS = ["a dog ate the rat", "hello", "", "the cat sat on the mat", "hello world again a dog"]
ITEM = {"query": QUERY, "documents": DOCUMENTS}


@pytest.fixture(scope="module")
def tokenizer(backend_of):
    from tokenizers import processors

    backend = backend_of()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return Tokenizer(backend, {**names, "model_max_length": 64, "model_input_names": inputs})


class ScoreModel:
    """Gives one logit that depends on a row's own unmasked tokens alone."""

    name_or_path = ""

    def __init__(self, broken=None, limit=None, labels=1, checkpoint=None, scale=3.0, **config):
        names = {index: f"label {index}" for index in range(labels)}
        self.config = types.SimpleNamespace(id2label=names, longest_input=lambda: limit, **config)
        self.broken, self.scale, self.checkpoint = broken, scale, checkpoint
        self.dtype, self.mesh = np.dtype(np.float32), None
        self.calls = []

    def __call__(self, input_ids, attention_mask, token_type_ids):
        self.calls.append((input_ids, attention_mask, token_type_ids))
        total = (input_ids * attention_mask * (1 + token_type_ids)).sum(axis=1)[:, None]
        logits = np.sin(total * 1.0) * self.scale
        if self.broken is not None:
            logits[(input_ids == self.broken).any(axis=1)] = np.nan
        return LogitsOutput(np.asarray(logits, np.float32))


@pytest.fixture
def ranker_of(tokenizer):
    def make(model=None, **parameters):
        return TextRankingPipeline(model or ScoreModel(), tokenizer, **parameters)

    return make


@pytest.fixture
def ranker(ranker_of):
    return ranker_of()


def logits_of(ranker, query, documents):
    rows = [ranker.tokenizer([query], [document], return_tensors="np") for document in documents]
    return np.array([float(ranker.model(**row).logits[0, 0]) for row in rows])


# ---- results


def test_documents_in_the_order_of_their_scores(ranker):
    logits = logits_of(ranker, QUERY, DOCUMENTS)
    records = ranker(query=QUERY, documents=DOCUMENTS)
    assert [record["index"] for record in records] == np.argsort(-logits).tolist()
    for record in records:
        assert list(record) == ["index", "score", "document"]
        assert record["score"] == pytest.approx(1 / (1 + np.exp(-logits[record["index"]])))
        assert record["document"] == DOCUMENTS[record["index"]]
    assert json.dumps(records)


def test_forms(ranker):
    wanted = ranker(ITEM)
    assert ranker(QUERY, DOCUMENTS) == ranker(QUERY, documents=tuple(DOCUMENTS)) == wanted
    assert ranker(query=QUERY, documents=DOCUMENTS) == wanted
    other = {"query": "hello", "documents": DOCUMENTS[:2]}
    assert ranker([ITEM, other]) == ranker((ITEM, other)) == [wanted, ranker(other)]
    assert ranker([ITEM]) == [wanted]
    assert ranker([]) == []
    assert list(ranker(iter([ITEM, other]))) == [wanted, ranker(other)]
    assert list(itertools.islice(ranker(itertools.cycle([other, ITEM])), 3)) == [ranker(other), wanted, ranker(other)]


def test_top_k_and_documents(ranker_of):
    ranker = ranker_of()
    wanted = ranker(ITEM)
    assert ranker(ITEM, top_k=2) == wanted[:2]
    assert ranker(ITEM, top_k=99) == ranker(ITEM, top_k=None) == wanted
    bare = [{key: record[key] for key in ("index", "score")} for record in wanted]
    assert ranker(ITEM, return_documents=False) == bare
    fixed = ranker_of(top_k=1, return_documents=False)
    assert fixed(ITEM) == bare[:1]
    assert fixed(ITEM, return_documents=True) == wanted[:1]


def test_equal_documents_keep_their_order(ranker):
    records = ranker(QUERY, ["hello", "the rat", "hello", "hello"])
    assert [record["index"] for record in records if record["document"] == "hello"] == [0, 2, 3]


def test_scores_that_round_to_one_are_still_in_order(ranker_of):
    ranker = ranker_of(ScoreModel(scale=500.0))
    logits = logits_of(ranker, QUERY, DOCUMENTS)
    assert [record["index"] for record in ranker(ITEM)] == np.argsort(-logits).tolist()


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 16])
def test_batches_change_nothing(ranker, batch_size):
    alone = [ranker(query=QUERY, documents=[document])[0]["score"] for document in DOCUMENTS]
    records = ranker(ITEM, batch_size=batch_size)
    assert [record["score"] for record in sorted(records, key=lambda record: record["index"])] == alone


def test_one_query_runs_in_batches(ranker):
    ranker(QUERY, DOCUMENTS[:1] * 8)
    assert [ids.shape[0] for ids, *_ in ranker.model.calls] == [8]


def test_empty_documents_are_pairs(ranker):
    ranker(QUERY, [""])
    ids, mask, types_ = ranker.model.calls[0]
    assert ids[0][mask[0] == 1].tolist() == [0, *ranker.tokenizer(QUERY)["input_ids"][1:], 1]
    assert types_[0].sum() == 1


# ---- the function from logit to score


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


NAMED = {
    "nothing": ({}, sigmoid),
    "version 4": ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, np.asarray),
    "version 3": ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, np.asarray),
    "sigmoid": ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, sigmoid),
    "nothing said": ({"sentence_transformers": {"version": "4.0.1"}}, sigmoid),
    "file": ({"checkpoint": {"activation_fn": "torch.nn.modules.linear.Identity"}}, np.asarray),
    "no file": ({"checkpoint": None}, sigmoid),
}


@pytest.mark.parametrize("place", NAMED)
def test_the_function_that_the_checkpoint_names(ranker_of, place):
    config, function = NAMED[place]
    if "checkpoint" in config:
        files = {"config_sentence_transformers.json": config["checkpoint"]}
        config = {"checkpoint": types.SimpleNamespace(read_json=files.get)}
    ranker = ranker_of(ScoreModel(**config))
    logits = np.sort(logits_of(ranker, QUERY, DOCUMENTS))[::-1]
    functions = {None: function, "default": function, "sigmoid": sigmoid, "none": np.asarray}
    for name, asked in functions.items():
        scores = [record["score"] for record in ranker(ITEM, function_to_apply=name)]
        assert scores == pytest.approx(asked(logits), rel=1e-6)
    fixed = ranker_of(ranker.model, function_to_apply="none")
    assert fixed(ITEM) == ranker(ITEM, function_to_apply="none")
    assert fixed(ITEM, function_to_apply="default") == ranker(ITEM)


def test_a_function_that_is_not_known(ranker_of):
    ranker = ranker_of(ScoreModel(sentence_transformers={"activation_fn": "mine.Scaled"}))
    with pytest.raises(ConfigError, match=r"names 'mine\.Scaled'"):
        ranker(ITEM)
    assert len(ranker(ITEM, function_to_apply="none")) == len(DOCUMENTS)


# ---- long pairs


LONG = "a dog ate the rat and sat on the mat " * 4


def test_long_pairs_are_cut_at_the_longer_text(ranker_of):
    ranker = ranker_of(ScoreModel(limit=12))
    ranker(QUERY, [LONG])
    ids, mask, kinds = ranker.model.calls[0]
    query = ranker.tokenizer(QUERY)["input_ids"]
    assert mask.sum() == 12
    assert ids[0][(mask[0] == 1) & (kinds[0] == 0)].tolist() == query
    assert ranker(QUERY, [LONG], max_length=12) == ranker(QUERY, [LONG])
    assert ranker(LONG, [QUERY])[0]["document"] == QUERY
    assert ranker_of(ScoreModel(limit=12), max_length=8)(ITEM) == ranker(ITEM, max_length=8)


def test_the_tokenizers_limit_holds_too(ranker_of):
    ranker = ranker_of()
    ranker(QUERY, [LONG * 4])
    assert ranker.model.calls[0][1].sum() == 64


def test_other_truncation(ranker_of):
    ranker = ranker_of(ScoreModel(limit=12))
    ranker(QUERY, [LONG], truncation="only_second")
    assert ranker.model.calls[0][1].sum() == 12
    with pytest.raises(ValueError, match="but the model has learned positions for 12") as caught:
        ranker([{"query": QUERY, "documents": ["hello"]}, {"query": QUERY, "documents": [LONG]}], truncation=False)
    assert caught.value.__notes__ == ["Raised for item 1 of the inputs."]
    with pytest.raises(ValueError, match="truncation='only_frist' is not known"):
        ranker(ITEM, truncation="only_frist")
    with pytest.raises(ValueError, match="positions for 12"):
        ranker(QUERY, [LONG], max_length=20)


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"topk": 1}, TypeError, "'topk' is no parameter of .* Did you mean 'top_k'"),
        ({"top_n": 1}, TypeError, "Its name here is top_k="),
        ({"raw_scores": True}, TypeError, "function_to_apply='none'"),
        ({"top_k": 0}, ValueError, "at least 1, not int 0"),
        ({"return_documents": "no"}, ValueError, "return_documents= takes True or False"),
        ({"function_to_apply": "softmax"}, ValueError, "always 1"),
        ({"function_to_apply": "tanh"}, ValueError, "function_to_apply='tanh' is unknown"),
    ],
)
def test_wrong_arguments(ranker_of, arguments, error, text):
    with pytest.raises(error, match=text):
        ranker_of()(ITEM, **arguments)
    with pytest.raises(error, match=text):
        ranker_of(**arguments)


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        ([None], TypeError, r"inputs\[0\] is None; expected a mapping"),
        ([ITEM, "a"], TypeError, r"inputs\[1\] is str 'a'"),
        ({"query": "a"}, ValueError, "inputs lacks 'documents'"),
        ({"documents": ["a"]}, ValueError, "inputs lacks 'query'"),
        ({"query": "a", "texts": ["b"]}, ValueError, "has the key 'texts'.* Its name here is 'documents'"),
        ({"querry": "a", "documents": ["b"]}, ValueError, "Did you mean 'query'"),
        ({"query": " ", "documents": ["b"]}, ValueError, "inputs: the query is empty"),
        ({"query": 3, "documents": ["b"]}, TypeError, "the query is int 3"),
        ({"query": "a", "documents": "b"}, TypeError, "documents is str 'b'; expected a list"),
        ([{"query": "a", "documents": []}], ValueError, r"inputs\[0\]: documents is empty"),
        ([ITEM, {"query": "a", "documents": ["b", None]}], TypeError, r"inputs\[1\]: documents\[1\] is None"),
    ],
)
def test_wrong_inputs(ranker, inputs, error, text):
    with pytest.raises(error, match=text):
        ranker(inputs)


def test_wrong_calls(ranker):
    with pytest.raises(TypeError, match="nothing to rank"):
        ranker()
    with pytest.raises(ValueError, match="lacks 'documents'"):
        ranker("the cat")
    with pytest.raises(ValueError, match="lacks 'query'"):
        ranker(documents=["a"])
    with pytest.raises(TypeError, match="The query is given twice"):
        ranker("a", ["b"], query="c")
    with pytest.raises(TypeError, match="do not go with other inputs"):
        ranker(ITEM, documents=["a"])


def test_nan_names_its_item(ranker_of, tokenizer):
    ranker = ranker_of(ScoreModel(broken=tokenizer("hello", add_special_tokens=False)["input_ids"][0]))
    assert ranker(QUERY, DOCUMENTS[:1])
    with pytest.raises(ValueError, match="gave nan as a score of a document") as caught:
        ranker([{"query": QUERY, "documents": DOCUMENTS[:1]}, ITEM])
    assert caught.value.__notes__ == ["Raised for item 1 of the inputs."]


def test_other_models(ranker_of, tokenizer):
    with pytest.raises(ValueError, match=r"this one has 3 labels.*text-classification on pairs"):
        ranker_of(ScoreModel(labels=3))
    with pytest.raises(ValueError, match="tokenizer="):
        TextRankingPipeline(ScoreModel())


# ---- a real model


def test_what_is_saved_is_what_was_loaded(tokenizer, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = AutoConfig.for_model("bert", **sizes, vocab_size=300, initializer_range=0.5, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config, dtype="float32", device_map="cpu", seed=0)
    made = pipeline("text-ranking", model=model, tokenizer=tokenizer)
    made.save_pretrained(tmp_path)
    (tmp_path / "config_sentence_transformers.json").write_text('{"activation_fn": "torch.nn.Identity"}')
    loaded = pipeline("text-ranking", model=tmp_path, device_map="cpu")
    wanted = made(ITEM, function_to_apply="none")
    assert loaded(ITEM) == wanted != made(ITEM)
    loaded.save_pretrained(tmp_path / "again")
    assert pipeline("text-ranking", model=tmp_path / "again", device_map="cpu")(ITEM) == wanted
