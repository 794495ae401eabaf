"""Streamers: receivers of token ids while they are generated, that pass on text as soon as it is final.

``generate`` puts the prompt first, then the tokens of each step, and calls ``end``. The text that comes out, piece by
piece, is the one that Transformers' streamers of the same names give.
"""

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np

_CJK_RANGES = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
"""Blocks of CJK ideographs: written without spaces, and each is complete by itself."""


class BaseStreamer:
    """What ``generate`` needs of a streamer."""

    def put(self, value: Any) -> None:
        """Takes the next token ids: the prompt (1, T) first, then (1,) at each step."""
        raise NotImplementedError

    def end(self) -> None:
        """Takes note that no more tokens come."""
        raise NotImplementedError


class TextStreamer(BaseStreamer):
    """Prints text to the terminal, word by word.

    Text is final up to the last space, at a newline, and after a CJK ideograph; a word in the making may still change.

    Args:
        tokenizer: object with ``decode(ids, **kwargs)``.
        skip_prompt: leave out the prompt.
        **decode_kwargs: passed to ``decode``, such as ``skip_special_tokens=True``.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self._ids: list[int] = []
        self._sent = 0
        self._expects_prompt = True

    def put(self, value: Any) -> None:
        """Takes token ids and passes on the text that became final.

        Args:
            value: ids of one row, shape (), (T,) or (1, T); numpy, jax or a list.

        Raises:
            ValueError: there is more than one row.
        """
        ids = np.asarray(value)
        if ids.ndim > 1 and ids.shape[0] > 1:
            raise ValueError(f"A text streamer takes one row, not {ids.shape[0]}: generate with a batch of 1.")
        if self._expects_prompt:
            self._expects_prompt = False
            if self.skip_prompt:
                return
        self._ids.extend(ids.reshape(-1).tolist())
        text = self.tokenizer.decode(self._ids, **self.decode_kwargs)
        if text.endswith("\n"):
            self._flush(text)
        else:
            ends_final = text != "" and any(low <= ord(text[-1]) <= high for low, high in _CJK_RANGES)
            final = len(text) if ends_final else text.rfind(" ") + 1
            piece = text[self._sent : final]
            self._sent += len(piece)
            self.on_finalized_text(piece)

    def end(self) -> None:
        """Passes on the rest of the text and ends the stream; the next ``put`` is a prompt again."""
        text = self.tokenizer.decode(self._ids, **self.decode_kwargs) if self._ids else ""
        self._expects_prompt = True
        self._flush(text, stream_end=True)

    def _flush(self, text: str, stream_end: bool = False) -> None:
        piece = text[self._sent :]
        self._ids, self._sent = [], 0
        self.on_finalized_text(piece, stream_end=stream_end)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Prints a piece of final text, which may be empty, and a newline at the end of the stream."""
        print(text, end="\n" if stream_end else "", flush=True)


class TextIteratorStreamer(TextStreamer):
    """Gives the pieces of text to a consumer that iterates over it in another thread.

    Args:
        tokenizer: object with ``decode(ids, **kwargs)``.
        skip_prompt: leave out the prompt.
        timeout: seconds to wait for a piece before ``queue.Empty`` is raised; None waits for ever.
        **decode_kwargs: passed to ``decode``.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self._pieces: queue.Queue[str | None] = queue.Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queues a piece of final text, and the end of the stream."""
        self._pieces.put(text)
        if stream_end:
            self._pieces.put(None)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = self._pieces.get(timeout=self.timeout)
        if piece is None:
            raise StopIteration
        return piece


class AsyncTextIteratorStreamer(TextStreamer):
    """Gives the pieces of text to a coroutine that iterates over it; to be made inside the running event loop.

    Args:
        tokenizer: object with ``decode(ids, **kwargs)``.
        skip_prompt: leave out the prompt.
        timeout: seconds to wait for a piece before ``TimeoutError`` is raised; None waits for ever.
        **decode_kwargs: passed to ``decode``.

    Raises:
        RuntimeError: no event loop is running.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queues a piece of final text, and the end of the stream; may be called from any thread."""
        self._loop.call_soon_threadsafe(self._pieces.put_nowait, text)
        if stream_end:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, None)

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        async with asyncio.timeout(self.timeout):
            piece = await self._pieces.get()
        if piece is None:
            raise StopAsyncIteration
        return piece
