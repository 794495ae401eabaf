"""Repositories of sentence-transformers: the same vectors as sentence-transformers, and refusals by name."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxpipe.checkpoint.resolve import resolve
from jaxpipe.common.errors import CheckpointError
from jaxpipe.pipelines import FeatureExtractionPipeline, SentenceSimilarityPipeline, pipeline
from tests.pipelines.frozen.sentence_encoders import ITEM, REPOSITORIES, TEXTS, write_repository

FROZEN = json.loads((Path(__file__).parent / "frozen/sentence_modules.json").read_text())


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The directory of a repository, made once."""
    root, made = tmp_path_factory.mktemp("repositories"), {}

    def directory(name):
        if name not in made:
            made[name] = write_repository(root / name, name)
        return made[name]

    return directory


class _WithCheckpoint:
    """A loaded model whose other files lie elsewhere: what it compiled serves several repositories."""

    def __init__(self, model, directory):
        self._model = model
        self.checkpoint = resolve(directory)

    def __getattr__(self, name):
        return getattr(self._model, name)

    def __call__(self, *args, **inputs):
        return self._model(*args, **inputs)


@pytest.fixture(scope="module")
def extractor(repository):
    """A feature-extraction pipeline of a repository, made once; models of a family have the same weights."""
    made = {}
    loaded = {"bert": "mean and max", "roberta": "weightedmean"}

    def pipe(name):
        if name not in made:
            first = loaded[REPOSITORIES[name].get("family", "bert")]
            if name == first:
                made[name] = pipeline("feature-extraction", model=repository(name), device_map="cpu")
            else:
                base = pipe(first)
                model = _WithCheckpoint(base.model, repository(name))
                made[name] = FeatureExtractionPipeline(model, base.tokenizer)
        return made[name]

    return pipe


@pytest.mark.parametrize("name", REPOSITORIES)
def test_vectors_are_those_of_sentence_transformers(extractor, name):
    got = extractor(name)(TEXTS, pooling="auto")
    np.testing.assert_allclose(got, FROZEN["embeddings"][name], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(extractor(name)(TEXTS[2], pooling="auto"), got[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", REPOSITORIES)
def test_similarities_are_those_of_sentence_transformers(extractor, name):
    base = extractor(name)
    compare = SentenceSimilarityPipeline(base.model, base.tokenizer)
    np.testing.assert_allclose(compare(ITEM), FROZEN["similarities"][name], atol=1e-5)
    # One vector of 16 or more numbers has length 1 only by chance, so this tells a cosine from a product.
    assert all(-1 <= value <= 1 for value in compare(ITEM))


@pytest.mark.parametrize("name", ["mean", "weightedmean", "mean and max", "prompt"])
def test_saving_keeps_the_modules(extractor, tmp_path, name):
    pipe = extractor(name)
    pipe.save_pretrained(tmp_path)
    if name == "mean and max":
        again = pipeline("feature-extraction", model=tmp_path, device_map="cpu", pooling="auto")
    else:
        again = FeatureExtractionPipeline(_WithCheckpoint(pipe.model, tmp_path), pipe.tokenizer, pooling="auto")
    np.testing.assert_allclose(again(TEXTS), pipe(TEXTS, pooling="auto"), rtol=1e-5, atol=1e-6)
    # Saving where the files lie already leaves them as they are.
    again.save_pretrained(tmp_path)
    np.testing.assert_allclose(again(TEXTS[0]), pipe(TEXTS[0], pooling="auto"), rtol=1e-5, atol=1e-6)


def test_normalisation_can_be_chosen(extractor):
    pipe = extractor("mean")
    raw = np.array(pipe(TEXTS, pooling="auto", normalize=False))
    assert (np.abs(np.linalg.norm(raw, axis=1) - 1) > 0.1).all()
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(pipe(TEXTS, pooling="auto"), unit, atol=1e-6)
    np.testing.assert_allclose(pipe(TEXTS, pooling="auto", normalize=True), unit, atol=1e-6)
    plain = np.array(extractor("cls")(TEXTS, pooling="auto"))
    unit = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(extractor("cls")(TEXTS, pooling="auto", normalize=True), unit, atol=1e-6)


def test_prompts(extractor):
    pipe = extractor("mean_sqrt_len_tokens")
    prompt = REPOSITORIES["mean_sqrt_len_tokens"]["settings"]["prompts"]["query"]
    bare = pipe(TEXTS[0], pooling="auto", prompt="")
    assert pipe(TEXTS[0], pooling="auto") == pipe(prompt + TEXTS[0], pooling="auto", prompt="") != bare
    assert pipe(TEXTS[0], pooling="auto", prompt_name="document") == bare
    assert pipe(TEXTS[0], pooling="mean") != pipe(TEXTS[0], pooling="mean", prompt_name="query")
    assert pipe(TEXTS[0], pooling="mean", prompt="a dog ") == pipe("a dog " + TEXTS[0], pooling="mean")
    named = FeatureExtractionPipeline(pipe.model, pipe.tokenizer, pooling="auto", prompt_name="document")
    assert named(TEXTS[0]) == bare != named(TEXTS[0], prompt=prompt)
    with pytest.raises(ValueError, match=r"none of the prompts .*'document', 'query'.*Did you mean 'query'"):
        pipe("a", prompt_name="querry")
    with pytest.raises(ValueError, match="give one"):
        pipe("a", prompt_name="query", prompt="a")


def test_a_prompt_that_is_not_pooled_needs_company(extractor):
    pipe = extractor("prompt")
    # The end token is left of an empty text.
    assert len(pipe("", pooling="auto")) == 32
    with pytest.raises(ValueError, match="no tokens beside those of the prompt"):
        pipe("a", pooling="auto", tokenize_kwargs={"max_length": 3})


def test_lengths(extractor):
    pipe = extractor("mean")
    long = " ".join(["the cat"] * 40)
    assert pipe(long, pooling="auto") == pipe("the cat " * 30, pooling="auto")
    assert pipe(long, pooling="auto") != pipe(long, pooling="auto", tokenize_kwargs={"max_length": 7})
    with pytest.raises(ValueError, match="positions"):
        pipe(long, pooling="auto", truncation=False)
    with pytest.raises(ValueError, match="positions"):
        pipe(long, pooling="mean")
    # Where the repository does not say, the tokenizer's limit holds.
    assert len(extractor("cls")(long, pooling="auto")) == 32


def _change(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _modules(directory, change):
    path = directory / "modules.json"
    listing = json.loads(path.read_text())
    change(listing)
    path.write_text(json.dumps(listing))


CASES = {
    "remote code": (
        lambda d: _modules(d, lambda m: m[0].update(type="custom_st.Transformer")),
        ValueError,
        "custom_st.Transformer.*never run",
    ),
    "router": (
        lambda d: _modules(d, lambda m: m[0].update(type="sentence_transformers.models.Router")),
        ValueError,
        "models.Router.*must be a Transformer",
    ),
    "lstm": (
        lambda d: _modules(d, lambda m: m.insert(1, {"path": "1_L", "type": "sentence_transformers.models.LSTM"})),
        ValueError,
        "'1_L' of type 'sentence_transformers.models.LSTM' cannot be used: LSTM is not supported",
    ),
    "dense before pooling": (
        lambda d: _modules(d, lambda m: m.insert(1, m.pop(2))),
        ValueError,
        "Dense is not supported in this place",
    ),
    "no pooling": (lambda d: _modules(d, lambda m: m.__delitem__(slice(1, None))), ValueError, "no module Pooling"),
    "no path": (lambda d: _modules(d, lambda m: m[1].pop("path")), CheckpointError, "entry 1 must have"),
    "outside": (lambda d: _modules(d, lambda m: m[1].update(path="../x")), CheckpointError, "leads out"),
    "not a list": (lambda d: (d / "modules.json").write_text("{}"), CheckpointError, "JSON list"),
    "no config": (lambda d: (d / "1_Pooling/config.json").unlink(), CheckpointError, "'1_Pooling' of Pooling has no"),
    "unknown switch": (
        lambda d: _change(d / "1_Pooling/config.json", pooling_mode_median_tokens=True),
        ValueError,
        "'pooling_mode_median_tokens' is no known way of pooling",
    ),
    "unknown mode": (
        lambda d: _change(d / "1_Pooling/config.json", pooling_mode="means"),
        ValueError,
        "pooling_mode 'means' is not known.*Did you mean 'mean'",
    ),
    "residual": (lambda d: _change(d / "2_Dense/config.json", use_residual=True), ValueError, "use_residual"),
    "activation": (
        lambda d: _change(d / "2_Dense/config.json", activation_function="os.system"),
        ValueError,
        "activation 'os.system' is none of",
    ),
    "other input": (
        lambda d: _change(d / "2_Dense/config.json", module_input_name="token_embeddings"),
        ValueError,
        "module_input_name is 'token_embeddings'",
    ),
    "shapes": (lambda d: _change(d / "2_Dense/config.json", out_features=5), CheckpointError, "2_Dense.*shapes"),
    "length": (
        lambda d: _change(d / "sentence_bert_config.json", max_seq_length="many"),
        CheckpointError,
        "max_seq_length='many'",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refusals(repository, extractor, tmp_path, case):
    change, error, text = CASES[case]
    pipe = extractor("weightedmean")
    directory = write_repository(tmp_path, "weightedmean")
    change(directory)
    changed = FeatureExtractionPipeline(_WithCheckpoint(pipe.model, directory), pipe.tokenizer)
    with pytest.raises(error, match=text):
        changed("a", pooling="auto")
    # A pooling that is given by name needs none of it.
    assert len(changed("a", pooling="cls")) == 32


def test_a_dense_module_that_does_not_fit(extractor, tmp_path):
    pipe = extractor("weightedmean")
    directory = write_repository(tmp_path, "weightedmean")
    _change(directory / "1_Pooling/config.json", pooling_mode=["mean", "max"])
    changed = FeatureExtractionPipeline(_WithCheckpoint(pipe.model, directory), pipe.tokenizer)
    with pytest.raises(ValueError, match="takes 32 numbers, but is given 64"):
        changed("a", pooling="auto")


def test_broken_prompts(extractor, tmp_path):
    pipe = extractor("prompt")
    directory = write_repository(tmp_path, "prompt")
    changed = FeatureExtractionPipeline(_WithCheckpoint(pipe.model, directory), pipe.tokenizer)
    _change(directory / "config_sentence_transformers.json", default_prompt_name="x")
    with pytest.raises(CheckpointError, match="default_prompt_name='x'"):
        changed("a", pooling="auto")
    _change(directory / "config_sentence_transformers.json", prompts={"query": 3})
    with pytest.raises(CheckpointError, match="prompts must hold texts by name"):
        changed("a", prompt_name="query")
