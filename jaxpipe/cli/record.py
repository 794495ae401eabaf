"""The files of a run: answers, errors, and a record beside them by which an interrupted run goes on.

``out.jsonl`` has one line a row, ``{"index": ..., "output": ...}``. ``out.jsonl.errors.jsonl`` has the rows that
failed, ``{"index": ..., "line": ..., "error": ...}``. ``out.jsonl.run.json`` says which configuration and input they
belong to. A row counts as done when either file has its whole line.

A Parquet file has its footer at the end, so it cannot grow row by row. A run that writes ``out.parquet`` keeps its
answers in a journal, ``out.parquet.rows.jsonl``, which is what the JSONL file is otherwise: interrupted runs go on from
it. When every row has been tried, the journal is written as ``out.parquet``, which replaces an earlier one as a whole.
The journal stays, so that rows that failed can be tried again; who needs neither may remove it.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jaxpipe import __version__
from jaxpipe.cli.config import Output, RunConfig
from jaxpipe.cli.inputs import Row
from jaxpipe.cli.parquet import check_pyarrow, count_rows, write_parquet
from jaxpipe.common.errors import ConfigError
from jaxpipe.common.random import next_seed

try:
    import fcntl
except ImportError:  # Windows has no advisory locks; two runs there must not share an output.
    fcntl = None

# What changes no answer: where it goes, how many rows go at a time, and on which devices.
NEUTRAL = {"output", "inputs", "batch_size", "device_map", "max_memory"}


def fingerprint(config: RunConfig, input_digest: str) -> dict[str, str]:
    """What a run's answers depend on: key of the configuration -> hash of its value.

    Values themselves are not kept, as some are private; an access token changes nothing and is left out.
    """
    settings = config.model_dump(mode="json", exclude=NEUTRAL)
    settings["model_kwargs"].pop("token", None)
    inputs = config.inputs
    settings["inputs"] = [input_digest, inputs.column, inputs.columns, inputs.format]
    return {
        key: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
        for key, value in settings.items()
    }


class RunFiles:
    """The open files of a run that writes to a JSONL or a Parquet file.

    Args:
        config: the run's configuration; ``config.output.path`` names a file.
        input_digest: SHA-256 of the inputs.

    Raises:
        ConfigError: the files belong to another configuration, input or program, or another run is writing them.
    """

    def __init__(self, config: RunConfig, input_digest: str) -> None:
        target = Path(config.output.path)
        self.parquet = target if config.output.file_format == "parquet" else None
        # Where answers are appended.
        self.path = Path(f"{target}.rows.jsonl") if self.parquet else target
        self.errors_path = errors_path(config.output)
        self.record_path = Path(f"{target}.run.json")
        if self.errors_path in (self.path, target):
            raise ConfigError(f"output.errors: {self.errors_path} is output.path too; give it another name.")
        if self.parquet:
            check_pyarrow()
        self._open_locked()
        try:
            if config.output.overwrite:
                self._forget()
            self.seed = self._begin(fingerprint(config, input_digest), config.seed)
            self.done = set(self._whole_rows(self._answers)) | set(self._whole_rows(self._errors))
        except BaseException:
            self.close()
            raise

    def write(self, row: Row, output: Any) -> None:
        """Appends the answer of a row."""
        append_row(self._answers, {"index": row.index, "output": output})

    def write_error(self, row: Row, message: str) -> None:
        """Appends the failure of a row."""
        append_row(self._errors, error_row(row, message))

    def finish(self) -> None:
        """Writes the Parquet file of a run that has tried every row, unless it is there already.

        Raises:
            ConfigError: the answers do not fit one type, or the file cannot be written.
        """
        if self.parquet is None or os.fstat(self._answers.fileno()).st_size == 0:
            return
        self._answers.seek(0)
        if count_rows(self.parquet) != sum(1 for _ in self._answers):
            write_parquet(self.path, self.parquet)

    def close(self) -> None:
        """Closes the files, and removes those that hold nothing."""
        if self._empty():
            self.path.unlink(missing_ok=True)
            self.record_path.unlink(missing_ok=True)
        if os.fstat(self._errors.fileno()).st_size == 0:
            self.errors_path.unlink(missing_ok=True)
        self._errors.close()
        self._answers.close()

    def _open_locked(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.errors_path.parent.mkdir(parents=True, exist_ok=True)
            self._answers = open(self.path, "a+b")  # noqa: SIM115
            self._errors = open(self.errors_path, "a+b")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"output: {error.filename} cannot be written: {error.strerror}.") from None
        if fcntl is not None:
            try:
                fcntl.flock(self._answers, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._answers.close()
                self._errors.close()
                raise ConfigError(f"output.path: another run is writing {self.path}; wait for it to end.") from None

    def _forget(self) -> None:
        self.record_path.unlink(missing_ok=True)
        self._answers.truncate(0)
        self._errors.truncate(0)
        if self.parquet:
            self.parquet.unlink(missing_ok=True)

    def _begin(self, wanted: dict[str, str], seed: int | None) -> int:
        """Compares with the record of an earlier run, or writes this run's; returns the seed in use."""
        record = self._read_record()
        if self.parquet is not None and self.parquet.exists() and self._empty():
            raise ConfigError(
                f"output.path: {self.parquet} is there, but not {self.path}, from which its run would go on. Give "
                "another path, remove it, or pass output.overwrite=true to lose it."
            )
        if record is not None and record["hashes"] == wanted:
            return record["seed"]
        if not self._empty():
            raise ConfigError(self._refusal(record, wanted))
        seed = next_seed() if seed is None else seed
        text = json.dumps({"jaxpipe": __version__, "seed": seed, "hashes": wanted}, indent=2)
        beside = Path(f"{self.record_path}.part")
        beside.write_text(text + "\n", encoding="utf-8")
        os.replace(beside, self.record_path)
        return seed

    def _empty(self) -> bool:
        return not any(os.fstat(file.fileno()).st_size for file in (self._answers, self._errors))

    def _read_record(self) -> dict[str, Any] | None:
        try:
            record = json.loads(self.record_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(record, dict) and isinstance(record.get("seed"), int) and "hashes" in record
        return record if whole else None

    def _refusal(self, record: dict[str, Any] | None, wanted: dict[str, str]) -> str:
        if record is None:
            found = f"holds data, but {self.record_path} does not say from which run"
        else:
            before = record["hashes"]
            changed = sorted(key for key in {*before, *wanted} if before.get(key) != wanted.get(key))
            found = f"holds answers of another run (changed since: {', '.join(changed)})"
        return (
            f"output.path: {self.path} {found}. Give another path, remove it and {self.errors_path}, "
            "or pass output.overwrite=true to lose them."
        )

    def _whole_rows(self, file: IO[bytes]) -> Iterator[int]:
        """Indices of the rows in a file; a half-written last line, which a kill leaves behind, is cut off."""
        file.seek(0)
        good = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                yield int(json.loads(line)["index"])
            except (ValueError, KeyError, TypeError):
                raise ConfigError(
                    f"{file.name}: line {number} is not a row of a run; repair or remove the file."
                ) from None
            good += len(line)
        file.truncate(good)
        file.seek(0, os.SEEK_END)


def errors_path(output: Output) -> Path:
    """Where rows that fail are noted."""
    return Path(output.errors or f"{output.path}.errors.jsonl")


def error_row(row: Row, message: str) -> dict[str, Any]:
    """What is noted of a failure: the row's index, its line number (from 1) and the message."""
    return {"index": row.index, "line": row.line, "error": message}


def append_row(file: IO[bytes], row: dict[str, Any]) -> None:
    """Appends one JSON line.

    Raises:
        TypeError: the row holds something that JSON cannot express; nothing is written.
        ValueError: it holds NaN, which is no answer; nothing is written.
    """
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=plain)
    except ValueError:
        # Infinities are let through: they are scores that a processor of logits has ruled out.
        text = json.dumps(row, ensure_ascii=False, default=plain)
        json.loads(text, parse_constant=_not_nan)
    # One write of one whole line: a kill leaves at most the last line unfinished.
    file.write(text.encode() + b"\n")
    file.flush()


def _not_nan(constant: str) -> float:
    if constant == "NaN":
        raise ValueError("the answer holds NaN; the model's weights or its input may hold NaN or overflow")
    return float(constant)


def plain(value: Any) -> Any:
    """Numbers and arrays of numpy and JAX as what JSON knows; for ``json.dumps(default=...)``."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "keys") and hasattr(value, "items"):
        return dict(value.items())
    raise TypeError(f"an answer of type {type(value).__name__} cannot be written as JSON")
