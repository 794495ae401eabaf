"""When a row ends: end-of-sequence tokens on the device; texts, time and the user's criteria on the host."""

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_EOS_MINIMUM = 4


def eos_array(ids: Sequence[int]) -> np.ndarray:
    """Returns token ids as an int32 array of bucketed length (4, 8, 16, ...), filled up with -1."""
    size = max(_EOS_MINIMUM, 1 << max(len(ids) - 1, 0).bit_length())
    return np.asarray([*ids, *[-1] * (size - len(ids))], np.int32)


def is_eos(tokens: Array, eos_ids: Array) -> Array:
    """Whether tokens, int of any shape, are among ``eos_ids`` (n,); -1 stands for no token. Traceable."""
    return jnp.any((tokens[..., None] == eos_ids) & (eos_ids >= 0), axis=-1)


class StoppingCriterion(Protocol):
    """A user's reason to stop, asked on the host after each new token."""

    def __call__(self, input_ids: np.ndarray, scores: Any, **kwargs: Any) -> Any:
        """Returns whether rows are done: a bool, or (B,) bools.

        Args:
            input_ids: (B, T) int, prompt and new tokens.
            scores: one (B, V) array for each new token with ``output_scores``, else None.
            **kwargs: none yet; for compatibility with criteria written for Transformers.
        """
        ...


class MaxTime:
    """Ends all rows once a time has passed since this object was made.

    Args:
        max_time: seconds.
        clock: returns the time in seconds.
    """

    def __init__(self, max_time: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = clock() + max_time

    def expired(self) -> bool:
        """Whether the time has passed."""
        return self._clock() > self._deadline

    def __call__(self, input_ids: np.ndarray, scores: Any = None, **kwargs: Any) -> np.ndarray:
        """Returns (B,) bools, all True once the time has passed."""
        return np.full(len(input_ids), self.expired())


def stopped_by(criteria: Iterable[StoppingCriterion], input_ids: np.ndarray, scores: Any = None) -> np.ndarray:
    """Returns (B,) bools: whether any criterion ends the row.

    Args:
        criteria: callables of ``(input_ids, scores)``.
        input_ids: (B, T) int, prompt and new tokens.
        scores: as the criteria expect them.

    Raises:
        ValueError: a criterion returned something else than a bool or one bool for each row.
    """
    done = np.zeros(len(input_ids), bool)
    for criterion in criteria:
        answer = np.asarray(criterion(input_ids, scores))
        if answer.shape not in ((), done.shape) or answer.dtype != bool:
            raise ValueError(
                f"Stopping criterion {criterion!r} returned {answer.dtype} of shape {answer.shape}; expected a bool or "
                f"bools of shape {done.shape}."
            )
        done |= answer
    return done


class StopStrings:
    """Finds the token that completes one of several texts.

    Tokens are compared as the bytes that they add to the text, so that a text is found across any token borders,
    inside a longer token and in the middle of a character's bytes. The prompt's end may hold a text's beginning, but
    a text that ends in the prompt does not count: the rule of Transformers' ``StopStringCriteria``.

    Args:
        tokenizer: a jaxpipe or Transformers tokenizer (with ``backend_tokenizer``), or a ``tokenizers.Tokenizer``.
        strings: texts, none of them empty.

    Raises:
        ValueError: there is no tokenizer, or a text is empty.
        TypeError: the tokenizer is of another kind.
    """

    def __init__(self, tokenizer: Any, strings: str | Sequence[str]) -> None:
        texts = [strings] if isinstance(strings, str) else list(strings)
        if tokenizer is None:
            raise ValueError(f"stop_strings={texts!r} need the model's tokenizer: pass tokenizer= to generate.")
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"stop_strings={texts!r}: expected a text or a list of texts, none of them empty.")
        self._strings = [text.encode("utf-8") for text in texts]
        self._reach = max(len(text) for text in self._strings) - 1
        self._pieces = token_bytes(tokenizer)

    def first_stop(self, ids_row: Sequence[int], prompt_length: int, checked: int = 0) -> int | None:
        """Finds the first new token that completes a text.

        Args:
            ids_row: token ids of one row, prompt and new tokens.
            prompt_length: number of ids that are the prompt.
            checked: number of new tokens that an earlier call has found to complete no text.

        Returns:
            The number of new tokens to keep, the completing one included, or None.
        """
        first = prompt_length + checked
        before = b""
        start = first
        while start > 0 and len(before) < self._reach:
            start -= 1
            before = self._pieces(int(ids_row[start])) + before
        text = before[max(len(before) - self._reach, 0) :]
        for index in range(first, len(ids_row)):
            end = len(text)
            text += self._pieces(int(ids_row[index]))
            # An occurrence must end inside this token, so it starts at most reach bytes before it.
            if any(text.find(wanted, max(end + 1 - len(wanted), 0)) >= 0 for wanted in self._strings):
                return index + 1 - prompt_length
            text = text[max(len(text) - self._reach, 0) :]
        return None


@dataclass(frozen=True)
class HostStops:
    """What ends rows on the host, which reads every token for it.

    Attributes:
        strings: finds stop strings, or None.
        criteria: the user's, and time.
    """

    strings: StopStrings | None
    criteria: tuple[StoppingCriterion, ...]

    def __bool__(self) -> bool:
        return self.strings is not None or bool(self.criteria)

    def stopped(self, sequences: np.ndarray, rows: Sequence[np.ndarray], new: int) -> np.ndarray:
        """Returns which rows end with the last token.

        Args:
            sequences: (B, prompt + new) as the user sees them.
            rows: each row's prompt without padding and its new tokens.
            new: number of new tokens.
        """
        done = stopped_by(self.criteria, sequences) if self.criteria else np.zeros(len(rows), bool)
        if self.strings is not None:
            for i, row in enumerate(rows):
                done[i] |= self.strings.first_stop(row.tolist(), len(row) - new, new - 1) is not None
        return done


# Ends every match: no text in UTF-8 holds this byte.
_NO_TEXT = b"\xff"
_PREFIX = "abcdef"
_BYTE_TOKEN = re.compile(r"<0x([0-9a-fA-F]{2})>")


def token_bytes(tokenizer: Any) -> Callable[[int], bytes]:
    """Returns a function from a token id to the bytes that the token adds in the middle of a text.

    Args:
        tokenizer: as for `StopStrings`.

    Raises:
        TypeError: the tokenizer is of another kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "id_to_token") or not hasattr(backend, "decoder"):
        raise TypeError(f"stop_strings need a tokenizer over the tokenizers library, not {type(tokenizer).__name__}.")
    kinds = _decoder_kinds(backend.decoder)
    prefix = list(backend.encode(_PREFIX, add_special_tokens=False).tokens)

    @functools.cache
    def piece(token_id: int) -> bytes:
        token = backend.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            return _NO_TEXT
        if "ByteFallback" in kinds:
            if match := _BYTE_TOKEN.fullmatch(token):
                return bytes([int(match[1], 16)])
        elif "ByteLevel" in kinds and all(character in _byte_level_table() for character in token):
            return bytes(_byte_level_table()[character] for character in token)
        # Decoders treat the first token of a text in another way, so the token is decoded behind a known prefix.
        tokens = [*prefix, token]
        text = backend.decoder.decode(tokens) if backend.decoder is not None else " ".join(tokens)
        return text[text.index(_PREFIX) + len(_PREFIX) :].encode("utf-8") if _PREFIX in text else _NO_TEXT

    return piece


def _decoder_kinds(decoder: Any) -> set[str]:
    """Types of a ``tokenizers`` decoder and of the decoders in it."""
    if decoder is None:
        return set()

    def kinds(node: Any) -> set[str]:
        if isinstance(node, list):
            return set().union(*map(kinds, node))
        if isinstance(node, dict):
            return {str(node.get("type"))}.union(*map(kinds, node.values()))
        return set()

    return kinds(json.loads(decoder.__getstate__()))


@functools.cache
def _byte_level_table() -> dict[str, int]:
    """From characters to bytes in byte-level BPE (GPT-2): printable bytes are themselves, the others follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
