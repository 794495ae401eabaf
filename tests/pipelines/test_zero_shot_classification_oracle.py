"""Zero-shot classification beside Transformers' own, on tiny random checkpoints."""

import math

import pytest

from jaxpipe.pipelines import KeyDataset, pipeline

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

TEXTS = ["the cat sat on the mat", "a dog ate", "hello world again and on and on " * 6, "the rat"]
LABELS = ["dog", "a cat on a mat", "hello world"]


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory, backend_of):
    """(Transformers' pipeline, ours) of a checkpoint, made once."""
    import torch
    import transformers as theirs
    from tokenizers import processors

    root, made = tmp_path_factory.mktemp("nli"), {}
    common = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    bart = {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 48, "init_std": 0.5,
        "decoder_start_token_id": 1, "forced_eos_token_id": None,
    }  # fmt: skip
    names = {"bert": ("contradiction", "neutral", "Entailment"), "bart": ("ENTAILMENT", "neutral", "contradiction")}

    def write(name):
        labels = names.get(name, ("a", "b", "c"))
        label2id = {label: index for index, label in enumerate(labels)}
        given = {**common, "id2label": dict(enumerate(labels)), "label2id": label2id}
        if name == "bart":
            config = theirs.BartConfig(**given, **bart)
        else:
            config = theirs.BertConfig(**given, **sizes, max_position_embeddings=48, initializer_range=0.5)
        torch.manual_seed(1)
        model = theirs.AutoModelForSequenceClassification.from_config(config)
        model.save_pretrained(root / name)
        backend = backend_of()
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
        tokenizer = theirs.PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=40,
            model_input_names=["input_ids", "attention_mask"],
        )  # fmt: skip
        tokenizer.save_pretrained(root / name)

    def pair(name):
        if name not in made:
            write(name)
            path, task = str(root / name), "zero-shot-classification"
            made[name] = theirs.pipeline(task, model=path, device="cpu"), pipeline(task, model=path, device_map="cpu")
        return made[name]

    return pair


def assert_same(got, wanted):
    assert type(got) is type(wanted)
    if isinstance(wanted, list):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert_same(one, other)
        return
    assert list(got) == list(wanted)
    assert (got["sequence"], got["labels"]) == (wanted["sequence"], wanted["labels"])
    assert len(got["scores"]) == len(wanted["scores"])
    for one, other in zip(got["scores"], wanted["scores"], strict=True):
        assert type(one) is type(other) is float
        assert math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-4)


FORMS = {
    "text": lambda: TEXTS[0],
    "long text": lambda: TEXTS[2],
    "list of one": lambda: TEXTS[:1],
    "list": lambda: TEXTS,
    "generator": lambda: (text for text in TEXTS),
    "column": lambda: KeyDataset([{"text": text} for text in TEXTS], "text"),
}
PARAMETERS = {
    "labels": {"candidate_labels": LABELS},
    "tuple": {"candidate_labels": tuple(LABELS)},
    "commas": {"candidate_labels": "dog, a cat on a mat ,hello world,"},
    "one label": {"candidate_labels": "dog"},
    "one in a list": {"candidate_labels": ["a dog, a cat"]},
    "twice": {"candidate_labels": ["dog", "cat", "dog"]},
    "several hold": {"candidate_labels": LABELS, "multi_label": True},
    "one holds": {"candidate_labels": LABELS, "multi_label": False},
    "template": {"candidate_labels": LABELS, "hypothesis_template": "it is {}"},
    "numbered": {"candidate_labels": LABELS, "hypothesis_template": "{0} and {0} again", "multi_label": True},
    "long label": {"candidate_labels": ["dog", "the cat sat on the mat and ate a dog again and again " * 3]},
}


def run(pipe, inputs, *args, **arguments):
    result = pipe(inputs, *args, **arguments)
    return result if isinstance(result, (list, dict)) else list(result)


@pytest.mark.parametrize("parameters", [name for name in PARAMETERS if name != "long label"])
@pytest.mark.parametrize("name", ["bert", "bart", "unnamed"])
def test_parameters(pair_of, name, parameters):
    theirs, ours = pair_of(name)
    arguments = PARAMETERS[parameters]
    assert_same(run(ours, TEXTS, **arguments), run(theirs, TEXTS, **arguments))


@pytest.mark.parametrize("parameters", ["labels", "several hold"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(pair_of, form, parameters):
    from transformers.pipelines.pt_utils import KeyDataset as TheirKeyDataset

    theirs, ours = pair_of("bart")
    arguments, inputs = PARAMETERS[parameters], FORMS[form]()
    if form == "column":
        inputs = TheirKeyDataset(inputs.dataset, inputs.key)
    assert_same(run(ours, FORMS[form](), **arguments), run(theirs, inputs, **arguments))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_our_batches_are_their_single_rows(pair_of, batch_size):
    theirs, ours = pair_of("bart")
    wanted = theirs(TEXTS, candidate_labels=LABELS)
    assert_same(ours(TEXTS, candidate_labels=LABELS, batch_size=batch_size), wanted)


def test_labels_by_position_and_at_construction(pair_of):
    import transformers

    theirs, ours = pair_of("bert")
    assert_same(ours(TEXTS[0], LABELS), theirs(TEXTS[0], LABELS))
    assert_same(ours(TEXTS[0], "dog,cat", multi_label=True), theirs(TEXTS[0], "dog,cat", multi_label=True))
    given = {"candidate_labels": LABELS, "multi_label": True, "hypothesis_template": "a {}"}
    task = "zero-shot-classification"
    theirs = transformers.pipeline(task, model=theirs.model, tokenizer=theirs.tokenizer, device="cpu", **given)
    ours = pipeline(task, model=ours.model, tokenizer=ours.tokenizer, **given)
    for call in ({}, {"multi_label": False}, {"candidate_labels": ["hello", "dog"]}, {"hypothesis_template": "the {}"}):
        assert_same(ours(TEXTS, **call), theirs(TEXTS, **call))


def test_hypotheses_that_are_too_long(pair_of):
    """Both leave such a pair as it is, and the model has no positions for it."""
    theirs, ours = pair_of("bert")
    with pytest.raises(ValueError, match=r"\d+ tokens, but the model has learned positions for 48; shorten"):
        ours(TEXTS[0], **PARAMETERS["long label"])
    with pytest.raises((IndexError, RuntimeError)):
        theirs(TEXTS[0], **PARAMETERS["long label"])
    # Within the positions, but with no room for a text under model_max_length.
    label = "a"
    while len(ours.tokenizer(f"This example is {label}.", add_special_tokens=False)["input_ids"]) < 38:
        label += " again"
    assert 40 < len(ours.tokenizer("a dog", f"This example is {label}.")["input_ids"]) <= 48
    arguments = {"candidate_labels": [label, "dog"]}
    assert_same(ours("a dog", **arguments), theirs("a dog", **arguments))


@pytest.mark.parametrize(
    ("inputs", "args", "arguments", "error"),
    [
        ("", (), {"candidate_labels": "dog"}, ValueError),
        (None, (), {"candidate_labels": "dog"}, TypeError),
        ("a", (), {"candidate_labels": []}, ValueError),
        ("a", (), {"candidate_labels": ""}, ValueError),
        ("a", (), {"candidate_labels": None}, TypeError),
        ("a", (), {}, TypeError),
        ("a", (), {"candidate_labels": "dog", "hypothesis_template": "none"}, ValueError),
        ("a", ("dog", "cat"), {}, ValueError),
        ("a", ("dog",), {"candidate_labels": "dog"}, ValueError),
    ],
)
def test_errors_are_of_the_same_kind(pair_of, inputs, args, arguments, error):
    for pipe in pair_of("bert"):
        with pytest.raises(error):
            pipe(inputs, *args, **arguments)


def test_entailment(pair_of):
    for name, wanted in (("bert", 2), ("bart", 0), ("unnamed", -1)):
        theirs, ours = pair_of(name)
        assert ours.entailment_id == theirs.entailment_id == wanted
