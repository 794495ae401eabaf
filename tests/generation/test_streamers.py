import asyncio
import queue
import threading
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxpipe.generation.streamers import (
    AsyncTextIteratorStreamer,
    BaseStreamer,
    TextIteratorStreamer,
    TextStreamer,
)

TEXTS = [
    "Hello there, how are you doing today?",
    "First line\nsecond line\n\nthird, and some trailing words",
    "今日は世界 and 你好 again 漢字",
    "Ünïcödé émojis 🙂🙃 in the middle",
    "\n",
    "one",
]


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


class Recorder(TextStreamer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pieces: list[tuple[str, bool]] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append((text, stream_end))


def _stream(streamer: Any, ids: list[int], prompt: int, wrap: Any = np.asarray) -> None:
    streamer.put(wrap([ids[:prompt]]))
    for token in ids[prompt:]:
        streamer.put(wrap([token]))
    streamer.end()


@pytest.mark.oracle
@pytest.mark.parametrize("skip_prompt", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_equal_the_oracle(text: str, skip_prompt: bool) -> None:
    import torch
    import transformers

    class Theirs(transformers.TextStreamer):
        pieces: list[tuple[str, bool]]

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.pieces.append((text, stream_end))

    tokenizer = _byte_level()
    ids = [0, *tokenizer.encode(text).ids]
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    theirs, ours = Theirs(wrapped, skip_prompt), Recorder(wrapped, skip_prompt)
    theirs.pieces = []
    for _ in range(2):  # a streamer can be used again
        _stream(theirs, ids, 2, torch.tensor)
        _stream(ours, ids, 2)
    assert ours.pieces == theirs.pieces


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("wrap", [np.asarray, jnp.asarray, list], ids=["numpy", "jax", "list"])
def test_pieces_make_up_the_text(text: str, wrap: Any) -> None:
    tokenizer = _byte_level()
    streamer = Recorder(tokenizer)
    ids = tokenizer.encode(text).ids
    _stream(streamer, ids, 1, wrap)
    assert "".join(piece for piece, _ in streamer.pieces) == text
    assert [end for _, end in streamer.pieces] == [False] * (len(streamer.pieces) - 1) + [True]


def test_words_lines_and_ideographs_come_as_soon_as_they_are_final() -> None:
    class Characters:
        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids))

    streamer = Recorder(Characters())
    _stream(streamer, list(map(ord, "ab c\n漢d")), 1)
    assert [piece for piece, _ in streamer.pieces] == ["", "", "ab ", "", "c\n", "漢", "", "d"]


def test_prints_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = _byte_level()
    ids = tokenizer.encode("Hello there, how are you").ids
    prompt = len(tokenizer.encode("Hello").ids)
    _stream(TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True), ids, prompt)
    assert capsys.readouterr().out == tokenizer.decode(ids[prompt:]) + "\n"


def test_more_than_one_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="one row, not 2"):
        TextStreamer(_byte_level()).put(np.zeros((2, 3), int))
    with pytest.raises(NotImplementedError):
        BaseStreamer().put([1])


def test_iterator_gives_the_text_to_another_thread() -> None:
    tokenizer = _byte_level()
    streamer = TextIteratorStreamer(tokenizer, timeout=30)
    thread = threading.Thread(target=_stream, args=(streamer, tokenizer.encode(TEXTS[1]).ids, 1))
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == TEXTS[1] and len(pieces) > 3


def test_iterator_gives_up_after_the_timeout() -> None:
    with pytest.raises(queue.Empty):
        next(TextIteratorStreamer(_byte_level(), timeout=0.001))


def test_async_iterator_gives_the_text_and_gives_up_after_the_timeout() -> None:
    tokenizer = _byte_level()

    async def run() -> str:
        streamer = AsyncTextIteratorStreamer(tokenizer, timeout=30)
        thread = threading.Thread(target=_stream, args=(streamer, tokenizer.encode(TEXTS[1]).ids, 1))
        thread.start()
        text = "".join([piece async for piece in streamer])
        thread.join()
        with pytest.raises(TimeoutError):
            await anext(AsyncTextIteratorStreamer(tokenizer, timeout=0.001))
        return text

    assert asyncio.run(run()) == TEXTS[1]
