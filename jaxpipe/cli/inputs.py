"""The input rows of a run: listed in the configuration, or read from a text, CSV, JSONL or Parquet file.

A file is read piece by piece, never as a whole. A row that cannot be read is a row with an error, and its
neighbours are read all the same.
"""

import csv
import hashlib
import json
from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxpipe.cli.config import Inputs
from jaxpipe.common.errors import ConfigError, nearest

# What a row's item is where the configuration names no column: the first of these that there is.
DEFAULT_COLUMNS = ("text", "messages")
# Characters of a CSV field. A quote that is never closed takes in what follows it up to this limit.
_LONGEST_FIELD = 1 << 24
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """One input.

    Attributes:
        index: counts rows from 0. Of text and JSONL it is the line number less one, of CSV it counts records after the
            header.
        line: where people find it, from 1: the line of a text, JSONL or CSV file on which it begins, the row of a
            Parquet file, the place in a list.
        item: what the pipeline is called with.
        error: why there is no item.
    """

    index: int
    line: int
    item: Any = None
    error: str | None = None


@dataclass(frozen=True)
class Summary:
    """How many rows the inputs have at most (blank lines and lines inside quotes are counted), and their SHA-256."""

    rows: int
    digest: str


def listed(inputs: Inputs) -> list[Any] | None:
    """The items that stand in the configuration itself, None where they come from a file."""
    if inputs.messages is not None:
        return [[message.model_dump(exclude_unset=True) for message in chat] for chat in inputs.messages]
    items = inputs.texts if inputs.texts is not None else inputs.items
    return None if items is None else list(items)


def summarise(inputs: Inputs) -> Summary:
    """Counts and hashes the inputs, and checks the columns of a file with a header; a file is read in pieces.

    Raises:
        ConfigError: the file cannot be read, or lacks a column.
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
    count = lines + (last != b"\n")
    if inputs.file_format == "csv":
        with open(str(inputs.path), "rb") as file:
            _header(inputs, _csv_reader(file))
        count -= 1
    elif inputs.file_format == "parquet":
        from jaxpipe.cli.parquet import open_parquet

        with open_parquet(str(inputs.path)) as file:
            _checked_columns(inputs, file.schema_arrow.names)
            count = file.metadata.num_rows
    return Summary(count, digest.hexdigest())


def rows(inputs: Inputs, done: Container[int]) -> Iterator[Row]:
    """The rows whose index is not in ``done``, in order; one that cannot be read has its ``error`` set.

    A text file has one item a line, a JSONL file one object a line, a CSV file a header and then records whose quoted
    fields may hold line breaks, a Parquet file rows. Blank lines of JSONL and CSV are no rows.
    """
    items = listed(inputs)
    if items is not None:
        yield from (Row(index, index + 1, item) for index, item in enumerate(items) if index not in done)
        return
    readers = {"text": _line_rows, "jsonl": _line_rows, "csv": _csv_rows, "parquet": _parquet_rows}
    yield from readers[inputs.file_format](inputs, done)


def _line_rows(inputs: Inputs, done: Container[int]) -> Iterator[Row]:
    is_json = inputs.file_format == "jsonl"
    with open(str(inputs.path), "rb") as file:
        for index, line in enumerate(file):
            if index in done or (is_json and not line.strip()):
                continue
            try:
                text = (line.removeprefix(_BYTE_ORDER_MARK) if index == 0 else line).decode("utf-8")
                item = _json_item(inputs, text) if is_json else text.removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                yield Row(index, index + 1, error=f"is not UTF-8: {error}")
            except (ValueError, LookupError) as error:
                yield Row(index, index + 1, error=str(error.args[0]))
            else:
                yield Row(index, index + 1, item)


def _json_item(inputs: Inputs, text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"is not a JSON object but {type(value).__name__}; a row is {{column: item}}")
    return _item(inputs, value, columns_of(inputs, value))


def _csv_reader(file: Any) -> Any:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))

    def lines() -> Iterator[str]:
        for number, line in enumerate(file):
            line = line.removeprefix(_BYTE_ORDER_MARK) if number == 0 else line
            # Bytes that are not UTF-8 come through, so that only the record which holds them fails.
            yield line.decode("utf-8", "surrogateescape")

    return csv.reader(lines(), strict=True)


def _header(inputs: Inputs, reader: Any) -> list[str]:
    """The names in the first record that is not blank."""
    where = f"inputs.path: the header of {inputs.path}"
    try:
        names = next((record for record in reader if record), None)
    except csv.Error as error:
        raise ConfigError(f"{where} is not CSV: {error}.") from None
    if names is None:
        raise ConfigError(f"inputs.path: {inputs.path} is empty; a CSV file begins with the names of its columns.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{where} names {', '.join(map(repr, twice))} more than once.")
    _checked_columns(inputs, names)
    return names


def _csv_rows(inputs: Inputs, done: Container[int]) -> Iterator[Row]:
    with open(str(inputs.path), "rb") as file:
        reader = _csv_reader(file)
        names = _header(inputs, reader)
        wanted = columns_of(inputs, names)
        index = 0
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                if index not in done:
                    yield Row(index, line, error=f"is not CSV: {error}")
                index += 1
                continue
            if fields is None:
                return
            if not fields:
                continue
            if index not in done:
                try:
                    yield Row(index, line, _csv_item(inputs, names, fields, wanted))
                except ValueError as error:
                    yield Row(index, line, error=str(error))
            index += 1


def _csv_item(inputs: Inputs, names: list[str], fields: list[str], wanted: list[str]) -> Any:
    if len(fields) != len(names):
        raise ValueError(f"has {len(fields)} fields, but the header names {len(names)} columns")
    row = dict(zip(names, fields, strict=True))
    for name in wanted:
        try:
            row[name].encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"is not UTF-8 in its column {name!r}") from None
    return _item(inputs, row, wanted)


def _parquet_rows(inputs: Inputs, done: Container[int]) -> Iterator[Row]:
    from jaxpipe.cli.parquet import open_parquet, parquet_rows

    with open_parquet(str(inputs.path)) as file:
        wanted = columns_of(inputs, file.schema_arrow.names)
        for index, row, error in parquet_rows(file, wanted, done):
            item = None if row is None else _item(inputs, row, wanted)
            yield Row(index, index + 1, item, error)


def columns_of(inputs: Inputs, names: Collection[str]) -> list[str]:
    """The columns that make up an item, of those that a row or a file has.

    Raises:
        LookupError: one is missing.
    """
    if inputs.mapping is not None:
        wanted = list(inputs.mapping.values())
    else:
        there = next((name for name in DEFAULT_COLUMNS if name in names), None)
        wanted = [inputs.column or there or DEFAULT_COLUMNS[0]]
    missing = [name for name in wanted if name not in names]
    if not missing:
        return wanted
    by_default = inputs.mapping is None and inputs.column is None
    said = " or ".join(map(repr, DEFAULT_COLUMNS if by_default else missing[:1]))
    hint = nearest(missing[0], names) or (" Name one with inputs.column." if by_default else "")
    raise LookupError(f"has no column {said}; it has {', '.join(map(repr, names)) or 'none'}.{hint}")


def _checked_columns(inputs: Inputs, names: Collection[str]) -> None:
    try:
        columns_of(inputs, names)
    except LookupError as error:
        raise ConfigError(f"inputs.path: {inputs.path} {error}") from None


def _item(inputs: Inputs, row: Mapping[str, Any], wanted: list[str]) -> Any:
    if inputs.mapping is None:
        return row[wanted[0]]
    return {key: row[name] for key, name in inputs.mapping.items()}
