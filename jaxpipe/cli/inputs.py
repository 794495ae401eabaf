"""The input rows of a run: listed in the configuration, or read line by line from a text or JSONL file."""

import hashlib
import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

from jaxpipe.cli.config import Inputs
from jaxpipe.common.errors import ConfigError, nearest


@dataclass(frozen=True)
class Row:
    """One input. ``index`` counts rows from 0; for a file it is the line number less one."""

    index: int
    item: Any = None
    error: str | None = None


@dataclass(frozen=True)
class Summary:
    """How many rows the inputs have at most (blank lines of JSONL are counted), and their SHA-256."""

    rows: int
    digest: str


def listed(inputs: Inputs) -> list[Any] | None:
    """The items that stand in the configuration itself, None where they come from a file."""
    if inputs.texts is not None:
        return list(inputs.texts)
    if inputs.messages is not None:
        return [[message.model_dump(exclude_unset=True) for message in chat] for chat in inputs.messages]
    return None


def summarise(inputs: Inputs) -> Summary:
    """Counts and hashes the inputs; a file is read once, in pieces.

    Raises:
        ConfigError: the file cannot be read.
    """
    items = listed(inputs)
    if items is not None:
        digest = hashlib.sha256(json.dumps(items, sort_keys=True, default=str).encode())
        return Summary(len(items), digest.hexdigest())
    digest, lines, last = hashlib.sha256(), 0, b"\n"
    try:
        with open(str(inputs.path), "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
                lines += piece.count(b"\n")
                last = piece[-1:]
    except OSError as error:
        raise ConfigError(f"inputs.path: {inputs.path} cannot be read: {error.strerror or error}.") from None
    return Summary(lines + (last != b"\n"), digest.hexdigest())


def rows(inputs: Inputs, done: Container[int]) -> Iterator[Row]:
    """The rows whose index is not in ``done``, in order; a line that cannot be read is a Row with ``error`` set.

    A text file has one item a line. A JSONL file has one object a line, whose ``column`` is the item
    (default: "text", else "messages"); blank lines there are no rows.
    """
    items = listed(inputs)
    if items is not None:
        yield from (Row(index, item) for index, item in enumerate(items) if index not in done)
        return
    read = _json_row if inputs.file_format == "jsonl" else _text_row
    with open(str(inputs.path), "rb") as file:
        for index, line in enumerate(file):
            if index in done or (inputs.file_format == "jsonl" and not line.strip()):
                continue
            try:
                yield read(index, line.decode("utf-8"), inputs.column)
            except UnicodeDecodeError as error:
                yield Row(index, error=f"is not UTF-8: {error}")


def _text_row(index: int, line: str, column: str | None) -> Row:
    return Row(index, line.removesuffix("\n").removesuffix("\r"))


def _json_row(index: int, line: str, column: str | None) -> Row:
    try:
        value = json.loads(line)
    except ValueError as error:
        return Row(index, error=f"is not JSON: {error}")
    if not isinstance(value, dict):
        return Row(index, error=f"is not a JSON object but {type(value).__name__}; a row is {{column: item}}")
    wanted = [column] if column else ["text", "messages"]
    for name in wanted:
        if name in value:
            return Row(index, value[name])
    missing = " or ".join(repr(name) for name in wanted)
    hint = nearest(wanted[0], value) or " Name one with inputs.column."
    return Row(index, error=f"has no column {missing}; it has {', '.join(map(repr, value)) or 'none'}.{hint}")
