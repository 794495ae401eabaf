"""Configurations of ``jaxpipe run``: what is accepted, and how the rest is refused."""

from pathlib import Path

import pytest

from jaxpipe.cli.config import load_config
from jaxpipe.common.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
GOOD = "task: text-generation\ninputs: {texts: [a]}\n"


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def problem(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path: Path):
    load_config(path)
    assert path.read_text().startswith(f"# jaxpipe run configs/{path.name}")


def test_defaults(write):
    config = load_config(write(GOOD))
    assert (config.dtype, config.batch_size, config.output.path, config.call) == ("auto", None, "-", {})


def test_overrides_are_yaml_and_make_their_way(write):
    config = load_config(
        write(GOOD),
        ["call.max_new_tokens=8", "call.do_sample=true", "call.temperature=1e-1", "device_map={data: 2}", "seed=3"],
    )
    assert config.call == {"max_new_tokens": 8, "do_sample": True, "temperature": 0.1}
    assert (config.device_map, config.seed) == ({"data": 2}, 3)


def test_an_override_wins_and_may_clear(write):
    path = write("task: a\ncall: {x: 1, y: 2}\ninputs: {texts: [a]}\n")
    config = load_config(path, ["call.x=5", "inputs.texts=null", "inputs.path=file.txt"])
    assert config.call == {"x": 5, "y": 2}
    assert (config.inputs.texts, config.inputs.path) == (None, "file.txt")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("tsak: a\ninputs: {texts: [a]}\n", ["tsak: unknown key", "task, model", "Did you mean 'task'", "task: is mi"]),
        (
            GOOD + "output: {pth: x}\n",
            ["output.pth: unknown key", "path, format, errors, overwrite", "Did you mean 'path'"],
        ),
        ("task: a\ninputs: {messages: [[{rle: user}]]}\n", ["inputs.messages.0.0.role: is missing"]),
        (GOOD + "batch_size: 0\n", ["batch_size:", "greater than 0", "found 0"]),
        (GOOD + "batch_size: many\n", ["batch_size:", "integer", "found 'many'"]),
        (GOOD + "revision: 1.0\n", ["revision:", "string", "found 1.0"]),
        (GOOD + "device_map: [1]\n", ["device_map:", "found [1]"]),
        ("task: a\ninputs: {}\n", ["inputs: give exactly one of texts, messages, items and path, not none"]),
        ("task: a\ninputs: {texts: [a], path: b}\n", ["inputs:", "not texts and path"]),
        ("task: a\ninputs: {path: a.txt, column: b}\n", ["inputs:", "no columns", "format: csv", "leave column out"]),
        ("task: a\ninputs: {path: a.txt, columns: [b]}\n", ["inputs:", "no columns", "leave columns out"]),
        ("task: a\ninputs: {path: a.csv, column: a, columns: [b]}\n", ["inputs:", "give one of them"]),
        ("task: a\ninputs: {path: a.csv, columns: []}\n", ["inputs:", "each once"]),
        ("task: a\ninputs: {path: a.csv, columns: [b, b]}\n", ["inputs:", "each once"]),
        ("task: a\ninputs: {path: a.csv, columns: 3}\n", ["inputs.columns:", "found 3"]),
        ("task: a\ninputs: {items: [b]}\n", ["inputs.items.0:", "found 'b'"]),
        ("task: a\ninputs: {items: [{b: 1}], columns: [b]}\n", ["inputs:", "path only"]),
        (GOOD + "output: {format: parquet}\n", ["output:", "the terminal has none"]),
        ("task: a\ninputs: {texts: [a], column: b}\n", ["inputs:", "path only"]),
        (
            "task: a\ninputs: {path: a.jsonl, format: xml}\n",
            ["inputs.format:", "'csv', 'jsonl' or 'parquet'", "found 'xml'"],
        ),
        (GOOD + "call: {seed: 1}\n", ["call.seed has a key of its own"]),
        (GOOD + "call: {batch_size: 1}\n", ["call.batch_size has a key of its own"]),
        (GOOD + "task: b\n", ["line 3", "'task' is given twice"]),
        ("task: [\n", ["is not valid YAML", "line 2"]),
        ("- a\n", ["mapping of keys, not list"]),
        ("", ["mapping of keys, not NoneType"]),
        ("task: !!python/object/apply:os.system [ls]\n", ["is not valid YAML"]),
    ],
)
def test_what_is_wrong_is_named(write, text, parts):
    path = write(text)
    message = problem(path)
    assert str(path) in message
    for part in parts:
        assert part in message


def test_all_problems_are_listed(write):
    assert len(problem(write("tas: a\nbatch_size: 0\n")).splitlines()) == 4


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("call.x", "is not an override"),
        ("=3", "is not an override"),
        ("call..x=3", "is not an override"),
        ("task.name=3", "task holds 'text-generation', which has no inner keys"),
        ("call.x=[", "is not valid YAML"),
        ("modle=x", "Did you mean 'model'"),
    ],
)
def test_wrong_overrides(write, override, part):
    assert part in problem(write(GOOD), override)


def test_a_missing_file_is_named(tmp_path):
    assert "absent.yaml: the configuration cannot be read" in problem(tmp_path / "absent.yaml")
