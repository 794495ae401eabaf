"""Pipelines of the user's own: registered, saved, and back, without running what a checkpoint brings."""

import json
import logging

import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModel, AutoModelForSequenceClassification
from jaxpipe.pipelines import PIPELINE_REGISTRY, Pipeline, TextGenerationPipeline, pipeline

TASK = "pair-classification"
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


class PairPipeline(Pipeline):
    """Classifies pairs ``{"first": ..., "second": ...}``; its result is a plain dictionary."""

    def _sanitize_parameters(self, digits=None):
        return {}, {}, {} if digits is None else {"digits": digits}

    def preprocess(self, pair):
        encoded = self.tokenizer(pair["first"], pair["second"], return_tensors="np")
        return {name: np.asarray(value, np.int32) for name, value in encoded.items()}

    def _forward(self, model_inputs):
        return {"logits": self.model(**model_inputs).logits}

    def postprocess(self, outputs, digits=6):
        return [round(float(value), digits) for value in outputs["logits"][0]]


PAIRS = [{"first": "the cat", "second": "sat"}, {"first": "a dog ate", "second": "the rat on the mat"}]


@pytest.fixture
def registered():
    """Registers tasks for one test: ``registered(task=TASK, **arguments)``."""
    added = []

    def register(task=TASK, pipeline_class=PairPipeline, **arguments):
        arguments = {"model_class": AutoModelForSequenceClassification, **arguments}
        PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, **arguments)
        added.append(task)

    def forget():
        while added:
            del PIPELINE_REGISTRY.supported_tasks[added.pop()]

    register.forget = forget
    yield register
    forget()


@pytest.fixture(scope="module")
def model():
    config = AutoConfig.for_model("bert", **SIZES, vocab_size=300, initializer_range=0.5, max_position_embeddings=40)
    return AutoModelForSequenceClassification.from_config(config, dtype="float32", device_map="cpu")


@pytest.fixture
def saved(tmp_path, model, tokenizer, registered):
    """A directory that a registered pipeline wrote, and what that pipeline says to `PAIRS`."""
    registered(default=("some/model", "abc"), type="text")
    pipe = pipeline(TASK, model=model, tokenizer=tokenizer)
    pipe.save_pretrained(tmp_path)
    answers = pipe(PAIRS)
    assert np.ptp(answers) > 1e-3
    return tmp_path, answers


def test_the_config_names_the_pipeline(saved):
    directory, _ = saved
    note = {
        "impl": "test_custom.PairPipeline",
        "pt": ["AutoModelForSequenceClassification"],
        "default": {"model": ["some/model", "abc"]},
        "type": "text",
    }
    config = json.loads((directory / "config.json").read_text())
    assert config["custom_pipelines"] == {TASK: note}
    assert config["model_type"] == "bert" and config["hidden_size"] == 16
    assert not list(directory.glob("*.py")), "no code is saved"


@pytest.mark.parametrize("arguments", [{}, {"task": TASK}, {"pipeline_class": PairPipeline}])
def test_what_is_registered_comes_back(saved, caplog, arguments):
    directory, answers = saved
    with caplog.at_level(logging.WARNING):
        pipe = pipeline(model=directory, device_map="cpu", **arguments)
    assert (type(pipe), pipe.task) == (PairPipeline, TASK)
    np.testing.assert_allclose(pipe(PAIRS), answers, atol=1e-5)
    assert "custom_pipelines" not in caplog.text, "the key is known to configs"


@pytest.mark.parametrize("task", [None, TASK])
@pytest.mark.parametrize("trust", [None, True, False])
def test_what_is_not_registered_says_how_to(saved, registered, task, trust):
    directory, _ = saved
    registered.forget()
    said = (
        rf"'{TASK}', test_custom.PairPipeline, which is not registered .* runs no code of a checkpoint.*"
        rf"register_pipeline\('{TASK}', pipeline_class=PairPipeline, model_class=AutoModelForSequenceClassification\)"
    )
    with pytest.raises(ValueError, match=said):
        pipeline(task, model=directory, trust_remote_code=trust)


def test_pipeline_class_does_without_registering(saved, registered):
    directory, answers = saved
    registered.forget()
    pipe = pipeline(model=directory, pipeline_class=PairPipeline, device_map="cpu")
    assert (type(pipe), pipe.task) == (PairPipeline, TASK)
    np.testing.assert_allclose(pipe(PAIRS), answers, atol=1e-5)


def test_another_task_may_be_asked_for(saved, registered):
    directory, _ = saved
    registered.forget()
    pipe = pipeline("text-classification", model=directory, device_map="cpu")
    assert pipe.task == "text-classification" and type(pipe) is not PairPipeline


def test_a_loaded_model_remembers(saved, tokenizer):
    directory, answers = saved
    model = AutoModelForSequenceClassification.from_pretrained(directory, device_map="cpu")
    pipe = pipeline(model=model, tokenizer=tokenizer)
    assert pipe.task == TASK
    np.testing.assert_allclose(pipe(PAIRS), answers, atol=1e-5)


def test_an_unknown_task_is_one_all_the_same(saved, tmp_path):
    directory, _ = saved
    with pytest.raises(KeyError, match="Did you mean 'pair-classification'"):
        pipeline("pair-clasification", model=directory)
    with pytest.raises(KeyError, match="Did you mean 'fill-mask'"):
        pipeline("fil-mask", model=str(tmp_path / "nowhere"))


def test_several_tasks_have_to_be_told_apart(saved, registered):
    directory, _ = saved
    registered("other")
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["custom_pipelines"]["other"] = config["custom_pipelines"][TASK]
    path.write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=r"names several tasks, \['other', 'pair-classification'\]; give one"):
        pipeline(model=directory)
    assert pipeline("other", model=directory, device_map="cpu").task == "other"


def test_a_class_of_two_tasks_notes_the_one_that_it_runs(tmp_path, model, tokenizer, registered):
    registered()
    registered("other")
    pipeline("other", model=model, tokenizer=tokenizer).save_pretrained(tmp_path)
    assert list(json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]) == ["other"]


def test_another_class_of_that_task_is_said(saved, registered, caplog):
    class Renamed(PairPipeline):
        pass

    directory, _ = saved
    registered.forget()
    registered(pipeline_class=Renamed)
    pipe = pipeline(model=directory, device_map="cpu")
    assert type(pipe) is Renamed
    assert (
        "was saved by a pipeline PairPipeline; the task 'pair-classification' is registered with Renamed" in caplog.text
    )


def test_pipelines_of_jaxpipe_note_nothing(tmp_path, model, tokenizer, registered):
    """Not even where their class was registered under one more name."""
    registered("my-generation", TextGenerationPipeline)
    pipe = pipeline(
        "feature-extraction", model=AutoModel.from_config(model.config, dtype="float32"), tokenizer=tokenizer
    )
    pipe.save_pretrained(tmp_path)
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())


def test_one_more_name_of_a_class_of_jaxpipe(model_of, tokenizer, registered):
    from jaxpipe.pipelines.custom import _tasks_of

    registered("my-generation", TextGenerationPipeline, model_class=None)
    mine = pipeline("my-generation", model=model_of(), tokenizer=tokenizer)
    assert _tasks_of(mine) == {"my-generation": {"impl": "text_generation.TextGenerationPipeline", "pt": []}}
    assert _tasks_of(pipeline("text-generation", model=model_of(), tokenizer=tokenizer)) == {}


def test_a_note_that_is_none_is_left_alone(saved):
    directory, _ = saved
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "custom_pipelines": "rm -rf"}))
    assert pipeline(model=directory, device_map="cpu").task == "text-classification"


@pytest.mark.oracle
def test_the_note_is_that_of_transformers(saved, tmp_path):
    """Transformers finds the task, the Auto class and the name of the class in what jaxpipe wrote."""
    from transformers import AutoConfig as Oracle
    from transformers.pipelines import clean_custom_task

    directory, _ = saved
    noted = Oracle.from_pretrained(directory).custom_pipelines
    entry, _ = clean_custom_task(noted[TASK])
    assert entry["impl"] == "test_custom.PairPipeline"
    assert [item.__name__ for item in entry["pt"]] == ["AutoModelForSequenceClassification"]
