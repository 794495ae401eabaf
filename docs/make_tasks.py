"""Runs the examples of docs/tasks.md and writes what they give below them: ``python docs/make_tasks.py docs/tasks.md``.

A block of Python is run, in one session with those before it; the value of its last line, if it has one, becomes the
block of text below. A block with a file's name is written to that file. A block of ``sh`` is run by the shell. The
working directory is a new one, with the tiny checkpoints in ``tiny``. Numbers are shown with four digits.
"""

import ast
import contextlib
import io
import os
import pprint
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```(?P<language>\w+)(?: (?P<file>\S+))?\n(?P<body>.*?)^```\n", re.MULTILINE | re.DOTALL)
RUN = ("python", "sh")


@dataclass
class Example:
    """A block that is run.

    Attributes:
        section: the heading above it.
        code: what is run.
        shown: the text of the block below it, "" where there is none.
        end: where the block ends in the page.
        output_end: where the block below it ends.
    """

    section: str
    language: str
    code: str
    shown: str
    end: int
    output_end: int


def examples(page: str) -> Iterator[Example | tuple[str, str]]:
    """Yields the blocks that are run, and as (name, contents) those that are written to files, in order."""
    blocks = list(BLOCK.finditer(page))
    for number, block in enumerate(blocks):
        if block["file"]:
            yield block["file"], block["body"]
        elif block["language"] in RUN:
            below = blocks[number + 1] if number + 1 < len(blocks) else None
            has_output = (
                below is not None and below["language"] == "text" and not page[block.end() : below.start()].strip()
            )
            section = re.findall(r"^## (.*)$", page[: block.start()], re.MULTILINE)
            yield Example(
                section[-1] if section else "",
                block["language"],
                block["body"],
                below["body"] if has_output and below else "",
                block.end(),
                below.end() if has_output and below else block.end(),
            )


def run(page: str) -> Iterator[tuple[Example, str]]:
    """Runs a page's examples in the working directory; yields each with what it shows."""
    session: dict[str, Any] = {"__name__": "__main__"}
    for example in examples(page):
        if isinstance(example, tuple):
            Path(example[0]).write_text(example[1], encoding="utf-8")
        elif example.language == "sh":
            path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
            done = subprocess.run(
                ["sh", "-ec", example.code], env={**os.environ, "PATH": path}, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(f"{example.code}ended with {done.returncode}:\n{done.stderr}")
            yield example, done.stdout
        else:
            yield example, _run_python(example.code, session)


def _run_python(code: str, session: dict[str, Any]) -> str:
    lines = ast.parse(code).body
    last = lines.pop() if lines and isinstance(lines[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(lines, []), "<example>", "exec"), session)
        value = eval(compile(ast.Expression(last.value), "<example>", "eval"), session) if last else None
    shown = "" if value is None else pprint.pformat(rounded(value), width=110, sort_dicts=False) + "\n"
    return printed.getvalue() + shown


def rounded(value: Any) -> Any:
    """The value with its floats rounded to four significant digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return type(value)(map(rounded, value)) if isinstance(value, list | tuple) else value


def written(page: str) -> str:
    """Returns the page with the outputs of its examples, run in the working directory."""
    parts, start = [], 0
    for example, output in run(page):
        parts.append(page[start : example.end])
        if output:
            parts.append(f"```text\n{output}```\n")
        start = example.output_end
    return "".join(parts) + page[start:]


def main() -> None:
    """Rewrites the page that the command line names."""
    sys.path.insert(0, str(Path(__file__).parent))
    import tiny_checkpoints

    path = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        tiny_checkpoints.write(Path("tiny"))
        page = written(path.read_text(encoding="utf-8"))
        os.chdir(path.parent)
    path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
