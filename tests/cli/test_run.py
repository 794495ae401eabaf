"""``jaxpipe run``: rows in, rows out, and an interrupted run that goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxpipe.common.errors import CheckpointError
from tests.cli.fake import FakePipeline, lines, run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(
        "task: text-generation\nmodel: m\ninputs: {path: in.txt}\noutput: {path: out.jsonl}\n"
    )
    (tmp_path / "in.txt").write_text("".join(f"row {number}\n" for number in range(7)))
    return tmp_path


def answers(path: Path) -> list[str]:
    return [row["output"][0]["generated_text"] for row in lines(path)]


def test_one_line_a_row(here, factory):
    result = run("seed=5", "batch_size=3")
    assert lines(here / "out.jsonl")[1] == {"index": 1, "output": [{"generated_text": "row 1|5|1"}]}
    assert [row["index"] for row in lines(here / "out.jsonl")] == list(range(7))
    (call,) = factory.made[0].calls
    assert (len(call["inputs"]), call["batch_size"], call["item_offset"], call["seed"]) == (7, 3, 0, 5)
    assert "7 rows to out.jsonl" in result.stderr
    assert sorted(path.name for path in here.iterdir()) == ["c.yaml", "in.txt", "out.jsonl", "out.jsonl.run.json"]


def test_the_pipeline_gets_what_the_configuration_says(here, factory):
    run("revision=abc", "device_map={tensor: 2}", "dtype=bfloat16", "max_memory={0: 1GB}", "call.top_k=3")
    assert factory.arguments[0] == {
        "task": "text-generation", "model": "m", "revision": "abc", "tokenizer": None, "dtype": "bfloat16",
        "device_map": {"tensor": 2}, "model_kwargs": {"max_memory": {0: "1GB"}}, "top_k": 3,
    }  # fmt: skip


def test_a_call_key_that_loads_is_refused(here, factory):
    assert "call.model: is about loading" in run("call.model=x", code=1).stderr
    assert not (here / "out.jsonl").exists()


def test_an_argument_that_nothing_takes_is_one_line(here, monkeypatch):
    def picky(task, *, model, dtype, model_kwargs):
        raise TypeError(f"from_pretrained got an unknown argument {next(iter(model_kwargs))!r}.")

    monkeypatch.setattr("jaxpipe.pipelines.pipeline", picky)
    assert (
        "model_kwargs or call: from_pretrained got an unknown argument 'foo'"
        in run("model_kwargs.foo=1", code=1).stderr
    )


def test_a_complete_run_is_not_done_again(here, factory):
    run()
    assert "complete, nothing to do" in run().stderr
    assert len(factory.made) == 1


@pytest.mark.parametrize("cut", [0, 1, 10, 60])
def test_a_half_written_line_is_done_again(here, factory, cut):
    run("seed=1")
    whole = (here / "out.jsonl").read_bytes()
    (here / "out.jsonl").write_bytes(whole[: len(whole) - cut])
    run("seed=1", "batch_size=2")
    assert (here / "out.jsonl").read_bytes() == whole


@pytest.mark.parametrize("deadly", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_a_killed_run_goes_on_and_ends_like_another(here, factory, deadly):
    """No seed is given: the seed drawn by the first process is kept in the record for the second."""
    (here / "in.txt").write_text("a\nb\nbad\nc\nd\nkill\ne\nf\n")
    command = [sys.executable, "-m", "tests.cli.fake", "run", "c.yaml", "batch_size=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DEADLY": deadly}
    first = subprocess.run(command, env=environment, cwd=here, capture_output=True, text=True)
    assert first.returncode in (-9, -15, 130), first.stderr
    if deadly == "SIGINT":
        assert "goes on from there" in first.stderr and "Traceback" not in first.stderr
    assert [row["index"] for row in lines(here / "out.jsonl")] == [0, 1, 3, 4]
    with open(here / "out.jsonl", "a") as file:
        file.write('{"index": 5, "outp')

    run("batch_size=3")
    seed = json.loads((here / "out.jsonl.run.json").read_text())["seed"]
    texts = ["a", "b", None, "c", "d", "kill", "e", "f"]
    expected = [f"{text}|{seed}|{index}" for index, text in enumerate(texts) if text]
    assert answers(here / "out.jsonl") == expected
    assert [row["line"] for row in lines(here / "out.jsonl.errors.jsonl")] == [3]
    assert [call["item_offset"] for call in factory.made[0].calls] == [5]

    run("output.path=other.jsonl", f"seed={seed}")
    assert (here / "other.jsonl").read_bytes() == (here / "out.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("override", "named"),
    [("call.x=1", "call"), ("model=other", "model"), ("seed=9", "seed"), ("dtype=bfloat16", "dtype")],
)
def test_another_configuration_is_refused(here, factory, override, named):
    run()
    before = (here / "out.jsonl").read_bytes()
    message = run(override, code=1).stderr
    assert f"changed since: {named})" in message and "output.overwrite=true" in message
    assert (here / "out.jsonl").read_bytes() == before
    run(override, "output.overwrite=true")


def test_another_input_is_refused(here, factory):
    run()
    (here / "in.txt").write_text("something else\n")
    assert "changed since: inputs)" in run(code=1).stderr
    run("output.overwrite=true")
    assert [row["index"] for row in lines(here / "out.jsonl")] == [0]


def test_what_changes_no_answer_may_change(here, factory):
    run("seed=1")
    assert "complete" in run("seed=1", "batch_size=4", "device_map=auto", "model_kwargs.token=secret").stderr
    assert "secret" not in (here / "out.jsonl.run.json").read_text()


def test_a_file_of_another_program_is_left_alone(here, factory):
    (here / "out.jsonl").write_text("my diary\n")
    assert "does not say from which run" in run(code=1).stderr
    assert (here / "out.jsonl").read_text() == "my diary\n"


def test_two_runs_do_not_share_an_output(here, factory):
    fcntl = pytest.importorskip("fcntl")
    with open(here / "out.jsonl", "a+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another run is writing out.jsonl" in run(code=1).stderr


def test_a_bad_row_costs_its_neighbours_nothing(here, factory):
    (here / "in.txt").write_text("a\nbad\nc\n")
    result = run("batch_size=3", "seed=0")
    assert answers(here / "out.jsonl") == ["a|0|0", "c|0|2"]
    assert lines(here / "out.jsonl.errors.jsonl") == [{"index": 1, "line": 2, "error": "ValueError: this row is bad"}]
    assert "2 rows to out.jsonl, 1 failed (see out.jsonl.errors.jsonl)" in result.stderr


def test_what_the_pipeline_would_refuse_is_kept_from_it(here, factory):
    (here / "in.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text": "c"}\n{"text": "d"}\n')
    run("inputs.path=in.jsonl", "seed=0")
    assert answers(here / "out.jsonl") == ["a|0|0", "c|0|2", "d|0|3"]
    assert lines(here / "out.jsonl.errors.jsonl") == [{"index": 1, "line": 2, "error": "TypeError: the row is None"}]
    # Random numbers count on from item_offset, so a gap begins another call.
    calls = factory.made[0].calls
    assert [(call["inputs"], call["item_offset"]) for call in calls] == [(["a"], 0), (["c", "d"], 2)]


def test_gaps_do_not_part_rows_where_nothing_is_drawn(here, factory, monkeypatch):
    monkeypatch.setattr(FakePipeline, "_pipeline_calls_generate", False)
    (here / "in.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text": "c"}\n')
    run("inputs.path=in.jsonl")
    assert [call["inputs"] for call in factory.made[0].calls] == [["a", "c"]]


@pytest.mark.parametrize("bad", [{0}, {63}, {20, 21, 40}, {5, 6, 7, 8, 9, 60}])
def test_bad_rows_are_found_in_few_calls(here, factory, bad):
    (here / "in.txt").write_text("".join("bad\n" if number in bad else f"{number}\n" for number in range(64)))
    run("seed=0")
    assert answers(here / "out.jsonl") == [f"{n}|0|{n}" for n in range(64) if n not in bad]
    assert [row["index"] for row in lines(here / "out.jsonl.errors.jsonl")] == sorted(bad)
    assert len(factory.made[0].calls) <= 8 * len(bad) + 8


def test_where_all_rows_fail_each_runs_once_alone(here, factory):
    (here / "in.txt").write_text("bad\n" * 40)
    run(code=1)
    sizes = [len(call["inputs"]) for call in factory.made[0].calls]
    assert sizes.count(1) == 40 and len(sizes) <= 46


@pytest.mark.parametrize("surplus", [-1, 1])
def test_a_pipeline_that_gives_other_than_one_answer_a_row_ends_the_run(here, factory, monkeypatch, surplus):
    def call(self, inputs, *, item_offset=0, seed=None):
        return iter([{"generated_text": "x"}] * (len(inputs.items) + surplus))

    monkeypatch.setattr(FakePipeline, "__call__", call)
    (here / "in.txt").write_text("a\nb\nc\n")
    assert "gave 3 rows more or fewer answers" in run(code=1).stderr


def test_where_every_row_fails_the_run_does(here, factory):
    (here / "in.txt").write_text("bad\nbad\n")
    run(code=1)


def test_jsonl_rows(here, factory):
    (here / "in.jsonl").write_text(
        '{"text": "a"}\n\n{"txt": "b"}\nnot json\n[1]\n{"messages": [{"role": "user", "content": "d"}]}\n{"text": "e"}'
    )
    run("inputs.path=in.jsonl", "batch_size=8", "seed=0")
    assert [row["index"] for row in lines(here / "out.jsonl")] == [0, 5, 6]
    errors = lines(here / "out.jsonl.errors.jsonl")
    assert [row["line"] for row in errors] == [3, 4, 5]
    assert "has no column 'text' or 'messages'; it has 'txt'. Did you mean 'txt'?" in errors[0]["error"]
    assert "is not JSON" in errors[1]["error"] and "not a JSON object but list" in errors[2]["error"]


def test_a_named_column(here, factory):
    (here / "in.data").write_text('{"text": "a", "question": "b"}\n')
    run("inputs.path=in.data", "inputs.format=jsonl", "inputs.column=question", "seed=0")
    assert answers(here / "out.jsonl") == ["b|0|0"]


def test_text_lines_are_kept_as_they_are(here, factory):
    (here / "in.txt").write_bytes("  a \r\n\nü\n".encode() + b"\xff\nlast")
    run("seed=0")
    assert answers(here / "out.jsonl") == ["  a |0|0", "|0|1", "ü|0|2", "last|0|4"]
    assert "is not UTF-8" in lines(here / "out.jsonl.errors.jsonl")[0]["error"]


def test_numbers_of_numpy_are_written(here, factory, monkeypatch):
    import numpy as np

    output = {"score": np.float32(0.5), "vector": np.arange(2), "ids": (np.int64(1),)}
    monkeypatch.setattr("tests.cli.fake.FakePipeline._one", lambda *_: output)
    run()
    assert lines(here / "out.jsonl")[0]["output"] == {"score": 0.5, "vector": [0, 1], "ids": [1]}


def test_nan_is_an_error_of_its_row_and_infinity_is_not(here, factory, monkeypatch):
    scores = {"row 0": 0.5, "row 1": float("nan"), "row 2": float("-inf")}
    monkeypatch.setattr("tests.cli.fake.FakePipeline._one", lambda self, item, *_: [{"score": scores.get(item, 1.0)}])
    run()
    outputs = {row["index"]: row["output"] for row in lines(here / "out.jsonl")}
    assert outputs[2] == [{"score": float("-inf")}] and 1 not in outputs and len(outputs) == 6
    (error,) = lines(here / "out.jsonl.errors.jsonl")
    assert error["line"] == 2 and "NaN" in error["error"]


def test_an_answer_that_json_cannot_hold_is_an_error_of_its_row(here, factory, monkeypatch):
    monkeypatch.setattr("tests.cli.fake.FakePipeline._one", lambda self, item, *_: {1j} if item == "row 2" else item)
    run()
    assert len(lines(here / "out.jsonl")) == 6
    assert [row["index"] for row in lines(here / "out.jsonl.errors.jsonl")] == [2]


def test_the_terminal_gets_the_answer(here, factory):
    chat = "inputs={messages: [[{role: user, content: '[b]hi[/b] :smile:'}]]}"
    assert run(chat, "output.path='-'").stdout == "You said: [b]hi[/b] :smile:\n"
    assert run("inputs={texts: [x, y]}", "output.path='-'", "seed=2").stdout == "x|2|0\ny|2|1\n"


def test_the_terminal_gets_the_shape_of_large_arrays(here, factory, monkeypatch):
    monkeypatch.setattr("tests.cli.fake.FakePipeline._one", lambda *_: [[[0.25] * 16] * 3])
    assert run("inputs={texts: [x]}", "output.path='-'").stdout.startswith("array of shape (1, 3, 16): 0.2500, ")


@pytest.mark.parametrize("key", ["summary_text", "translation_text"])
def test_the_terminal_gets_the_text_of_tasks_that_write(here, factory, monkeypatch, key):
    monkeypatch.setattr("tests.cli.fake.FakePipeline._one", lambda *_: [{key: "short"}])
    assert run("inputs={texts: [x]}", "output.path='-'").stdout == "short\n"


def test_a_bad_row_ends_a_run_to_the_terminal(here, factory):
    result = run("inputs={texts: [x, bad, y]}", "output.path='-'", "seed=0", code=1)
    assert result.stdout == "x|0|0\n"
    assert "error: row 2: ValueError: this row is bad" in result.stderr
    run("inputs={texts: [x, bad, y]}", "output={path: '-', errors: e.jsonl}")
    assert [row["line"] for row in lines(here / "e.jsonl")] == [2]


def test_wrong_keys_exit_with_two(here, factory):
    result = run("tsk=a", "output.pat=b", code=2)
    assert "c.yaml: tsk: unknown key" in result.stderr and "c.yaml: output.pat: unknown key" in result.stderr
    assert not factory.made


def test_a_checkpoint_that_fails_is_one_line_and_leaves_nothing(here, monkeypatch):
    def fails(task, **_):
        raise CheckpointError("m: there is no such checkpoint")

    monkeypatch.setattr("jaxpipe.pipelines.pipeline", fails)
    result = run(code=1)
    assert result.stderr == "jaxpipe: error: m: there is no such checkpoint\n"
    assert sorted(path.name for path in here.iterdir()) == ["c.yaml", "in.txt"]


def test_a_missing_input_is_named(here, factory):
    assert "inputs.path: nowhere.txt cannot be read" in run("inputs.path=nowhere.txt", code=1).stderr
    assert not (here / "out.jsonl").exists()
