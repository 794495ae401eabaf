"""Fill-mask beside Transformers' own pipeline, on tiny random checkpoints of BERT and RoBERTa."""

import copy
import itertools

import pytest

from jaxpipe.pipelines import KeyDataset, PipelineException, pipeline
from tests.pipelines.frozen.encoders import byte_bpe_backend, wordpiece_backend
from tests.pipelines.same import assert_same

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

LIMIT = 40
# With BERT's mask; RoBERTa's is put in its place.
TEXTS = [
    "the [MASK] sat",
    "sarah lives in [MASK] and works at a capital",
    "[MASK]",
    "my name is [MASK] , i live in berlin",
]
MANY = ["the [MASK] sat on the [MASK]", "[MASK] [MASK] [MASK]"]
SPECIAL = {
    "bert": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "roberta": {
        "pad": "<pad>",
        "unk": "<unk>",
        "cls": "<s>",
        "sep": "</s>",
        "mask": "<mask>",
        "bos": "<s>",
        "eos": "</s>",
    },
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    import torch
    import transformers as theirs

    root = tmp_path_factory.mktemp("masked")
    backends = {"bert": wordpiece_backend(), "roberta": byte_bpe_backend()}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    for name, backend in backends.items():
        backend.add_special_tokens(list(dict.fromkeys(SPECIAL[name].values())))
        config = theirs.AutoConfig.for_model(
            name,
            vocab_size=backend.get_vocab_size(),
            initializer_range=0.5,
            max_position_embeddings=LIMIT + 2 * (name == "roberta"),
            type_vocab_size=1 + (name == "bert"),
            pad_token_id=backend.token_to_id(SPECIAL[name]["pad"]),
            **sizes,
        )
        torch.manual_seed(0)
        theirs.AutoModelForMaskedLM.from_config(config).eval().save_pretrained(root / name)
        theirs.PreTrainedTokenizerFast(
            tokenizer_object=backend,
            model_max_length=LIMIT,
            model_input_names=["input_ids", "attention_mask"] + ["token_type_ids"] * (name == "bert"),
            **{f"{kind}_token": token for kind, token in SPECIAL[name].items()},
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
            ours = pipeline("fill-mask", model=path, device_map="cpu")
            made[name] = (theirs.pipeline("fill-mask", model=path, device="cpu"), ours)
        return made[name]

    return pair


def of(name, text):
    return text.replace("[MASK]", SPECIAL[name]["mask"])


def their_columns(ours):
    from transformers.pipelines.pt_utils import KeyDataset as Theirs

    return Theirs(ours.dataset, ours.key) if isinstance(ours, KeyDataset) else ours


FORMS = {
    "text": lambda texts: texts[0],
    "list of one": lambda texts: texts[:1],
    "list": lambda texts: texts,
    "several masks": lambda texts: texts[4],
    "list of one with several masks": lambda texts: texts[4:5],
    "generator": lambda texts: (text for text in texts),
    "column": lambda texts: KeyDataset([{"t": text} for text in texts], "t"),
}
PARAMETERS = {
    "plain": {},
    "one": {"top_k": 1},
    "many": {"top_k": 12},
    "target": {"targets": "cat"},
    "targets": {"targets": ["paris", "london", "berlin", "london"]},
    "best target": {"targets": ["paris", "london", "berlin"], "top_k": 1},
    "more than targets": {"targets": ["paris", "london"], "top_k": 9},
    "outside the vocabulary": {"targets": ["londonparis", "cat", ""]},
    "padding": {"tokenizer_kwargs": {"padding": "max_length", "max_length": 24}},
    "padding to the longest": {"tokenizer_kwargs": {"padding": True}},
    "truncation": {"tokenizer_kwargs": {"truncation": True}},
    "no special tokens": {"tokenizer_kwargs": {"add_special_tokens": False}},
}


def run(pipe, inputs, arguments):
    """The result, and whether it came lazily."""
    result = pipe(inputs, **copy.deepcopy(arguments))
    return (result, False) if isinstance(result, list) else (list(result), True)


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("form", FORMS)
def test_forms_and_parameters(pair_of, form, parameters):
    theirs, ours = pair_of("bert")
    wanted, wanted_lazy = run(theirs, their_columns(FORMS[form]([*TEXTS, *MANY])), PARAMETERS[parameters])
    got, lazy = run(ours, FORMS[form]([*TEXTS, *MANY]), PARAMETERS[parameters])
    assert_same(got, wanted)
    assert lazy == wanted_lazy


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_roberta(pair_of, parameters):
    theirs, ours = pair_of("roberta")
    for texts in ([of("roberta", text) for text in (*TEXTS, *MANY)], of("roberta", TEXTS[3])):
        assert_same(ours(texts, **PARAMETERS[parameters]), theirs(texts, **copy.deepcopy(PARAMETERS[parameters])))


@pytest.mark.parametrize("batch_size", [2, 4, 8])
def test_batches_are_single_rows(pair_of, batch_size):
    theirs, ours = pair_of("bert")
    texts = [*TEXTS, *MANY, *TEXTS[::-1]]
    assert_same(ours(texts, batch_size=batch_size), [theirs(text) for text in texts])


@pytest.mark.parametrize(
    "init", [{"top_k": 2}, {"targets": ["cat", "dog"]}, {"tokenizer_kwargs": {"truncation": True}}]
)
def test_constructor(pair_of, init):
    import transformers as oracle

    theirs, ours = pair_of("bert")
    theirs = oracle.pipeline("fill-mask", model=theirs.model, tokenizer=theirs.tokenizer, device="cpu", **init)
    ours = pipeline("fill-mask", model=ours.model, tokenizer=ours.tokenizer, **init)
    for call in ({}, {"top_k": 1}, {"targets": "paris"}, {"top_k": None, "targets": None}):
        assert_same(ours(TEXTS, **call), theirs(TEXTS, **call))


@pytest.mark.parametrize(
    ("inputs", "arguments", "error"),
    [
        ("the cat", {}, "PipelineException"),
        (["[MASK]", "the cat"], {}, "PipelineException"),
        ("a " * 60 + "[MASK]", {"tokenizer_kwargs": {"truncation": True}}, "PipelineException"),
        ("[MASK]", {"targets": []}, ValueError),
        ("[MASK]", {"targets": [""]}, ValueError),
        ("[MASK]", {"top": 1}, TypeError),
        ("[MASK]", {"top_k": 10_000}, (RuntimeError, ValueError)),
        ([None], {}, (TypeError, ValueError)),
        ("the cat " * 30 + "[MASK]", {}, (IndexError, RuntimeError, ValueError)),
    ],
)
def test_errors(pair_of, inputs, arguments, error):
    from transformers.pipelines import PipelineException as Theirs

    for pipe, own in zip(pair_of("bert"), (Theirs, PipelineException), strict=True):
        with pytest.raises(own if error == "PipelineException" else error) as caught:
            pipe(inputs, **arguments)
        if error == "PipelineException":
            assert (caught.value.task, caught.value.model) == ("fill-mask", "bert")
            assert "No mask_token ([MASK]) found on the input" in str(caught.value)


def test_a_tokenizer_without_mask_token(pair_of):
    from transformers.pipelines import FillMaskPipeline as TheirPipeline
    from transformers.pipelines import PipelineException as Theirs

    for pipe, cls, own in zip(
        pair_of("bert"), (TheirPipeline, type(pair_of("bert")[1])), (Theirs, PipelineException), strict=True
    ):
        tokenizer = copy.deepcopy(pipe.tokenizer)
        tokenizer.mask_token = None
        with pytest.raises(own, match="does not define a `mask_token`"):
            cls(model=pipe.model, tokenizer=tokenizer)


def test_saving(pair_of, tmp_path):
    import transformers as oracle

    theirs, ours = pair_of("roberta")
    texts = [of("roberta", text) for text in TEXTS]
    ours.save_pretrained(tmp_path)
    wanted = theirs(texts)
    assert_same(oracle.pipeline("fill-mask", model=str(tmp_path), device="cpu")(texts), wanted)
    loaded = pipeline(model=tmp_path, device_map="cpu")
    assert loaded.task == "fill-mask"
    assert_same(loaded(texts), wanted)


def test_lazy_inputs_are_not_read_to_their_end(pair_of):
    theirs, ours = pair_of("bert")
    wanted = list(itertools.islice(theirs(text for text in itertools.cycle(TEXTS)), 5))
    assert_same(list(itertools.islice(ours(text for text in itertools.cycle(TEXTS)), 5)), wanted)
