"""Parquet files of a run, through pyarrow: rows read batch by batch, answers written from the journal of a run."""

import contextlib
import json
import os
from array import array
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpipe.common.errors import ConfigError

# Rows that are turned into Python values at a time.
_ROWS = 1024
# A row group of what is written: at most so many rows, and about so much text of the journal.
_GROUP_ROWS = 16_384
_GROUP_BYTES = 32 << 20


def check_pyarrow() -> None:
    """Raises ConfigError where pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ConfigError(
            "Parquet files need pyarrow, which is not installed: pip install 'jaxpipe[parquet]'"
        ) from None


def open_parquet(path: str | Path) -> Any:
    """Opens a file; of its contents only the footer is read.

    Raises:
        ConfigError: pyarrow is missing, or the file is no Parquet file.
    """
    check_pyarrow()
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path} cannot be read as Parquet: {error}") from None


def parquet_rows(
    file: Any, columns: Sequence[str], done: Container[int]
) -> Iterator[tuple[int, dict[str, Any] | None, str | None]]:
    """Yields (index, values by column, None), or (index, None, what is wrong), of the rows not in ``done``.

    Row groups are read one after another, and only where a row of them is wanted. The rows of one that is damaged
    each come with the error.
    """
    start = 0
    for group in range(file.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        if not all(index in done for index in range(start, end)):
            for index, row, error in _group_rows(file, group, start, end, columns):
                if index not in done:
                    yield index, row, error
        start = end


def _group_rows(
    file: Any, group: int, start: int, end: int, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any] | None, str | None]]:
    import pyarrow

    index = start
    try:
        for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=list(columns)):
            for row, error in _values(batch):
                yield index, row, error
                index += 1
    except (pyarrow.ArrowException, OSError) as error:
        for rest in range(index, end):
            yield rest, None, f"its row group cannot be read: {error}"


def _values(batch: Any) -> Iterator[tuple[dict[str, Any] | None, str | None]]:
    """The rows of a record batch as Python values; one with a value that Python cannot hold comes with its error."""
    try:
        values = batch.to_pylist()
    except (ValueError, OverflowError):
        for number in range(batch.num_rows):
            try:
                yield batch.slice(number, 1).to_pylist()[0], None
            except (ValueError, OverflowError) as error:
                yield None, f"holds what cannot be read: {error}"
        return
    for row in values:
        yield row, None


def count_rows(path: Path) -> int | None:
    """Number of rows of a Parquet file, None where there is no such file or it is not whole."""
    if not path.is_file():
        return None
    try:
        with open_parquet(path) as file:
            return file.metadata.num_rows
    except ConfigError:
        return None


def write_parquet(journal: Path, path: Path) -> None:
    """Writes a journal, ``{"index": ..., "output": ...}`` a line, as two columns of these names, in order of index.

    The file appears when it is whole. ``output`` gets the one type that holds every answer: numbers stay numbers,
    lists lists, mappings structs.

    Raises:
        ConfigError: there is no such type, or the file cannot be written.
    """
    check_pyarrow()
    import pyarrow
    import pyarrow.parquet

    beside = Path(f"{path}.part")
    try:
        order = _order(journal)
        # Types are settled by all answers before the first one is written: a list may be empty up to the last row.
        parts = (pyarrow.schema([("output", part["output"].type)]) for part in _parts(journal, order))
        output = pyarrow.unify_schemas(list(dict.fromkeys(parts)), promote_options="permissive").field("output")
        schema = pyarrow.schema([pyarrow.field("index", pyarrow.int64()), output])
        with pyarrow.parquet.ParquetWriter(beside, schema) as writer:
            for part in _parts(journal, order, output.type):
                writer.write_table(pyarrow.table(part, schema=schema))
        os.replace(beside, path)
    except (pyarrow.ArrowException, OverflowError) as error:
        raise ConfigError(
            f"output.path: {path} was not written, as its answers do not fit one type of Parquet: {error}. All answers "
            f"are in {journal}, as JSON lines; an output.path that ends in .jsonl writes no more than these."
        ) from None
    except OSError as error:
        raise ConfigError(f"output.path: {path} cannot be written: {error.strerror or error}.") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _order(journal: Path) -> np.ndarray:
    """Where the lines of a journal begin, in order of their index."""
    indices, starts, start = array("q"), array("q"), 0
    with open(journal, "rb") as file:
        for line in file:
            # `record.append_row` writes the index first; the rest of the line may be long.
            indices.append(int(line[line.index(b":") + 1 : line.index(b",")]))
            starts.append(start)
            start += len(line)
    return np.asarray(starts)[np.argsort(np.asarray(indices), kind="stable")]


def _parts(journal: Path, order: np.ndarray, output: Any = None) -> Iterator[dict[str, Any]]:
    """Yields the columns of a few rows at a time; ``output`` is the type of the answers, inferred where it is None."""
    import pyarrow

    def columns() -> dict[str, Any]:
        indices = pyarrow.array([row["index"] for row in part], pyarrow.int64())
        return {"index": indices, "output": pyarrow.array([row["output"] for row in part], output)}

    part: list[dict[str, Any]] = []
    size = 0
    with open(journal, "rb") as file:
        for start in order.tolist():
            file.seek(start)
            line = file.readline()
            part.append(json.loads(line))
            size += len(line)
            if len(part) == _GROUP_ROWS or size >= _GROUP_BYTES:
                yield columns()
                part, size = [], 0
    if part:
        yield columns()
