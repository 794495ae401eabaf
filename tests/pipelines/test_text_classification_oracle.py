"""Text classification beside Transformers' own pipeline, on tiny random checkpoints."""

import itertools
import json

import pytest

from jaxpipe.pipelines import KeyDataset, KeyPairDataset, pipeline
from tests.pipelines.frozen.encoders import wordpiece_backend
from tests.pipelines.same import assert_same

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

TEXTS = ["the cat", "sarah lives in london and works at a capital", "paris?", "my name is john , i live in berlin"]
PAIRS = [{"text": "the cat", "text_pair": "a dog ate"}, {"text": "john", "text_pair": "i live in paris ."}]
LIMIT = 40
# config.json's changes by name of the checkpoint.
CHECKPOINTS = {
    "three": {"id2label": {0: "bad", 1: "fair", 2: "good"}},
    "many": {"id2label": {0: "bad", 1: "fair", 2: "good"}, "problem_type": "multi_label_classification"},
    "one": {"id2label": {0: "score"}},
    "regression": {"id2label": {0: "score"}, "problem_type": "regression"},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    import torch
    import transformers as theirs

    root = tmp_path_factory.mktemp("classifiers")
    backend = wordpiece_backend()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    for name, changes in CHECKPOINTS.items():
        config = theirs.BertConfig(
            vocab_size=backend.get_vocab_size(), initializer_range=0.5, max_position_embeddings=LIMIT, **sizes,
            num_labels=len(changes["id2label"]),
        )  # fmt: skip
        torch.manual_seed(0)
        theirs.AutoModelForSequenceClassification.from_config(config).eval().save_pretrained(root / name)
        path = root / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
        theirs.PreTrainedTokenizerFast(
            tokenizer_object=backend,
            model_max_length=LIMIT,
            **{f"{kind}_token": token for kind, token in special.items()},
        ).save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def pair_of(checkpoints):
    """(Transformers' pipeline, ours) of a checkpoint, made once."""
    import transformers as theirs

    made = {}

    def pair(name):
        if name not in made:
            path = str(checkpoints / name)
            task = "text-classification"
            made[name] = (theirs.pipeline(task, model=path, device="cpu"), pipeline(task, model=path, device_map="cpu"))
        return made[name]

    return pair


def their_columns(ours):
    """The same data set in Transformers' classes."""
    from transformers.pipelines import pt_utils

    if isinstance(ours, KeyPairDataset):
        return pt_utils.KeyPairDataset(ours.dataset, ours.key1, ours.key2)
    return pt_utils.KeyDataset(ours.dataset, ours.key) if isinstance(ours, KeyDataset) else ours


ROWS = [{"a": pair["text"], "b": pair["text_pair"]} for pair in PAIRS]
FORMS = {
    "text": lambda: TEXTS[0],
    "list of one": lambda: TEXTS[:1],
    "list": lambda: TEXTS,
    "generator": lambda: (text for text in TEXTS),
    "column": lambda: KeyDataset(ROWS, "a"),
    "pair": lambda: PAIRS[0],
    "text in a mapping": lambda: {"text": TEXTS[0]},
    "list of pairs": lambda: PAIRS,
    "old pair": lambda: [[["the cat", "a dog ate"]]],
    "generator of pairs": lambda: (pair for pair in PAIRS),
    "columns": lambda: KeyPairDataset(ROWS, "a", "b"),
}
PARAMETERS = {
    "plain": {},
    "one label": {"top_k": 1},
    "two labels": {"top_k": 2},
    "more than there are": {"top_k": 7},
    "all labels": {"top_k": None},
    "sigmoid": {"function_to_apply": "sigmoid"},
    "softmax of all": {"function_to_apply": "softmax", "top_k": None},
    "none of all": {"function_to_apply": "NONE", "top_k": None},
    "truncation": {"truncation": True, "max_length": 4, "top_k": None},
    "padding": {"padding": "max_length", "max_length": 16, "top_k": None},
    "padding to the longest": {"padding": True, "top_k": None},
    "no special tokens": {"add_special_tokens": False, "top_k": None},
}


def run(pipe, inputs, arguments):
    """The result, and whether it came lazily."""
    result = pipe(inputs, **arguments)
    return (result, False) if isinstance(result, (list, dict)) else (list(result), True)


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("form", FORMS)
def test_forms_and_parameters(pair_of, form, parameters):
    theirs, ours = pair_of("three")
    wanted, wanted_lazy = run(theirs, their_columns(FORMS[form]()), PARAMETERS[parameters])
    got, lazy = run(ours, FORMS[form](), PARAMETERS[parameters])
    assert_same(got, wanted)
    assert lazy == wanted_lazy


@pytest.mark.parametrize("arguments", [{}, *({"function_to_apply": name} for name in ("sigmoid", "softmax", "none"))])
@pytest.mark.parametrize("name", ["many", "one", "regression"])
def test_functions(pair_of, name, arguments):
    theirs, ours = pair_of(name)
    for top_k in ({}, {"top_k": None}):
        assert_same(ours(TEXTS[0], **arguments, **top_k), theirs(TEXTS[0], **arguments, **top_k))
    assert_same(ours(TEXTS[0], **{**arguments, **({} if arguments else {"function_to_apply": "default"})}),
                theirs(TEXTS[0], **arguments))  # fmt: skip


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_batches_are_single_rows(pair_of, batch_size):
    theirs, ours = pair_of("three")
    items = [*TEXTS, *PAIRS]
    wanted = [theirs(item, top_k=None) for item in items]
    assert_same(ours(items, batch_size=batch_size, top_k=None), wanted)
    assert_same(theirs(TEXTS, batch_size=batch_size, top_k=None), ours(TEXTS, batch_size=batch_size, top_k=None))


@pytest.mark.parametrize("init", [{"top_k": 2}, {"top_k": None}, {"function_to_apply": "none"}, {"max_length": 4}])
def test_constructor(pair_of, init):
    import transformers as oracle

    theirs, ours = pair_of("three")
    theirs = oracle.pipeline(
        "text-classification", model=theirs.model, tokenizer=theirs.tokenizer, device="cpu", **init
    )
    ours = pipeline("text-classification", model=ours.model, tokenizer=ours.tokenizer, **init)
    for call in ({}, {"top_k": 1}, {"function_to_apply": "sigmoid"}):
        # Of one text Transformers nests the result of a constructor's top_k once more.
        inputs = TEXTS if "top_k" in init else TEXTS[0]
        assert_same(ours(inputs, **call), theirs(inputs, **call))


def test_empty_text(pair_of):
    theirs, ours = pair_of("three")
    assert_same(ours(""), theirs(""))


@pytest.mark.parametrize(
    ("inputs", "arguments", "error"),
    [
        (None, {}, (TypeError, ValueError)),
        ([None], {}, (TypeError, ValueError)),
        ([["the cat", "a dog"]], {}, ValueError),
        ([["the cat"]], {}, ValueError),
        ({"text_pair": "a dog"}, {}, (TypeError, ValueError)),
        ("the cat", {"function_to_apply": "tanh"}, (KeyError, ValueError)),
        ("the cat " * 30, {}, (IndexError, RuntimeError, ValueError)),
    ],
)
def test_errors(pair_of, inputs, arguments, error):
    for pipe in pair_of("three"):
        with pytest.raises(error):
            pipe(inputs, **arguments)


def test_long_texts(pair_of):
    theirs, ours = pair_of("three")
    texts = ["the cat " * 30, {"text": "the cat " * 12, "text_pair": "paris " * 22}]
    assert_same(ours(texts, truncation=True), theirs(texts, truncation=True))
    assert_same(ours(texts[1], truncation="only_second"), theirs(texts[1], truncation="only_second"))


def test_saving(pair_of, tmp_path):
    import transformers as oracle

    theirs, ours = pair_of("many")
    ours.save_pretrained(tmp_path)
    wanted = theirs(TEXTS, top_k=None)
    assert_same(oracle.pipeline("text-classification", model=str(tmp_path), device="cpu")(TEXTS, top_k=None), wanted)
    assert_same(pipeline(model=tmp_path, device_map="cpu")(TEXTS, top_k=None), wanted)


def test_lazy_inputs_are_not_read_to_their_end(pair_of):
    theirs, ours = pair_of("three")
    wanted = list(itertools.islice(theirs(text for text in itertools.cycle(TEXTS)), 5))
    assert_same(list(itertools.islice(ours(text for text in itertools.cycle(TEXTS)), 5)), wanted)
