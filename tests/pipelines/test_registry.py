"""Tasks, aliases and registered pipelines."""

import pytest

from jaxpipe.pipelines import (
    PIPELINE_REGISTRY,
    SUPPORTED_TASKS,
    TASK_ALIASES,
    Pipeline,
    check_task,
    get_supported_tasks,
)
from jaxpipe.pipelines.registry import PipelineRegistry, default_model, infer_task, model_classes


@pytest.fixture
def registry():
    return PipelineRegistry(dict(SUPPORTED_TASKS), dict(TASK_ALIASES))


def test_tasks():
    assert {"text-generation", "feature-extraction"} <= set(get_supported_tasks())
    assert check_task("text-generation") == ("text-generation", SUPPORTED_TASKS["text-generation"])


def test_an_unknown_task_lists_the_tasks():
    with pytest.raises(KeyError, match=r"Unknown task 'text-generatoin'.*'text-generation'.*Did you mean"):
        check_task("text-generatoin")


def test_every_alias_leads_to_a_task():
    for alias in TASK_ALIASES:
        assert check_task(alias)[0] in SUPPORTED_TASKS


def test_aliases(registry):
    registry.task_aliases["writing"] = "text-generation"
    assert registry.check_task("writing")[0] == "text-generation"
    assert "writing" in registry.get_supported_tasks()


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        (None, ()),
        ("name", (("name", None),)),
        (("name", "abc"), (("name", "abc"),)),
        ({"model": ("name", "abc")}, (("name", "abc"),)),
        ({"pt": "name"}, (("name", None),)),
        ({"model": {"pt": ("name", "abc")}}, (("name", "abc"),)),
    ],
)
def test_registering(registry, default, expected):
    class Own(Pipeline):
        pass

    registry.register_pipeline("own", Own, model_class=int, default=default, type="text")
    name, entry = registry.check_task("own")
    assert name == "own"
    assert entry["impl"] is Own
    assert entry["model_class"] == (int,)
    assert entry["default"] == expected


def test_pt_model_is_model_class(registry):
    registry.register_pipeline("own", Pipeline, pt_model=(int, str))
    assert registry.check_task("own")[1]["model_class"] == (int, str)
    with pytest.raises(ValueError, match="model_class= and pt_model="):
        registry.register_pipeline("own", Pipeline, model_class=int, pt_model=int)


def test_replacing_a_task_is_said(registry, caplog):
    registry.register_pipeline("text-generation", Pipeline)
    assert "'text-generation' is registered already" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((3, Pipeline), TypeError, "task="),
        (("own", "Pipeline"), TypeError, "pipeline_class="),
        (("own", Pipeline, None, 7), ValueError, "default="),
    ],
)
def test_wrong_registrations(registry, arguments, error, text):
    with pytest.raises(error, match=text):
        registry.register_pipeline(*arguments)


def test_auto_classes_are_classes():
    from jaxpipe.auto import AutoModelForCausalLM

    assert model_classes(SUPPORTED_TASKS["text-generation"]) == (AutoModelForCausalLM,)
    assert model_classes({"model_class": (int,)}) == (int,)


def test_the_default_model_is_the_first_that_is_installed():
    on_hub = ("someone/model", "abc")
    assert default_model("own", {"default": (("package://no_such_package_here/x", None), on_hub)}) == on_hub
    assert default_model("own", {"default": (("package://pytest/__init__.py", None), on_hub)})[0].startswith("package")
    with pytest.raises(ValueError, match="'own' has no default model"):
        default_model("own", {"default": ()})


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", "text-generation"),
        ("GPT2LMHeadModel", "text-generation"),
        ("BertModel", "feature-extraction"),
        ("BertForQuestionAnswering", "question-answering"),
        ("BertForMultipleChoice", None),
    ],
)
def test_tasks_of_architectures(architecture, task):
    assert infer_task([architecture]) == task


def test_the_public_registry_is_the_one_that_pipeline_reads():
    assert PIPELINE_REGISTRY.supported_tasks is SUPPORTED_TASKS
