"""Fill-mask: nesting, several masks, targets and errors, on a model that is arithmetic; compilations on a real one."""

import itertools
import json
import logging
import pickle
import types

import jax
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForMaskedLM
from jaxpipe.common.outputs import LogitsOutput
from jaxpipe.pipelines import FillMaskPipeline, KeyDataset, PipelineException, pipeline
from jaxpipe.pipelines import fill_mask as module
from jaxpipe.tokenization.tokenizer import Tokenizer

TEXTS = ["the <mask>", "a <mask> ate the rat and sat", "<mask>", "hello world <mask> a dog on the mat"]
TWO = "the <mask> sat on <mask>"
VOCABULARY = 320


@pytest.fixture(scope="module")
def tokenizer(backend_of):
    backend = backend_of()
    backend.add_special_tokens(["<mask>"])
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    return Tokenizer(backend, {**named, "model_max_length": 64})


class MaskModel:
    """Gives logits that depend on a row's own unmasked tokens, the position and the token alone."""

    name_or_path = ""

    def __init__(self, broken=None, limit=None):
        self.config = types.SimpleNamespace(model_type="arithmetic", longest_input=lambda: limit)
        self.broken = broken
        self.dtype, self.mesh = np.dtype(np.float32), None
        self.batches = []

    def __call__(self, input_ids, attention_mask, **_):
        self.batches.append(input_ids.shape)
        total = (input_ids * attention_mask).sum(axis=1)[:, None, None]
        position = np.arange(input_ids.shape[1])[None, :, None]
        logits = 5 * np.sin((total % 97 + 13 * position + 1) * (1.0 + np.arange(VOCABULARY)))
        if self.broken is not None:
            logits[input_ids[:, 0] == self.broken] = np.nan
        return LogitsOutput(jax.numpy.asarray(logits, np.float32))


@pytest.fixture
def filler(tokenizer):
    return FillMaskPipeline(MaskModel(), tokenizer)


def probabilities(filler, text):
    """Of every token at every mask."""
    ids = filler.tokenizer(text, return_tensors="np")["input_ids"]
    logits = np.asarray(filler.model(ids, np.ones_like(ids)).logits[0], np.float64)
    raised = np.exp(logits[ids[0] == filler.tokenizer.mask_token_id])
    return raised / raised.sum(axis=-1, keepdims=True)


# ---- nesting


def test_one_mask(filler):
    records = filler("the <mask>")
    (chances,) = probabilities(filler, "the <mask>")
    tokens = np.argsort(-chances)[:5]
    assert [record["token"] for record in records] == tokens.tolist()
    assert [record["score"] for record in records] == pytest.approx(chances[tokens], rel=1e-5)
    for record in records:
        assert list(record) == ["score", "token", "token_str", "sequence"]
        assert record["token_str"] == filler.tokenizer.decode([record["token"]])
        assert record["sequence"] == "the " + record["token_str"] * (record["token"] > 2)
    assert json.dumps(records)


def test_several_masks(filler):
    first, second = filler(TWO, top_k=2)
    chances = probabilities(filler, TWO)
    assert [record["token"] for record in first] == np.argsort(-chances[0])[:2].tolist()
    assert [record["token"] for record in second] == np.argsort(-chances[1])[:2].tolist()
    assert first[0]["sequence"] == TWO.replace("<mask>", first[0]["token_str"], 1)
    assert second[0]["sequence"] == f"the <mask> sat on {second[0]['token_str']}"


def test_forms(filler):
    alone = [filler(text) for text in TEXTS]
    assert filler(TEXTS) == alone
    assert filler(tuple(TEXTS)) == alone
    assert filler([]) == []
    assert list(filler(iter(TEXTS))) == alone
    assert list(filler(KeyDataset([{"t": text} for text in TEXTS], "t"))) == alone
    assert list(filler(iter(TEXTS[:1]))) == alone[:1]
    assert list(itertools.islice(filler(itertools.cycle(TEXTS)), 5)) == [*alone, alone[0]]


def test_a_list_of_one_text_gives_the_result_itself(filler):
    assert filler(["the <mask>"]) == filler(("the <mask>",)) == filler("the <mask>")
    assert filler([TWO]) == filler(TWO)


def test_words(filler):
    words = {"tokenizer_kwargs": {"is_split_into_words": True}}
    assert filler([["the", " <mask>"]], **words) == filler("the <mask>")
    with pytest.raises(TypeError, match="is_split_into_words"):
        filler([["the", " <mask>"]])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batches_change_nothing(filler, batch_size):
    texts = [*TEXTS, TWO, "<mask>" * 5, "a <mask><mask><mask>"]
    assert filler(texts, batch_size=batch_size) == [filler(text) for text in texts]


def test_only_logits_at_masks_come_to_the_host(filler, monkeypatch):
    taken = []
    at = module._at

    def noted(logits, positions):
        taken.append(at(logits, positions).shape)
        return at(logits, positions)

    monkeypatch.setattr(module, "_at", noted)
    filler([*TEXTS, TWO], batch_size=8)
    assert filler.model.batches[0][1] > 2
    assert taken == [(8, 2, VOCABULARY)]


# ---- parameters


def test_top_k(filler, tokenizer):
    every = filler("the <mask>", top_k=VOCABULARY)
    assert len(every) == VOCABULARY
    assert sum(record["score"] for record in every) == pytest.approx(1)
    assert filler("the <mask>", top_k=np.int32(3)) == every[:3]
    assert FillMaskPipeline(filler.model, tokenizer, top_k=2)("the <mask>") == every[:2]


def test_targets(filler, tokenizer, caplog):
    (chances,) = probabilities(filler, "the <mask>")
    cat, hello = tokenizer.get_vocab()["cat"], tokenizer.get_vocab()["hello"]
    records = filler("the <mask>", targets=["cat", "hello", "cat"])
    assert {record["token"]: record["score"] for record in records} == pytest.approx(
        {cat: chances[cat], hello: chances[hello]}, rel=1e-5
    )
    assert records[0]["score"] > records[1]["score"]
    assert filler("the <mask>", targets=["cat", "hello"], top_k=1) == records[:1]
    assert [r["token"] for r in filler("the <mask>", targets="cat")] == [cat]
    assert FillMaskPipeline(filler.model, tokenizer, targets=("cat", "hello"))("the <mask>") == records
    assert [[r["token"] for r in mask] for mask in filler(TWO, targets="cat")] == [[cat], [cat]]
    assert not caplog.records


def test_targets_outside_the_vocabulary(filler, tokenizer, caplog):
    with caplog.at_level(logging.WARNING, logger="jaxpipe"):
        records = filler("the <mask>", targets=["catmat", ""])
    assert [record["token"] for record in records] == tokenizer("catmat")["input_ids"][:1]
    first, second = (record.getMessage() for record in caplog.records)
    assert "'catmat' is not in the model's vocabulary; its first token" in first
    assert "'' is not in the model's vocabulary and has no tokens; it is left out" in second


def test_padding_and_truncation(filler):
    padded = {"tokenizer_kwargs": {"padding": "max_length", "max_length": 12}}
    assert filler("the <mask>", **padded) == filler("the <mask>")
    cut = {"tokenizer_kwargs": {"truncation": True, "max_length": 2}}
    assert filler("<mask> the cat sat", **cut) == filler("<mask> the")
    with pytest.raises(PipelineException, match="see that truncation leaves it in"):
        filler("the cat sat <mask>", **cut)


def test_given_kwargs_stay_as_they_are(filler):
    given = {"truncation": True}
    filler("the <mask>", tokenizer_kwargs=given)
    assert given == {"truncation": True}


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"topk": 1}, TypeError, r"'topk' is no parameter of .*tokenizer_kwargs"),
        ({"truncation": True}, TypeError, "go to tokenizer_kwargs="),
        ({"tokenizer_kwargs": {"truncaton": True}}, TypeError, "Did you mean 'truncation'"),
        ({"tokenizer_kwargs": {"return_tensors": "np"}}, ValueError, "chooses its arrays"),
        ({"tokenizer_kwargs": 3}, TypeError, "tokenizer_kwargs= takes a mapping"),
        ({"top_k": 0}, ValueError, "at least 1"),
        ({"top_k": 2.0}, ValueError, "at least 1"),
        ({"targets": []}, ValueError, r"targets=\[\] names no token"),
        ({"targets": [""]}, ValueError, "names no token"),
        ({"targets": ["cat", 3]}, TypeError, "targets= holds int 3"),
        ({"targets": 3}, TypeError, "targets= takes a word"),
    ],
)
def test_wrong_arguments(filler, tokenizer, arguments, error, text):
    with pytest.raises(error, match=text):
        filler("the <mask>", **arguments)
    with pytest.raises(error, match=text):
        FillMaskPipeline(MaskModel(), tokenizer, **arguments)


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        (None, TypeError, "inputs is None; expected a text"),
        (["<mask>", 3], TypeError, r"inputs\[1\] is int 3"),
        ([{"text": "<mask>"}], TypeError, "KeyDataset"),
        ("", ValueError, "has no tokens"),
        ("the cat", PipelineException, r"No mask_token \(<mask>\) found on the input str 'the cat'"),
    ],
)
def test_wrong_inputs(filler, inputs, error, text):
    with pytest.raises(error, match=text):
        filler(inputs)


def test_errors_name_their_item(filler, tokenizer):
    with pytest.raises(PipelineException) as caught:
        filler(["the <mask>", "the cat"])
    assert caught.value.__notes__ == ["Raised for item 1 of the inputs."]
    assert (caught.value.task, caught.value.model) == ("fill-mask", "arithmetic")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.task, copy.model, str(copy)) == ("fill-mask", "arithmetic", str(caught.value))
    short = FillMaskPipeline(MaskModel(limit=4), tokenizer)
    with pytest.raises(ValueError, match="positions for 4") as long:
        short(["the <mask>", "a dog ate the rat and sat on <mask>"])
    assert long.value.__notes__ == ["Raised for item 1 of the inputs."]
    broken = FillMaskPipeline(MaskModel(broken=tokenizer("hello")["input_ids"][0]), tokenizer)
    with pytest.raises(ValueError, match="gave nan as a score of a token") as nan:
        broken(TEXTS)
    assert nan.value.__notes__ == ["Raised for item 3 of the inputs."]


def test_more_tokens_than_the_model_has(filler, tokenizer, backend_of):
    with pytest.raises(ValueError, match="top_k=321 is more than the 320 tokens"):
        filler("the <mask>", top_k=VOCABULARY + 1)
    backend = backend_of()
    backend.add_special_tokens(["<mask>", *(f"<{number}>" for number in range(30))])
    large = FillMaskPipeline(MaskModel(), Tokenizer(backend, {"mask_token": "<mask>"}))
    with pytest.raises(ValueError, match=f"the id {len(large.tokenizer) - 1} in the tokenizer, but the model has 320"):
        large("the <mask>", targets="<29>")


def test_tokenizers_and_models_that_do_not_serve(filler, tokenizer, tokenizer_of):
    with pytest.raises(PipelineException, match="does not define a `mask_token`"):
        FillMaskPipeline(MaskModel(), tokenizer_of())
    with pytest.raises(ValueError, match="tokenizer="):
        FillMaskPipeline(MaskModel())
    assert issubclass(PipelineException, ValueError)

    class Other(MaskModel):
        def __call__(self, *args, **kwargs):
            return LogitsOutput(super().__call__(*args, **kwargs).logits[:, 0])

    with pytest.raises(TypeError, match=r"Other gives logits of shape .*AutoModelForMaskedLM"):
        FillMaskPipeline(Other(), tokenizer)("the <mask>")


def test_tokenizers_without_pad_token(filler, backend_of):
    backend = backend_of()
    backend.add_special_tokens(["<mask>"])
    bare = FillMaskPipeline(MaskModel(), Tokenizer(backend, {"mask_token": "<mask>"}))
    results = zip(bare(TEXTS, batch_size=4), filler(TEXTS), strict=True)
    assert all([r["token"] for r in got] == [r["token"] for r in wanted] for got, wanted in results)


# ---- a real model


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}


def bert(**placed):
    config = AutoConfig.for_model("bert", **SIZES, vocab_size=304, initializer_range=0.5, max_position_embeddings=40)
    return AutoModelForMaskedLM.from_config(config, dtype="float32", seed=0, **placed)


@pytest.fixture(scope="module")
def real(tokenizer):
    return pipeline("fill-mask", model=bert(device_map="cpu"), tokenizer=tokenizer)


def test_new_data_of_the_same_buckets_do_not_compile(real):
    compiled = []

    def note(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    real(["the <mask>", TWO, "<mask> sat", "the cat <mask>"], batch_size=4)
    assert compiled
    before = len(compiled)
    real(["<mask> a dog ate the", "<mask>", "hello <mask> <mask>"], batch_size=4)
    real(["a <mask> rat", "<mask>" * 2, "<mask> the", TWO], batch_size=4, top_k=3, targets=["cat", "dog"])
    assert len(compiled) == before


def test_meshes(real, tokenizer):
    texts = ["the <mask>", "hello <mask> again a dog", "<mask> sat", TWO]
    placed = pipeline("fill-mask", model=bert(device_map={"data": 2, "tensor": 2}), tokenizer=tokenizer)
    for got, wanted in zip(placed(texts, batch_size=4), real(texts, batch_size=4), strict=True):
        got, wanted = (itertools.chain(*r) if isinstance(r[0], list) else r for r in (got, wanted))
        for ours, theirs in zip(got, wanted, strict=True):
            assert ours["token"] == theirs["token"]
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
