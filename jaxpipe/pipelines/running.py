"""One call of a pipeline: items are read ahead, grouped, run and given back in order."""

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxpipe.pipelines.batching import Batch, Plan, Row, collate, is_array, plan_batches, split
from jaxpipe.pipelines.inputs import Inputs

if TYPE_CHECKING:
    from jaxpipe.pipelines.base import Parameters, Pipeline

# Prompts of a batch hold a key-value cache each, so their tokens are bounded.
_GENERATING_TOKENS = 16_384
# Rows of similar length are sought among this many items of a list, or batches if that is more; and among few batches
# of a lazy input, since these items are read before the first result is given.
_LIST_WINDOW = 2048
_LIST_BATCHES = 16
_LAZY_BATCHES = 4
# Batches dispatched before the first of them is fetched.
_IN_FLIGHT = 2
# The most batches that a CPU computes at once.
_AT_ONCE = 8
Window = list[tuple[int, Any]]


class Run:
    """One call of a pipeline: its parameters, batch size and window.

    Args:
        pipe: the pipeline.
        arranged: the items of the call.
        batch_size: rows run at once; None: the constructor's, else what the pipeline finds good.
        offset: index of the first item in a larger input.
        parameters: of preprocess, forward and postprocess.
    """

    def __init__(
        self, pipe: "Pipeline", arranged: Inputs, batch_size: int | None, offset: int, parameters: "Parameters"
    ) -> None:
        self.pipe = pipe
        self.offset = offset
        self.preprocess, self.forward, self.postprocess = parameters
        asked = checked_batch_size(batch_size)
        asked = pipe._batch_size if asked is None else asked
        self._asked = asked is not None
        self.batch_size = pipe._default_batch_size(arranged, self.forward) if asked is None else asked
        if asked is not None and arranged.kind != "one":
            pipe._check_batch_size(asked)
        self._at_hand = arranged.at_hand
        self._many = arranged.at_hand and arranged.kind != "one"
        if arranged.at_hand:
            few = _LIST_BATCHES * (self.batch_size or 1)
            self.window = few if pipe._pipeline_calls_generate else max(few, _LIST_WINDOW)
        else:
            # Single rows need no company of similar length, so nothing is read ahead.
            self.window = 1 if self.batch_size in (None, 1) else _LAZY_BATCHES * self.batch_size
        # Of each shape (B, T), whether its first batch, which compiles it, is done.
        self._compiled: dict[tuple[int, int], Event] = {}

    def results(self, items: Iterator[tuple[int, Any]]) -> Iterator[Any]:
        """Yields the results in order, reading no more than a window of items ahead."""
        collected = _Collected(self)
        waiting: deque[Future[tuple[Batch, Any]]] = deque()
        at_once = self._at_once
        pool = ThreadPoolExecutor(at_once) if at_once > 1 else None
        try:
            for window, rows in self._read_ahead(items):
                collected.expect(window, rows)
                for plan in self._plan(rows):
                    waiting.append(self._submit(plan, pool))
                    if len(waiting) >= _IN_FLIGHT + at_once:
                        yield from collected.add(*waiting.popleft().result())
                # A lazy input may depend on the results so far, so they are given before more of it is read.
                while waiting and not self._at_hand:
                    yield from collected.add(*waiting.popleft().result())
            for dispatched in waiting:
                yield from collected.add(*dispatched.result())
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)

    @property
    def _at_once(self) -> int:
        """Number of batches that are computed at once: one for each core of a CPU, which one batch keeps busy in its
        large products only. Several devices do not: programs that wait for each other's parts must run in one order.
        """
        mesh = getattr(self.pipe.model, "mesh", None)
        if not (self._many and self.pipe._forwards_at_once) or mesh is None or mesh.size > 1:
            return 1
        if mesh.devices.flat[0].platform != "cpu":
            return 1
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return min(cores or 1, _AT_ONCE)

    def _submit(self, plan: Plan, pool: ThreadPoolExecutor | None) -> "Future[tuple[Batch, Any]]":
        """Dispatches a batch, or has a thread of the pool compute it."""
        if pool is None:
            dispatched: Future[tuple[Batch, Any]] = Future()
            dispatched.set_result(self._dispatch(plan))
            return dispatched
        shape = plan.size, plan.length
        first, compiled = shape not in self._compiled, self._compiled.setdefault(shape, Event())

        def compute() -> tuple[Batch, Any]:
            if not first:
                compiled.wait()
            try:
                # Waited for here, lest the thread's next batch queues behind it.
                return jax.block_until_ready(self._dispatch(plan))
            finally:
                compiled.set()

        return pool.submit(compute)

    def _read_ahead(self, items: Iterator[tuple[int, Any]]) -> Iterator[tuple[Window, list[Row]]]:
        """Yields windows with their rows; those of items in memory are preprocessed while the device is busy."""
        if not self._at_hand:
            while window := list(_take(items, self.window)):
                yield window, self._rows(window)
            return
        window = list(_take(items, self.window))
        rows = self._rows(window)
        with ThreadPoolExecutor(1) as ahead:
            while window:
                following = list(_take(items, self.window))
                prepared = ahead.submit(self._rows, following)
                yield window, rows
                window, rows = following, prepared.result()

    def _rows(self, window: Window) -> list[Row]:
        if self.pipe._preprocesses_together and len(window) > 1:
            # What goes wrong is found again item by item, so that the error names the one.
            with contextlib.suppress(Exception):
                made = self.pipe.preprocess_batch([item for _, item in window], **self.preprocess)
                return [Row(index, 0, _checked_row(row)) for (index, _), row in zip(window, made, strict=True)]
        return [row for index, item in window for row in self._rows_of(index, item)]

    def _rows_of(self, index: int, item: Any) -> list[Row]:
        with _noted(f"Raised for item {index} of the inputs."):
            made = self.pipe.preprocess(item, **self.preprocess)
            many = list(made) if self.pipe._many_rows else [made]
            if not many:
                raise ValueError(f"preprocess gave no row for item {index} of the inputs.")
            return [Row(index, part, _checked_row(row), part == len(many) - 1) for part, row in enumerate(many)]

    def _plan(self, rows: list[Row]) -> list[Plan]:
        same_length = self.pipe._needs_same_length(self.forward)
        if self.pipe._pipeline_calls_generate:
            # `generate` pads to its own buckets.
            return plan_batches(rows, self._full, int, same_length)
        sizing = self.pipe._sizing
        plans = plan_batches(rows, self._full, sizing.coarse, same_length)
        fine = sizing.fine(len(plans)) if self.batch_size != 1 else None
        if fine is not None:
            plans = plan_batches(rows, self._full, fine, same_length)
        for plan in plans:
            full = self._full(plan.length)
            # Among many batches one more size would cost more than the padding of the last.
            plan.size = sizing.size(plan.size if fine is None else full, full)
        return plans

    def _full(self, length: int) -> int:
        """Returns the number of rows of a full batch of a padded length."""
        if self.batch_size is None:
            return self.pipe._sizing.rows(length)
        if self._asked or not self.pipe._pipeline_calls_generate:
            return self.batch_size
        return max(min(self.batch_size, _GENERATING_TOKENS // max(length, 1)), 1)

    def _dispatch(self, plan: Plan) -> tuple[Batch, Any]:
        numbers = ", ".join(str(number) for number in sorted({row.item for row in plan.rows}))
        with _noted(f"Raised for the batch with item {numbers} of the inputs."):
            pad_id = getattr(self.pipe.tokenizer, "pad_token_id", None) or 0
            batch = collate(plan, pad_id=pad_id, side=self.pipe._padding_side)
            parameters = dict(self.forward)
            if self.pipe._pipeline_calls_generate:
                parameters["item_indices"] = [row.item + self.offset for row in batch.rows for _ in range(row.size)]
            outputs = self.pipe._forward(dict(batch.inputs), **parameters)
            for array in jax.tree.leaves(outputs):
                # The copy starts as soon as the result is there, not when somebody asks for it.
                if isinstance(array, jax.Array) and array.is_fully_addressable:
                    array.copy_to_host_async()
            return batch, outputs

    def result(self, index: int, outputs: list[Any]) -> Any:
        """Returns the result of an item from the outputs of its rows."""
        with _noted(f"Raised for item {index} of the inputs."):
            return self.pipe.postprocess(outputs if self.pipe._many_rows else outputs[0], **self.postprocess)


class _Collected:
    """Outputs of rows, until those of the next item in order are complete."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._order: deque[int] = deque()
        self._parts: dict[int, dict[int, Any]] = {}
        self._expected: dict[int, int] = {}

    def expect(self, window: Window, rows: list[Row]) -> None:
        """Takes note of the items of a window, and of how many rows each has."""
        self._order += [index for index, _ in window]
        self._parts.update({index: {} for index, _ in window})
        self._expected.update({row.item: row.part + 1 for row in rows if row.last})

    def add(self, batch: Batch, outputs: Any) -> Iterator[Any]:
        """Takes the outputs of a batch; yields the results that are next in order and complete."""
        for row, output in zip(batch.rows, split(outputs, batch), strict=True):
            self._parts[row.item][row.part] = output
        while self._order and len(self._parts[self._order[0]]) == self._expected[self._order[0]]:
            index = self._order.popleft()
            del self._expected[index]
            parts = self._parts.pop(index)
            yield self._run.result(index, [parts[part] for part in sorted(parts)])


def checked_batch_size(batch_size: Any) -> int | None:
    """Returns a batch size as int, or None.

    Raises:
        ValueError: it is no whole number of at least 1.
    """
    if batch_size is None:
        return None
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise ValueError(f"batch_size= takes a whole number of at least 1, not {batch_size!r}.")
    return int(batch_size)


def _take(items: Iterator[Any], count: int) -> Iterator[Any]:
    for _ in range(count):
        try:
            yield next(items)
        except StopIteration:
            return


def _checked_row(row: Any) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise TypeError(f"preprocess returns a dictionary of arrays, not {type(row).__name__}.")
    row = dict(row)
    ids = row.get("input_ids")
    if ids is not None and not (is_array(ids) and len(ids.shape) == 2):
        raise ValueError("preprocess returns input_ids as an array (1, T); pass return_tensors='np' to the tokenizer.")
    return row


@contextlib.contextmanager
def _noted(note: str) -> Iterator[None]:
    """Adds to an exception which item it is about."""
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise
