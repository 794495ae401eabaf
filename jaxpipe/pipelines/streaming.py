"""Answers in pieces while they are generated: an iterator, and its twin for coroutines.

`generate` runs in a thread of its own, which ends with the iterator: at the answer's end, at an error, or as soon as
the consumer stops, then with the step that is under way.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpipe.generation.streamers import BaseStreamer

# A window of tokens is decoded for each new one; it is cut to its last tokens when it is long.
_WINDOW = 96
_KEPT = 24
# Cleaning of spaces, such as that in " n't", looks at a few characters, and what it does to them decides about others.
_UNSETTLED = 8
_UNFINISHED = "\ufffd"  # what the bytes of a character are decoded to before the last of them is there


@dataclass(frozen=True)
class StreamPlan:
    """What a stream consists of.

    Attributes:
        first: text before the answer, which is no part of what is generated.
        decode: the text of token ids.
        keeps_prompt: the ids that `generate` begins with are decoded too.
        cleans: decoding changes spaces, so that later tokens change the end of a text.
        run: generates with a streamer, or None, and returns the whole answer's text.
        whole: the answer comes in one piece.
    """

    first: str
    decode: Callable[[list[int]], str]
    keeps_prompt: bool
    cleans: bool
    run: Callable[[BaseStreamer | None], str]
    whole: bool = False


class TextPieces:
    """Turns token ids into text that later tokens do not change.

    Args:
        decode: the text of token ids.
        cleans: see `StreamPlan`.
    """

    def __init__(self, decode: Callable[[list[int]], str], cleans: bool = False) -> None:
        self._decode, self._held = decode, _UNSETTLED if cleans else 0
        self._ids: list[int] = []
        self._given = 0  # characters of the window's text

    def add(self, ids: list[int]) -> str:
        """Returns the text that became final with more ids; it may be empty."""
        self._ids += ids
        text = self._decode(self._ids)
        start, self._given = self._given, max(self._given, len(text.rstrip(_UNFINISHED)) - self._held)
        piece = text[start : self._given]
        if len(self._ids) > _WINDOW:
            self._shorten(text[self._given :])
        return piece

    def _shorten(self, pending: str) -> None:
        """Drops the ids at the window's begin, where its text still ends with what is pending."""
        last = self._ids[-_KEPT:]
        text = self._decode(last)
        if text.endswith(pending) and len(text) > len(pending):
            self._ids, self._given = last, len(text) - len(pending)


def cleans_spaces(tokenizer: Any, clean_up: bool | None) -> bool:
    """Whether a tokenizer changes spaces where it decodes, with ``clean_up_tokenization_spaces`` as given or None."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    own = getattr(tokenizer, "clean_up_tokenization_spaces", False)
    return type(decoder).__name__ == "WordPiece" or bool(own if clean_up is None else clean_up)


class Stopped(Exception):
    """Ends a generation that nobody listens to any more."""


@dataclass(frozen=True)
class _End:
    """The last thing that a stream delivers, with the error that ended it, if one did."""

    error: BaseException | None


class _Pieces(BaseStreamer):
    """Delivers the pieces of an answer."""

    def __init__(self, plan: StreamPlan, deliver: Callable[[str], None], is_stopped: Callable[[], bool]) -> None:
        self._plan, self._deliver, self._is_stopped = plan, deliver, is_stopped
        self._text = TextPieces(plan.decode, plan.cleans)
        self._expects_prompt = True
        self.sent: list[str] = []

    def put(self, value: Any) -> None:
        if self._is_stopped():
            raise Stopped
        skipped = self._expects_prompt and not self._plan.keeps_prompt
        self._expects_prompt = False
        piece = "" if skipped else self._text.add(np.asarray(value).reshape(-1).tolist())
        if piece:
            self.sent.append(piece)
            self._deliver(piece)

    def end(self) -> None:
        pass  # the rest comes with the answer


class _Worker:
    """The thread that generates.

    Args:
        plan: of the stream.
        deliver: takes pieces, and an `_End` last; called in the thread.
    """

    def __init__(self, plan: StreamPlan, deliver: Callable[[Any], None]) -> None:
        self._plan, self._deliver = plan, deliver
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jaxpipe-stream")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Lets the generation end with the step that is under way."""
        self._stopped.set()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._generate()
        except Stopped:
            pass
        except BaseException as raised:  # whatever it is, it is the consumer's
            error = raised
        self._deliver(_End(error))

    def _generate(self) -> None:
        plan = self._plan
        if plan.first:
            self._deliver(plan.first)
        pieces = _Pieces(plan, self._deliver, self._stopped.is_set)
        answer = plan.run(None if plan.whole else pieces)
        sent = "".join(pieces.sent)
        # What is sent cannot be taken back: a decoder that changes it later has its end left out.
        rest = answer[len(sent) :] if answer.startswith(sent) else ""
        if rest and not self._stopped.is_set():
            self._deliver(rest)


def pieces_of(plan: StreamPlan) -> Iterator[str]:
    """Yields the pieces of an answer; the generation starts with the first that is asked for.

    Raises:
        Exception: what the generation has raised, at the piece after the last that it gave.
    """
    delivered: queue.SimpleQueue[Any] = queue.SimpleQueue()
    worker = _Worker(plan, delivered.put)
    worker.start()
    try:
        while not isinstance(piece := delivered.get(), _End):
            yield piece
        if piece.error is not None:
            raise piece.error
    finally:
        worker.stop()
        worker.join()


async def async_pieces_of(plan: StreamPlan) -> AsyncIterator[str]:
    """Yields the pieces of an answer as `pieces_of` does, and leaves the event loop free in between."""
    loop = asyncio.get_running_loop()
    delivered: asyncio.Queue[Any] = asyncio.Queue()

    def deliver(piece: Any) -> None:
        try:
            loop.call_soon_threadsafe(delivered.put_nowait, piece)
        except RuntimeError:  # the loop is closed
            worker.stop()

    worker = _Worker(plan, deliver)
    worker.start()
    piece: Any = None
    try:
        while not isinstance(piece := await delivered.get(), _End):
            yield piece
        if piece.error is not None:
            raise piece.error
    finally:
        worker.stop()
        while not isinstance(piece, _End):
            piece = await delivered.get()
        worker.join()
