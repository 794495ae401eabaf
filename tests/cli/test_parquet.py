"""Parquet in and out: values keep their types, damaged parts stay alone, and a run goes on from its journal."""

import builtins
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxpipe.cli.config import Inputs
from jaxpipe.cli.inputs import rows, summarise
from jaxpipe.common.errors import ConfigError
from tests.cli.fake import FakePipeline, lines, run

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROOT = Path(__file__).parents[2]
CHAT = [{"role": "user", "content": "hi"}]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(
        "task: text-generation\ninputs: {path: in.parquet}\noutput: {path: out.parquet}\nseed: 0\n"
    )
    return tmp_path


def put(group_rows: int | None = None, **columns) -> None:
    pq.write_table(pa.table(columns), "in.parquet", row_group_size=group_rows)


def read(inputs: Inputs, *done: int) -> list[tuple]:
    return [(row.index, row.line, row.item if row.error is None else row.error) for row in rows(inputs, set(done))]


def written(path: str = "out.parquet") -> list[dict]:
    return pq.read_table(path).to_pylist()


def answer_with(monkeypatch, answers: dict) -> None:
    """Each row is answered with what ``answers`` holds for its text."""
    monkeypatch.setattr(FakePipeline, "_one", lambda self, item, *_: answers[item])


def test_rows_of_all_groups(here):
    put(2, text=list("abcde"), n=range(5))
    inputs = Inputs(path="in.parquet")
    assert summarise(inputs).rows == 5
    assert read(inputs) == [(n, n + 1, letter) for n, letter in enumerate("abcde")]
    assert read(inputs, 0, 1, 3) == [(2, 3, "c"), (4, 5, "e")]


def test_groups_that_are_done_are_not_read(here, monkeypatch):
    from jaxpipe.cli import parquet

    put(2, text=list("abcde"))
    asked = []
    original = parquet._group_rows
    monkeypatch.setattr(
        parquet, "_group_rows", lambda file, group, *a: asked.append(group) or original(file, group, *a)
    )
    assert read(Inputs(path="in.parquet"), 0, 1, 2) == [(3, 4, "d"), (4, 5, "e")]
    assert asked == [1, 2]


def test_values_keep_their_types(here):
    day = datetime.date(2026, 1, 2)
    put(text=["a", None], messages=[CHAT, []], score=[0.5, float("nan")], day=[day, None])
    assert read(Inputs(path="in.parquet")) == [(0, 1, "a"), (1, 2, None)]
    assert read(Inputs(path="in.parquet", column="messages")) == [(0, 1, CHAT), (1, 2, [])]
    columns = {"query": "text", "when": "day"}
    assert read(Inputs(path="in.parquet", columns=columns))[0] == (0, 1, {"query": "a", "when": day})


def test_text_that_is_not_utf8_stands_alone(here):
    good = pa.array(["a", "bc", "d"])
    offsets, data = good.buffers()[1], pa.py_buffer(b"a\xff\xfed")
    put(text=pa.StringArray.from_buffers(3, offsets, data))
    found = read(Inputs(path="in.parquet"))
    assert (found[0], found[2]) == ((0, 1, "a"), (2, 3, "d"))
    assert "cannot be read" in found[1][2]


def test_a_damaged_row_group_leaves_the_others(here):
    put(2, text=["first", "second", "third", "fourth", "fifth"])
    with pq.ParquetFile("in.parquet") as file:
        start = file.metadata.row_group(1).column(0).data_page_offset
    content = bytearray(Path("in.parquet").read_bytes())
    content[start : start + 12] = b"\xff" * 12
    Path("in.parquet").write_bytes(content)
    found = read(Inputs(path="in.parquet"))
    assert [found[n] for n in (0, 1, 4)] == [(0, 1, "first"), (1, 2, "second"), (4, 5, "fifth")]
    assert all("its row group cannot be read" in found[n][2] for n in (2, 3))


@pytest.mark.parametrize(
    ("settings", "said"), [({}, "has no column 'text'"), ({"column": "m"}, "has no column 'm'; it has 'n'")]
)
def test_a_column_that_is_missing(here, settings, said):
    put(n=[1])
    with pytest.raises(ConfigError, match=said):
        summarise(Inputs(path="in.parquet", **settings))


def test_what_is_no_parquet_file(here, factory):
    Path("in.parquet").write_text("text\n")
    assert "in.parquet cannot be read as Parquet" in run(code=1).stderr
    assert not factory.made


def test_answers_in_order_with_their_types(here, factory, monkeypatch):
    put(text=["a", "b", None, "c"])
    answer_with(
        monkeypatch,
        {
            "a": {"label": "x", "score": 1, "spans": []},
            "b": {"label": "y", "score": 0.25, "spans": [{"start": 3, "word": "w"}]},
            "c": {"label": "z", "score": 0.5, "spans": [{"start": 4, "word": "v"}]},
        },
    )
    result = run()
    assert "3 rows to out.parquet, 1 failed (see out.parquet.errors.jsonl)" in result.stderr
    schema = pq.read_schema("out.parquet")
    assert schema.names == ["index", "output"] and schema.field("index").type == pa.int64()
    kinds = {field.name: str(field.type) for field in schema.field("output").type}
    assert kinds["label"] == "string" and kinds["score"] == "double" and kinds["spans"].startswith("list<")
    assert [row["index"] for row in written()] == [0, 1, 3]
    assert written()[1]["output"] == {"label": "y", "score": 0.25, "spans": [{"start": 3, "word": "w"}]}
    assert lines(Path("out.parquet.errors.jsonl")) == [{"index": 2, "line": 3, "error": "TypeError: the row is None"}]
    assert not Path("out.parquet.part").exists()


def test_types_are_settled_over_all_groups(here, factory, monkeypatch):
    monkeypatch.setattr("jaxpipe.cli.parquet._GROUP_ROWS", 2)
    put(text=list("abcde"))
    answer_with(monkeypatch, {"a": [], "b": [], "c": [[1]], "d": [[0.5, 2.0]], "e": []})
    run()
    with pq.ParquetFile("out.parquet") as file:
        assert file.num_row_groups == 3
    assert [row["output"] for row in written()] == [[], [], [[1.0]], [[0.5, 2.0]], []]


def test_a_row_that_failed_may_be_tried_again(here, factory, monkeypatch):
    put(text=["a", "bad", "c"])
    run()
    assert [row["index"] for row in written()] == [0, 2]
    Path("out.parquet.errors.jsonl").unlink()
    monkeypatch.setattr(FakePipeline, "_one", lambda self, item, *_: [{"generated_text": item}])
    run()
    # The journal has the new answer last, the file in its place.
    assert [row["index"] for row in lines(Path("out.parquet.rows.jsonl"))] == [0, 2, 1]
    assert [row["output"][0]["generated_text"][:3] for row in written()] == ["a|0", "bad", "c|0"]


def test_a_killed_run_goes_on_from_the_journal(here, factory):
    put(2, text=["a", "b", "kill", "c"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DEADLY": "SIGKILL"}
    command = [sys.executable, "-m", "tests.cli.fake", "run", "c.yaml"]
    assert subprocess.run(command, env=environment, cwd=here, capture_output=True).returncode == -9
    assert [row["index"] for row in lines(Path("out.parquet.rows.jsonl"))] == [0, 1]
    assert not Path("out.parquet").exists()
    run()
    assert factory.made[0].calls[0]["item_offset"] == 2
    assert [row["output"][0]["generated_text"] for row in written()] == ["a|0|0", "b|0|1", "kill|0|2", "c|0|3"]


def test_a_file_that_was_not_written_at_the_end_is_written_by_the_next_run(here, factory):
    put(text=["a", "b"])
    run()
    whole = written()
    Path("out.parquet").write_bytes(b"half")
    assert "complete, nothing to do" in run().stderr
    assert written() == whole
    before = os.stat("out.parquet").st_mtime_ns
    run()
    assert os.stat("out.parquet").st_mtime_ns == before and len(factory.made) == 1


def test_a_parquet_file_of_another_program_is_left_alone(here, factory):
    put(text=["a"])
    Path("out.parquet").write_text("my diary")
    assert "out.parquet is there, but not out.parquet.rows.jsonl" in run(code=1).stderr
    assert Path("out.parquet").read_text() == "my diary" and not Path("out.parquet.rows.jsonl").exists()
    run("output.overwrite=true")
    assert [row["index"] for row in written()] == [0]


def test_a_lost_journal_is_not_made_up_for(here, factory):
    put(text=["a"])
    run()
    Path("out.parquet.rows.jsonl").unlink()
    assert "from which its run would go on" in run(code=1).stderr
    assert len(written()) == 1


def test_answers_of_no_common_type_stay_in_the_journal(here, factory, monkeypatch):
    put(text=["a", "b"])
    answer_with(monkeypatch, {"a": "text", "b": [{"role": "user"}]})
    said = run(code=1).stderr
    assert "out.parquet was not written" in said and "out.parquet.rows.jsonl, as JSON lines" in said
    assert len(lines(Path("out.parquet.rows.jsonl"))) == 2 and not Path("out.parquet").exists()


def test_where_every_row_fails_there_is_no_file(here, factory):
    put(text=["bad"])
    run(code=1)
    assert not Path("out.parquet").exists()


def test_the_suffix_may_be_overruled(here, factory):
    put(text=["a"])
    os.rename("in.parquet", "in.data")
    run("inputs.path=in.data", "inputs.format=parquet", "output.path=out.data", "output.format=parquet")
    assert len(written("out.data")) == 1
    run("inputs.path=in.data", "inputs.format=parquet", "output.path=plain.parquet", "output.format=jsonl")
    assert json.loads(Path("plain.parquet").read_text())["index"] == 0


@pytest.mark.parametrize("override", ["inputs={path: in.parquet}", "output.path=o.parquet"])
def test_pyarrow_is_asked_for_where_it_is_needed(here, factory, monkeypatch, override):
    put(text=["a"])
    Path("c.yaml").write_text("task: text-generation\ninputs: {texts: [a]}\noutput: {path: out.jsonl}\n")
    original = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'jaxpipe[parquet]'" in run(override, code=1).stderr
    assert not factory.made
    # Nothing else needs it.
    if "inputs" in override:
        run()
