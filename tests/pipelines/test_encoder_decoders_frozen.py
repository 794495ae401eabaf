"""text2text-generation, summarization and translation beside the frozen outputs of Transformers 4.57.6."""

import json
from pathlib import Path

import jax
import pytest

from jaxpipe.auto import AutoModelForSeq2SeqLM
from jaxpipe.generation.config import GenerationConfig
from jaxpipe.pipelines import KeyDataset, pipeline
from jaxpipe.tokenization import AutoTokenizer
from tests.pipelines.frozen import encoder_decoders as recipe

FROZEN = Path(__file__).parent / "frozen"
TASKS = {"text2text-generation": "generated", "summarization": "summary", "translation": "translation"}


def cases():
    for task in TASKS:
        frozen = json.loads((FROZEN / f"{task.replace('-', '_')}.json").read_text(encoding="utf-8"))
        assert frozen["transformers"] == "4.57.6"
        for case in frozen["cases"]:
            marks = pytest.mark.full if case.get("full") else ()
            yield pytest.param(task, case, id=f"{task}, {case['name']}", marks=marks)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """(model, tokenizer) of a case, made once; constructors of pipelines differ."""
    made = {}

    def load(case):
        key = json.dumps([case["kind"], case.get("config"), case.get("generation")])
        if key not in made:
            folder = tmp_path_factory.mktemp(case["kind"])
            path = recipe.write(case["kind"], folder, case.get("config"), case.get("generation"))
            model = AutoModelForSeq2SeqLM.from_pretrained(path, device_map="cpu")
            made[key] = model, AutoTokenizer.from_pretrained(path)
        return made[key]

    return load


def run(pipe, case):
    call = dict(case.get("call", {}))
    if "generation_config" in call:
        call["generation_config"] = GenerationConfig(**call["generation_config"])
    inputs = case["inputs"]
    if case["form"] == "generator":
        inputs = (text for text in inputs)
    if case["form"] == "data set":
        inputs = KeyDataset([{"text": text} for text in inputs], "text")
    result = pipe(inputs, **call)
    return result if isinstance(result, list) else list(result)


def without_fillers(value, ends):
    """Transformers fills shorter return sequences up to the longest; here they end where they end."""
    if isinstance(value, dict):
        return {key: without_fillers(part, ends) for key, part in value.items()}
    if isinstance(value, list) and value and all(isinstance(part, int) for part in value):
        return value[: next((place + 1 for place, token in enumerate(value) if place and token in ends), len(value))]
    return [without_fillers(part, ends) for part in value] if isinstance(value, list) else value


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("task", "case"), list(cases()))
def test_the_same_as_transformers_4(loaded, caplog, task, case):
    model, tokenizer = loaded(case)
    arguments = {"model": model, "tokenizer": tokenizer}
    pipe = pipeline(case.get("task", task), **arguments, **case.get("constructor", {}))
    if "error" in case:
        error = {"TypeError": TypeError, "ValueError": ValueError}[case["error"]]
        with pytest.raises(error):
            run(pipe, case)
        return
    got = run(pipe, case)
    json.dumps(got)
    ends = case.get("call", {}).get("eos_token_id", [model.generation_config.eos_token_id])
    if case.get("call", {}).get("stop_sequence"):
        ends = [tokenizer(case["call"]["stop_sequence"], add_special_tokens=False)["input_ids"][0]]
    assert got == without_fillers(case["output"], ends)
    assert pipe.task == case["task"]
    if ": advice" in case["name"]:
        assert (" tokens" in caplog.text or "is above" in caplog.text) == case["told"]


def test_new_texts_of_the_same_buckets_do_not_compile(loaded):
    model, tokenizer = loaded({"kind": "t5"})
    pipe = pipeline("text2text-generation", model=model, tokenizer=tokenizer, max_new_tokens=10)
    compiled = []

    def note(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    pipe(["the cat sat", "a dog", "hello world", "we walk home again"])
    jax.monitoring.register_event_duration_secs_listener(note)
    pipe(["the old house and the red tree", "we", "the moon and the sun", "a small bird sings"], length_penalty=2.0)
    assert compiled == []
    pipe(["a dog"], num_beams=3)  # what was not run before compiles, and is noted
    assert compiled


def test_a_directory_alone_tells_the_task(loaded, tmp_path):
    path = recipe.write("t5", tmp_path)
    pipe = pipeline(model=path, device_map="cpu")
    assert pipe.task == "text2text-generation"
    for task, name in TASKS.items():
        own = pipeline(task, model=pipe.model, tokenizer=pipe.tokenizer)
        assert own.return_name == name
    with pytest.raises(ValueError, match="causal language model"):
        pipeline("text-generation", model=path)
