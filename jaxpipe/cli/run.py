"""``jaxpipe run``: a pipeline over every input row, resumable row by row."""

import contextlib
import inspect
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from jaxpipe.cli.config import RunConfig
from jaxpipe.cli.display import answer_text, console, prompt_text
from jaxpipe.cli.inputs import Row, rows, summarise
from jaxpipe.cli.record import RunFiles, append_row, error_row, errors_path
from jaxpipe.cli.reporting import INTERRUPTED, message_of
from jaxpipe.common.errors import ConfigError


class RowError(ValueError):
    """A row failed in a run that has nowhere to note it."""


class Sink(Protocol):
    """Where answers go."""

    def write(self, row: Row, output: Any) -> None:
        """Keeps the answer of a row."""
        ...

    def write_error(self, index: int, message: str) -> None:
        """Keeps the failure of a row."""
        ...


class Terminal:
    """Prints answers for people; a row that fails ends the run, unless the configuration names a file for errors."""

    def __init__(self, config: RunConfig) -> None:
        self._console = console()
        self._errors = config.output.errors
        if self._errors:
            open(self._errors, "wb").close()

    def write(self, row: Row, output: Any) -> None:
        """Prints the answer of a row, under its prompt where a person looks on."""
        text, prompt = answer_text(output), prompt_text(row.item)
        if self._console.is_terminal and not text.startswith(prompt):
            self._console.print(f"> {prompt}", style="dim")
        self._console.print(text)

    def write_error(self, index: int, message: str) -> None:
        """Notes a failure in the file of errors.

        Raises:
            RowError: there is no such file.
        """
        if not self._errors:
            raise RowError(f"row {index + 1}: {message}")
        with open(self._errors, "ab") as file:
            append_row(file, error_row(index, message))


def batches(pending: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Groups rows with neighbouring indices, at most ``size`` at a time; a row that could not be read stands alone."""
    batch: list[Row] = []
    for row in pending:
        if batch and (row.error or row.index != batch[-1].index + 1 or len(batch) == size):
            yield batch
            batch = []
        if row.error:
            yield [row]
        else:
            batch.append(row)
    if batch:
        yield batch


def answers(pipe: Any, batch: list[Row], call: dict[str, Any]) -> Iterator[tuple[Row, Any, str | None]]:
    """Runs a batch; gives each row with its output, or with what went wrong.

    A batch that fails is run again row by row, so that one bad row costs its neighbours nothing.
    """
    if batch[0].error:
        yield batch[0], None, batch[0].error
        return
    # A list of one may come back unwrapped from some tasks; a single item never does.
    items = batch[0].item if len(batch) == 1 else [row.item for row in batch]
    try:
        outputs = pipe(items, item_offset=batch[0].index, **call)
        outputs = [outputs] if len(batch) == 1 else list(outputs)
        if len(outputs) != len(batch):
            raise ValueError(f"the pipeline gave {len(outputs)} answers to {len(batch)} rows")
    except Exception as error:
        if len(batch) == 1:
            yield batch[0], None, f"{type(error).__name__}: {message_of(error)}"
            return
        for row in batch:
            yield from answers(pipe, [row], call)
        return
    for row, output in zip(batch, outputs, strict=True):
        yield row, output, None


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
        _say(f"{config.output.path}: complete, nothing to do." if done else "The input has no rows.")
        return 0
    counts = {"written": 0, "failed": 0}
    try:
        pipe = make_pipeline(config)
        call: dict[str, Any] = {"batch_size": config.batch_size}
        if seed is not None and getattr(pipe, "_pipeline_calls_generate", False):
            call["seed"] = seed
        with _progress(config, total, len(done)) as advance:
            for row, output, error in _answered(pipe, itertools.chain([first], pending), config.batch_size, call):
                error = error or _written(sink, row, output)
                if error:
                    sink.write_error(row.index, error)
                counts["failed" if error else "written"] += 1
                advance()
    except KeyboardInterrupt:
        goes_on = "" if config.output.path == "-" else "; the same command goes on from there"
        _say(f"Interrupted after {sum(counts.values())} rows{goes_on}.")
        return INTERRUPTED
    _say(_summary(config, counts, len(done), time.perf_counter() - begin))
    return 0 if counts["written"] else 1


def _answered(
    pipe: Any, pending: Iterable[Row], batch_size: int, call: dict[str, Any]
) -> Iterator[tuple[Row, Any, str | None]]:
    for batch in batches(pending, batch_size):
        yield from answers(pipe, batch, call)


def _written(sink: Sink, row: Row, output: Any) -> str | None:
    """Hands an answer over; returns what is wrong with one that JSON cannot express."""
    try:
        sink.write(row, output)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
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
