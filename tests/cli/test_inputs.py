"""Rows of CSV, JSONL and listed items: their items, their numbers and their lines, read a piece at a time."""

import json
import tracemalloc
from pathlib import Path

import pytest

from jaxpipe.cli.config import Inputs
from jaxpipe.cli.inputs import Row, rows, summarise
from jaxpipe.common.errors import ConfigError
from tests.cli.fake import lines, run


@pytest.fixture
def written(tmp_path):
    """Writes a file and returns the `Inputs` that read it."""

    def written(name: str, content: str | bytes, **settings) -> Inputs:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        inputs = Inputs(path=str(path), **settings)
        summarise(inputs)
        return inputs

    return written


def read(inputs: Inputs, *done: int) -> list[tuple]:
    return [(row.index, row.line, row.item if row.error is None else row.error) for row in rows(inputs, set(done))]


def test_csv_records_may_span_lines(written):
    inputs = written("in.csv", 'id,text\r\n1,one\r\n2,"two\r\nlines, ""quoted"""\r\n\r\n3,three')
    assert read(inputs) == [(0, 2, "one"), (1, 3, 'two\r\nlines, "quoted"'), (2, 6, "three")]
    assert read(inputs, 0, 2) == [(1, 3, 'two\r\nlines, "quoted"')]


def test_bad_csv_records_stand_alone(written):
    content = b'text,n\na,1\nb\nc,3,4\n\xff\xfe,5\n"d" x,6\ne,7\n"never closed,8\nf,9\n'
    found = read(written("in.csv", content))
    assert [(index, line) for index, line, _ in found] == [(0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7), (6, 8)]
    said = [text for _, _, text in found]
    assert (said[0], said[5]) == ("a", "e")
    assert said[1] == "has 1 fields, but the header names 2 columns"
    assert said[2] == "has 3 fields, but the header names 2 columns"
    assert said[3] == "is not UTF-8 in its column 'text'"
    assert "is not CSV" in said[4] and "is not CSV" in said[6]


def test_bytes_of_other_columns_do_not_matter(written):
    assert read(written("in.csv", b"text,n\na,\xff\n")) == [(0, 2, "a")]


def test_a_byte_order_mark_is_no_part_of_a_name_or_a_text(written):
    assert read(written("in.csv", b"\xef\xbb\xbftext,n\na,1\n")) == [(0, 2, "a")]
    assert read(written("in.txt", b"\xef\xbb\xbfa\n")) == [(0, 1, "a")]
    assert read(written("in.jsonl", b'\xef\xbb\xbf{"text": "a"}\n')) == [(0, 1, "a")]


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        ("", {}, "is empty; a CSV file begins with the names"),
        ("a,b,a\n1,2,3\n", {"column": "b"}, "names 'a' more than once"),
        ("txt,b\n1,2\n", {}, r"no column 'text' or 'messages'; it has 'txt', 'b'. Did you mean 'txt'\?"),
        ("text,b\n1,2\n", {"column": "c"}, "no column 'c'; it has 'text', 'b'"),
        ("text,b\n1,2\n", {"columns": ["text", "bb"]}, r"no column 'bb'; it has 'text', 'b'"),
        ('"a\n', {}, "header .* is not CSV"),
    ],
)
def test_what_is_wrong_with_a_header_is_said_at_once(written, content, settings, said):
    with pytest.raises(ConfigError, match=said):
        written("in.csv", content, **settings)


@pytest.mark.parametrize(
    ("columns", "item"),
    [
        (["question", "context"], {"question": "who", "context": "me"}),
        ({"text": "question", "text_pair": "context"}, {"text": "who", "text_pair": "me"}),
    ],
)
def test_several_columns_make_a_mapping(written, columns, item):
    row = {"question": "who", "id": 7, "context": "me"}
    assert read(written("in.csv", "question,id,context\nwho,7,me\n", columns=columns)) == [(0, 2, item)]
    assert read(written("in.jsonl", json.dumps(row), columns=columns)) == [(0, 1, item)]


def test_a_json_row_that_lacks_a_column_is_its_error_alone(written):
    content = '{"source_sentence": "a", "sentences": ["b", "c"]}\n{"source_sentence": "a", "sentence": ["b"]}\n'
    first, second = read(written("in.jsonl", content, columns=["source_sentence", "sentences"]))
    assert first == (0, 1, {"source_sentence": "a", "sentences": ["b", "c"]})
    assert second[2] == "has no column 'sentences'; it has 'source_sentence', 'sentence'. Did you mean 'sentence'?"


def test_a_deeply_nested_json_row_is_its_error_alone(written):
    inputs = written("in.jsonl", "[" * 200_000 + '\n{"text": "a"}\n')
    (_, _, said), second = read(inputs)
    assert "is not JSON" in said and second == (1, 2, "a")


def test_items_are_listed():
    inputs = Inputs(items=[{"query": "a", "documents": ["b"]}, {"query": "c", "documents": []}])
    assert list(rows(inputs, {0})) == [Row(1, 2, {"query": "c", "documents": []})]
    assert summarise(inputs).rows == 2


def test_rows_are_counted_from_above(written):
    content = 'text\n"a\nb"\n\nc\n'
    assert summarise(written("in.csv", content)).rows == 4 >= len(read(written("in.csv", content)))
    assert read(written("in.csv", "text\n")) == []


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl", "in.txt"])
def test_files_are_read_in_pieces(written, name):
    """30 MB are read; of them the reader may hold a little at a time."""
    text = "x" * 990
    line = json.dumps({"text": text}) if name == "in.jsonl" else text
    inputs = written(name, "text\n" + f"{line}\n" * 30_000)
    tracemalloc.start()
    count = sum(1 for _ in rows(inputs, set()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count >= 30_000 and peak < 3e6


def test_a_run_over_csv_notes_lines_and_resumes(tmp_path: Path, monkeypatch, factory):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("task: text-generation\ninputs: {path: in.csv}\noutput: {path: out.jsonl}\nseed: 0\n")
    Path("in.csv").write_text('text\na\n"b\nb"\nbad\nc,c\nd\n')
    run()
    whole = Path("out.jsonl").read_bytes()
    assert [row["index"] for row in lines(Path("out.jsonl"))] == [0, 1, 4]
    errors = lines(Path("out.jsonl.errors.jsonl"))
    assert [(row["index"], row["line"]) for row in errors] == [(2, 5), (3, 6)]
    Path("out.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    run()
    assert Path("out.jsonl").read_bytes() == whole
    assert factory.made[1].calls == [{"inputs": ["d"], "batch_size": None, "item_offset": 4, "seed": 0}]


def test_the_terminal_names_the_line(tmp_path: Path, monkeypatch, factory):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("task: text-generation\ninputs: {path: in.csv}\nseed: 0\n")
    Path("in.csv").write_text('text\n"a\nb"\nbad\n')
    result = run(code=1)
    assert result.stdout == "a\nb|0|0\n"
    assert "error: line 4: ValueError: this row is bad" in result.stderr
