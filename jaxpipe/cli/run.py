"""``jaxpipe run``: a pipeline over every input row, resumable row by row."""

import contextlib
import dataclasses
import inspect
import itertools
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Protocol

from jaxpipe.cli.config import RunConfig
from jaxpipe.cli.display import answer_text, console, prompt_text
from jaxpipe.cli.inputs import Row, rows, summarise
from jaxpipe.cli.record import RunFiles, append_row, error_row, errors_path
from jaxpipe.cli.reporting import INTERRUPTED, message_of
from jaxpipe.common.errors import ConfigError

# Rows that the pipeline is given at a time, or batches if these are more: enough for it to find rows of similar
# length and to keep the device busy.
_WINDOW = 2048
_WINDOW_BATCHES = 16


class RowError(ValueError):
    """A row failed in a run that has nowhere to note it, or answers cannot be told apart."""


class Sink(Protocol):
    """Where answers go."""

    def write(self, row: Row, output: Any) -> None:
        """Keeps the answer of a row."""
        ...

    def write_error(self, row: Row, message: str) -> None:
        """Keeps the failure of a row."""
        ...

    def finish(self) -> None:
        """Ends a run that has tried every row."""
        ...


class Terminal:
    """Prints answers for people; a row that fails ends the run, unless the configuration names a file for errors."""

    def __init__(self, config: RunConfig) -> None:
        self._console = console()
        self._errors = config.output.errors
        self._from_file = config.inputs.file_format if config.inputs.path is not None else None
        if self._errors:
            open(self._errors, "wb").close()

    def write(self, row: Row, output: Any) -> None:
        """Prints the answer of a row, under its prompt where a person looks on."""
        text, prompt = answer_text(output), prompt_text(row.item)
        if self._console.is_terminal and not text.startswith(prompt):
            self._console.print(f"> {prompt}", style="dim")
        self._console.print(text)

    def write_error(self, row: Row, message: str) -> None:
        """Notes a failure in the file of errors.

        Raises:
            RowError: there is no such file.
        """
        if not self._errors:
            raise RowError(f"line {row.line}: {message}" if self._from_file else f"row {row.line}: {message}")
        with open(self._errors, "ab") as file:
            append_row(file, error_row(row, message))

    def finish(self) -> None:
        """Nothing is left to do: answers are printed as they come."""


def windows(pending: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Groups rows, ``size`` at a time; the last group may be smaller."""
    iterator = iter(pending)
    while window := list(itertools.islice(iterator, size)):
        yield window


def answers(pipe: Any, window: list[Row], call: dict[str, Any]) -> Iterator[tuple[Row, Any, str | None]]:
    """Runs the rows of a window; gives each, in order, with its output, or with what went wrong.

    One bad row costs its neighbours nothing: what the pipeline would refuse is kept from it, and rows that fail
    together are run again in halves, down to the row that fails alone.
    """
    checked = [_checked(pipe, row) for row in window]
    good = [row for row in checked if row.error is None]
    results = itertools.chain.from_iterable(_run_rows(pipe, rows, call) for rows in _neighbours(pipe, good))
    for row in checked:
        yield next(results) if row.error is None else (row, None, row.error)
    # An answer too many is found where the one after the last is asked for.
    next(results, None)


def _checked(pipe: Any, row: Row) -> Row:
    """The row, with its error set where the pipeline would refuse its item."""
    if row.error is not None or not hasattr(pipe, "check_item"):
        return row
    try:
        pipe.check_item(row.item, "the row")
    except Exception as error:
        return dataclasses.replace(row, error=_described(error))
    return row


def _neighbours(pipe: Any, rows: list[Row]) -> Iterator[list[Row]]:
    """Splits rows where indices jump, if random numbers depend on them: a call counts on from ``item_offset``."""
    if not getattr(pipe, "_pipeline_calls_generate", False):
        if rows:
            yield rows
        return
    for _, group in itertools.groupby(enumerate(rows), lambda pair: pair[1].index - pair[0]):
        yield [row for _, row in group]


def _run_rows(pipe: Any, rows: list[Row], call: dict[str, Any]) -> Iterator[tuple[Row, Any, str | None]]:
    """Runs rows, all at once as long as none fails; then in halves down to the one that does, and in growing parts
    from there, so that neither one bad row nor many cost much.
    """
    size, suspects = len(rows), 0
    while rows:
        part = rows[:size]
        answered, failure = yield from _attempt(pipe, part, call)
        rows, left = rows[answered:], part[answered:]
        if failure is None:
            suspects = max(suspects - answered, 0)
            size = suspects // 2 or 1 if suspects else 2 * size
        elif len(part) == 1:
            yield part[0], None, _described(failure)
            rows, size, suspects = rows[1:], 1, 0
        else:
            suspects = len(left)
            size = suspects // 2 or 1


def _attempt(
    pipe: Any, rows: list[Row], call: dict[str, Any]
) -> Generator[tuple[Row, Any, str | None], None, tuple[int, Exception | None]]:
    """Yields answers up to the first failure; returns their number and the failure."""
    from jaxpipe.pipelines.inputs import StreamedList

    answered = 0
    try:
        # Streamed, each answer has one form: some tasks nest that of a single item otherwise than that of a list.
        for output in pipe(StreamedList([row.item for row in rows]), item_offset=rows[0].index, **call):
            if answered == len(rows):
                break
            yield rows[answered], output, None
            answered += 1
        else:
            if answered == len(rows):
                return answered, None
    except Exception as error:
        return answered, error
    raise RowError(f"The pipeline gave {len(rows)} rows more or fewer answers, so they cannot be told apart.")


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {message_of(error)}"


def make_pipeline(config: RunConfig) -> Any:
    """The pipeline that a configuration describes, with ``call`` as its defaults, so that wrong ones fail at once.

    Raises:
        ConfigError: a key of ``call`` belongs to the making of the pipeline, or nothing takes one of the keys.
    """
    from jaxpipe.pipelines import pipeline

    parameters = inspect.signature(pipeline).parameters.values()
    taken = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
    for key in config.call:
        if key in taken:
            raise ConfigError(f"call.{key}: is about loading the model; give it beside call, or in model_kwargs.")
    model_kwargs = dict(config.model_kwargs)
    if config.max_memory is not None:
        model_kwargs["max_memory"] = config.max_memory
    given = {"revision": config.revision, "tokenizer": config.tokenizer, "device_map": config.device_map}
    try:
        return pipeline(
            config.task,
            model=config.model,
            dtype=config.dtype,
            model_kwargs=model_kwargs,
            **{key: value for key, value in given.items() if value is not None},
            **config.call,
        )
    except TypeError as error:
        # Arguments that nothing takes come from these two mappings: all others are checked above.
        raise ConfigError(f"model_kwargs or call: {error}") from error


def run(config: RunConfig) -> int:
    """Runs a configuration and returns the exit code: 0, 1 where every row failed, 130 where it was interrupted.

    Raises:
        ConfigError: the output belongs to another run, or an input or output cannot be opened.
        RowError: a row failed and the configuration names no file for errors.
    """
    summary = summarise(config.inputs)
    if config.output.path == "-":
        return _work(config, Terminal(config), summary.rows, set(), config.seed)
    with contextlib.closing(RunFiles(config, summary.digest)) as files:
        return _work(config, files, summary.rows, files.done, files.seed)


def _work(config: RunConfig, sink: Sink, total: int, done: set[int], seed: int | None) -> int:
    """Answers the rows that are not done, and sums up on stderr."""
    begin = time.perf_counter()
    pending = rows(config.inputs, done)
    first = next(pending, None)
    if first is None:
        sink.finish()
        _say(f"{config.output.path}: complete, nothing to do." if done else "The input has no rows.")
        return 0
    counts = {"written": 0, "failed": 0}
    try:
        pipe = make_pipeline(config)
        call: dict[str, Any] = {} if config.batch_size is None else {"batch_size": config.batch_size}
        if seed is not None and getattr(pipe, "_pipeline_calls_generate", False):
            call["seed"] = seed
        with _progress(config, total, len(done)) as advance:
            size = max(_WINDOW, _WINDOW_BATCHES * (config.batch_size or 1))
            for window in windows(itertools.chain([first], pending), size):
                for row, output, error in answers(pipe, window, call):
                    error = error or _written(sink, row, output)
                    if error:
                        sink.write_error(row, error)
                    counts["failed" if error else "written"] += 1
                    advance()
        sink.finish()
    except KeyboardInterrupt:
        goes_on = "" if config.output.path == "-" else "; the same command goes on from there"
        _say(f"Interrupted after {sum(counts.values())} rows{goes_on}.")
        return INTERRUPTED
    _say(_summary(config, counts, len(done), time.perf_counter() - begin))
    return 0 if counts["written"] else 1


def _written(sink: Sink, row: Row, output: Any) -> str | None:
    """Hands an answer over; returns what is wrong with one that JSON cannot express."""
    try:
        sink.write(row, output)
    except (TypeError, ValueError) as error:
        return _described(error)
    return None


@contextlib.contextmanager
def _progress(config: RunConfig, total: int, done: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr where a person looks on and answers go to a file."""
    if config.output.path == "-" or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task(config.task, total=total, completed=done)
        yield lambda: bar.advance(task)


def _summary(config: RunConfig, counts: dict[str, int], done: int, seconds: float) -> str:
    rows_of = "1 row" if counts["written"] == 1 else f"{counts['written']} rows"
    where = "" if config.output.path == "-" else f" to {config.output.path}"
    failed = f", {counts['failed']} failed (see {errors_path(config.output)})" if counts["failed"] else ""
    before = f", {done} were there before" if done else ""
    return f"{rows_of}{where}{failed}{before}, in {seconds:.1f} s."


def _say(message: str) -> None:
    sys.stderr.write(f"jaxpipe: {message}\n")
