"""`pipeline`: what it loads, from where, and which arguments it refuses. The loaders are stand-ins that note calls."""

import json
import types

import numpy as np
import pytest

import jaxpipe.auto
import jaxpipe.tokenization
from jaxpipe.pipelines import PIPELINE_REGISTRY, FeatureExtractionPipeline, TextGenerationPipeline, pipeline
from jaxpipe.pipelines import registry as registry_module


@pytest.fixture
def loads(monkeypatch, model, tokenizer):
    """Calls of the Auto classes of models (``model``) and tokenizers (``tokenizer``), which get the stand-ins."""
    calls = types.SimpleNamespace(model=[], tokenizer=[], config=[])

    def loader(noted, loaded):
        def from_pretrained(name, **arguments):
            noted.append((getattr(name, "name", name), arguments))
            return loaded

        return types.SimpleNamespace(from_pretrained=from_pretrained)

    for name in ("AutoModel", "AutoModelForCausalLM"):
        monkeypatch.setattr(jaxpipe.auto, name, loader(calls.model, model))
    monkeypatch.setattr(jaxpipe.auto, "AutoConfig", loader(calls.config, "a config"))
    monkeypatch.setattr(jaxpipe.tokenization, "AutoTokenizer", loader(calls.tokenizer, tokenizer))
    return calls


@pytest.fixture
def checkpoint(tmp_path):
    """A directory with nothing but a config.json of a Llama."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return tmp_path


def test_a_task_and_a_model(loads, checkpoint, model, tokenizer):
    pipe = pipeline("text-generation", model=str(checkpoint))
    assert isinstance(pipe, TextGenerationPipeline)
    assert (pipe.task, pipe.model, pipe.tokenizer) == ("text-generation", model, tokenizer)
    assert loads.model == [(str(checkpoint), {"dtype": "auto"})]
    assert loads.tokenizer == [(str(checkpoint), {})]


def test_paths(loads, checkpoint):
    assert isinstance(pipeline("feature-extraction", model=checkpoint), FeatureExtractionPipeline)


def test_parameters_become_defaults_of_calls(loads, checkpoint):
    pipe = pipeline("text-generation", model=checkpoint, batch_size=2, max_new_tokens=3, return_full_text=False)
    pipe(["a", "b", "c"])
    assert [len(call["input_ids"]) for call in pipe.model.calls] == [2, 1]
    assert pipe.model.settled.max_new_tokens == 3


def test_aliases_are_echoed(loads, checkpoint, monkeypatch):
    monkeypatch.setitem(PIPELINE_REGISTRY.task_aliases, "writing", "text-generation")
    assert pipeline("writing", model=checkpoint).task == "writing"


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        ({"dtype": "bfloat16"}, {"dtype": np.dtype("bfloat16")}),
        ({"torch_dtype": "float16"}, {"dtype": np.dtype("float16")}),
        ({"model_kwargs": {"dtype": "float32"}}, {"dtype": np.dtype("float32")}),
        ({"model_kwargs": {"torch_dtype": "auto"}}, {"dtype": "auto"}),
        ({"device_map": "auto"}, {"device_map": "auto"}),
        ({"model_kwargs": {"device_map": {"tensor": 2}}}, {"device_map": {"tensor": 2}}),
        ({"device": -1}, {"device_map": "cpu"}),
        ({"device": 1}, {"device_map": 1}),
        ({"device": "cuda:1"}, {"device_map": "cuda:1"}),
        ({"max_memory": {0: "1GB"}, "mesh": "m"}, {"max_memory": {0: "1GB"}, "mesh": "m"}),
        ({"attn_implementation": "sdpa"}, {"attn_implementation": "sdpa"}),
        ({"config": "c"}, {"config": "c"}),
    ],
)
def test_arguments_of_the_model(loads, checkpoint, arguments, passed):
    if arguments.get("config"):
        arguments, passed = {"config": str(checkpoint)}, {"config": "a config"}
    pipeline("text-generation", model=checkpoint, **arguments)
    assert loads.model[0][1] == {"dtype": "auto", **passed}


def test_a_users_model_kwargs_stay_as_they_are(loads, checkpoint):
    given = {"dtype": "float32", "cache_dir": "x"}
    pipeline("text-generation", model=checkpoint, model_kwargs=given)
    assert given == {"dtype": "float32", "cache_dir": "x"}


def test_arguments_of_the_hub_reach_the_resolver_once(loads, monkeypatch):
    from jaxpipe.pipelines import factory

    asked = []
    monkeypatch.setattr(
        factory, "resolve", lambda name, **more: (asked.append((name, more)), types.SimpleNamespace(name=name))[1]
    )
    pipeline("text-generation", "a/b", revision="r", token="t", cache_dir="c", model_kwargs={"local_files_only": True})
    assert asked == [("a/b", {"revision": "r", "token": "t", "cache_dir": "c", "local_files_only": True})]
    assert loads.model == [("a/b", {"dtype": "auto"})]
    assert loads.tokenizer == [("a/b", {"token": "t", "cache_dir": "c", "local_files_only": True})]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"dtype": "float32", "model_kwargs": {"dtype": "float32"}}, r"dtype=.*model_kwargs\['dtype'\]"),
        ({"dtype": "float32", "torch_dtype": "float32"}, "dtype= and torch_dtype="),
        ({"model_kwargs": {"dtype": "float32", "torch_dtype": "float32"}}, "more than once"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"device_map": "auto", "model_kwargs": {"device_map": "auto"}}, "device_map is given twice"),
        ({"revision": "a", "model_kwargs": {"revision": "b"}}, "revision is given twice"),
        ({"device": 0, "device_map": "auto"}, "device=0 and device_map="),
        ({"device": 0, "mesh": "m"}, "device=0 and mesh="),
        ({"framework": "pt"}, "framework='pt': jaxpipe computes with JAX"),
        ({"framework": "tf"}, "framework='tf'"),
        ({"image_processor": "x"}, "image_processor= is given"),
        ({"tokenizer": ("a",)}, "a pair"),
    ],
)
def test_wrong_arguments(loads, checkpoint, arguments, text):
    with pytest.raises(ValueError, match=text):
        pipeline("text-generation", model=checkpoint, **arguments)


def test_framework_jax_is_no_news(loads, checkpoint):
    pipeline("text-generation", model=checkpoint, framework="flax", trust_remote_code=True, use_fast=False)


def test_neither_task_nor_model():
    with pytest.raises(RuntimeError, match=r"needs a task or a model.*text-generation"):
        pipeline()


def test_a_tokenizer_without_model():
    with pytest.raises(RuntimeError, match="tokenizer= is given without model="):
        pipeline("text-generation", tokenizer="x")


def test_unknown_tasks(checkpoint):
    with pytest.raises(KeyError, match="Unknown task 'text-gen'"):
        pipeline("text-gen", model=checkpoint)


def test_the_default_model_is_said(loads, monkeypatch, caplog, checkpoint):
    monkeypatch.setitem(registry_module.SUPPORTED_TASKS["text-generation"], "default", ((str(checkpoint), None),))
    pipeline("text-generation")
    assert f"No model was given for text-generation; using {checkpoint}" in caplog.text
    assert loads.model[0][0] == str(checkpoint)


@pytest.mark.parametrize(
    ("architecture", "task"), [("LlamaForCausalLM", "text-generation"), ("BertModel", "feature-extraction")]
)
def test_the_task_is_told_by_the_architecture(loads, checkpoint, architecture, task):
    (checkpoint / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert pipeline(model=checkpoint).task == task


def test_a_task_that_cannot_be_told(loads, checkpoint, model):
    (checkpoint / "config.json").write_text(json.dumps({"architectures": ["SomethingElse"]}))
    with pytest.raises(RuntimeError, match=r"\['SomethingElse'\] in its config.json; give task="):
        pipeline(model=checkpoint)
    with pytest.raises(RuntimeError, match="give task="):
        pipeline(model=model)


# ---- loaded models


def test_a_loaded_model_and_its_tokenizer(loads, model, tokenizer):
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert (pipe.model, pipe.tokenizer) == (model, tokenizer)
    assert loads.model == loads.tokenizer == []


def test_the_tokenizer_of_a_loaded_model(loads, model):
    with pytest.raises(ValueError, match="give tokenizer="):
        pipeline("text-generation", model=model)
    model.name_or_path = "a/b"
    pipeline("text-generation", model=model, token="t")
    assert loads.tokenizer == [("a/b", {"token": "t"})]


def test_names_of_tokenizers(loads, model):
    pipeline("text-generation", model=model, tokenizer="a/b")
    pipeline("text-generation", model=model, tokenizer=("a/b", {"padding_side": "left"}))
    assert loads.tokenizer == [("a/b", {}), ("a/b", {"padding_side": "left"})]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"dtype": "bfloat16"}, "loaded in float32"),
        ({"device": 3}, "device_map 3 is given, but the model is loaded on 1"),
        ({"device_map": {"tensor": 2}}, "device_map"),
        ({"max_memory": {0: 1}}, "max_memory= is given, but the model is loaded already"),
        ({"model_kwargs": {"attn_implementation": "sdpa"}}, "attn_implementation= is given"),
    ],
)
def test_a_loaded_model_stays_as_it_is(model, tokenizer, arguments, text):
    with pytest.raises(ValueError, match=text):
        pipeline("text-generation", model=model, tokenizer=tokenizer, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"dtype": "float32"}, {"device_map": "auto"}, {"device": -1}, {"device": 0}, {"device_map": {"data": 1}}],
)
def test_what_a_loaded_model_is_already(model, tokenizer, arguments):
    pipeline("text-generation", model=model, tokenizer=tokenizer, **arguments)


def test_what_is_no_model(tokenizer):
    with pytest.raises(TypeError, match="model= takes a name, a path or a loaded model, not int 3"):
        pipeline("text-generation", model=3, tokenizer=tokenizer)


# ---- a user's own pipelines


class Shouting(TextGenerationPipeline):
    """Generated text in capitals."""

    def postprocess(self, outputs, **parameters):
        return [{"shout": record["generated_text"].upper()} for record in super().postprocess(outputs, **parameters)]


def test_pipeline_class(model, tokenizer):
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, pipeline_class=Shouting)
    assert list(pipe("a", max_new_tokens=2)[0]) == ["shout"]


def test_registered_pipelines(monkeypatch, model, tokenizer, checkpoint):
    monkeypatch.setattr(PIPELINE_REGISTRY, "supported_tasks", dict(PIPELINE_REGISTRY.supported_tasks))
    monkeypatch.setattr(registry_module, "SUPPORTED_TASKS", PIPELINE_REGISTRY.supported_tasks)
    loader = types.SimpleNamespace(from_pretrained=lambda name, **arguments: model)
    PIPELINE_REGISTRY.register_pipeline("shouting", Shouting, model_class=loader, default=str(checkpoint))
    pipe = pipeline("shouting", model=checkpoint, tokenizer=tokenizer)
    assert isinstance(pipe, Shouting) and pipe.task == "shouting"
    PIPELINE_REGISTRY.register_pipeline("whispering", Shouting)
    with pytest.raises(ValueError, match="'whispering' was registered without model_class="):
        pipeline("whispering", model=checkpoint)


def test_a_model_type_that_one_auto_class_lacks_may_be_anothers(monkeypatch, model, tokenizer, checkpoint):
    def refuse(name, **arguments):
        raise ValueError("not one of mine")

    classes = (
        types.SimpleNamespace(from_pretrained=refuse),
        types.SimpleNamespace(from_pretrained=lambda n, **a: model),
    )
    entry = {**PIPELINE_REGISTRY.supported_tasks["text-generation"], "model_class": classes}
    monkeypatch.setitem(PIPELINE_REGISTRY.supported_tasks, "text-generation", entry)
    assert pipeline("text-generation", model=checkpoint, tokenizer=tokenizer).model is model
    entry["model_class"] = classes[:1] * 2
    with pytest.raises(ValueError, match=r"(?s)could not be loaded for 'text-generation'.*not one of mine"):
        pipeline("text-generation", model=checkpoint, tokenizer=tokenizer)
