"""Every task over rows as `jaxpipe run` gives them, and the examples of docs/tasks.md, on tiny checkpoints."""

import ast
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jaxpipe.cli.inputs import Row
from jaxpipe.cli.run import answers
from jaxpipe.pipelines import PIPELINE_REGISTRY, SUPPORTED_TASKS, TASK_ALIASES, pipeline
from tests.pipelines.same import assert_same

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tasks.md"


def script(name: str) -> ModuleType:
    """A script of docs/, imported."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("page")
    script("tiny_checkpoints").write(directory / "tiny")
    return directory


TEXTS = ["it rains", "what a lovely film, I like this film! it rains and the street is wet.", "who?"]
MASKED = ["the [MASK] is wet", "what a lovely [MASK], I like this film! it rains and the street is wet", "[MASK]?"]
QUESTIONS = [
    {"question": "where do I live?", "context": "my name is Wolfgang and I live in Berlin. " * count}
    for count in (1, 9, 2)
]
RANKINGS = [{"query": "who?", "documents": TEXTS[:count]} for count in (1, 3, 2)]
FEW = {"max_new_tokens": 4, "num_beams": 1}
CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "fill-mask": ("fill-mask", MASKED, {}),
    "text-classification": ("classifier", [*TEXTS[:2], {"text": "it rains", "text_pair": "who?"}], {}),
    "token-classification": ("entities", TEXTS, {"aggregation_strategy": "simple"}),
    "question-answering": ("answers", QUESTIONS, {"max_seq_len": 32, "doc_stride": 8}),
    "zero-shot-classification": ("entailment", TEXTS, {"candidate_labels": ["sport", "politics"]}),
    "text-ranking": ("cross-encoder", RANKINGS, {}),
    "translation_en_to_de": ("t5", TEXTS, FEW),
}


@pytest.mark.parametrize("task", CASES)
def test_rows_are_answered_as_items_are(directory, task):
    """Bad rows among them are errors of their own, whether they are found before anything runs or after."""
    model, items, call = CASES[task]
    pipe = pipeline(task, model=directory / "tiny" / model, device_map="cpu", **call)
    alone = list(pipe(iter(items)))
    rows = [Row(index, index + 2, item) for index, item in enumerate([items[0], None, *items[1:], 7.5, float("nan")])]
    found = list(answers(pipe, rows, {}))
    assert [(row.index, row.line) for row, _, _ in found] == [(row.index, row.line) for row in rows]
    errors = {row.index: error for row, _, error in found if error is not None}
    assert set(errors) == {1, 4, 5}
    assert "None" in errors[1] and "7.5" in errors[4] and "nan" in errors[5]
    good = [output for _, output, error in found if error is None]
    assert_same(good, alone, tolerance=1e-5)
    json.dumps(good, allow_nan=False)


@pytest.fixture(scope="module")
def page_run(directory):
    """The examples of the page with what they give now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        try:
            return list(script("make_tasks").run(PAGE.read_text()))
        finally:
            PIPELINE_REGISTRY.supported_tasks.pop("margin", None)


@pytest.mark.full
def test_the_examples_of_the_page_give_what_it_shows(page_run):
    """Of real models the values, of random ones the form, since another version of JAX may draw other weights."""
    real = {example.section for example, _ in page_run if "package://" in example.code}
    assert {"text-generation", "feature-extraction", "sentence-similarity"} <= real
    for example, output in page_run:
        assert bool(example.shown) == bool(output), f"run `make docs`:\n{example.code}"
        pairs = zip(values(example.shown), values(output), strict=True)
        for shown, given in pairs:
            if example.section in real:
                assert_same(given, shown, tolerance=1e-3)
            else:
                assert form(given) == form(shown), f"run `make docs`:\n{example.code}{output}"


def values(text: str) -> list[Any]:
    """What a block of text shows: a Python value, or one a line."""
    try:
        return [ast.literal_eval(text)]
    except (SyntaxError, ValueError):
        return [json.loads(line) if line.startswith("{") else line for line in text.splitlines()]


def form(value: Any) -> Any:
    """Keys, types and nesting of a value; of a list what its first element is, as its length may be the model's."""
    if isinstance(value, dict):
        return {key: form(part) for key, part in value.items()}
    return [form(value[0])] if isinstance(value, list) and value else type(value)


def test_the_page_and_the_readme_know_every_task():
    page, readme = PAGE.read_text(), (ROOT / "README.md").read_text()
    sections = re.split(r"^## ", page, flags=re.MULTILINE)
    for task in SUPPORTED_TASKS:
        section = next((part for part in sections if part.startswith(f"{task}\n")), "")
        assert "```python" in section and "```text" in section, task
        assert f"[{task}](#{task})" in page
        assert f"`{task}`" in readme, task
    assert all(f"`{alias}`" in page for alias in TASK_ALIASES)


def test_the_generator_replaces_what_was_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    python = "```python\nnumber = 1 / 3\nnumber\n```\n"
    page = f"```txt in.txt\nx\n```\n\n{python}\n```text\n7\n```\n\n```sh\ncat in.txt\n```\nend\n"
    made = script("make_tasks").written(page)
    assert f"{python}```text\n0.3333\n```\n" in made
    assert made.endswith("```sh\ncat in.txt\n```\n```text\nx\n```\nend\n") and "7" not in made
    assert script("make_tasks").written(made) == made
