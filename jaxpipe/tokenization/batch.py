"""BatchEncoding: what a tokenizer call returns, with the maps between tokens, words and characters."""

from collections import UserDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Encoding

TENSOR_TYPES = ("np", "jax")


class CharSpan(NamedTuple):
    """Half-open range of characters in the original text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Half-open range of tokens in an encoded row."""

    start: int
    end: int


def check_tensor_type(return_tensors: Any) -> str | None:
    """Returns ``return_tensors`` where it is None, "np" or "jax".

    Raises:
        ValueError: it is anything else.
    """
    if return_tensors is None or return_tensors in TENSOR_TYPES:
        return return_tensors
    raise ValueError(f"return_tensors={return_tensors!r} is not supported; give 'np', 'jax', or None for lists.")


class BatchEncoding(UserDict):
    """Output of a tokenizer: a mapping (``input_ids``, ``attention_mask``, ...) that is also read by attribute.

    ``encoding["input_ids"]`` and ``encoding.input_ids`` are the same; ``encoding[0]`` is the first row's
    ``tokenizers.Encoding``, ``encoding[1:3]`` a list of them, or a plain dict of rows where there are no encodings.

    Args:
        data: name to lists or arrays.
        encodings: one ``tokenizers.Encoding`` a row, for the maps between tokens, words and characters.
        tensor_type: None, "np" or "jax"; turns each list into an array.
        prepend_batch_axis: put one more leading axis before the conversion.
        n_sequences: texts in each row, 1 or 2; None asks the encodings.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        encodings: "Encoding | Sequence[Encoding] | None" = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ) -> None:
        super().__init__(data or {})
        if encodings is not None and not isinstance(encodings, (list, tuple)):
            encodings = [encodings]  # type: ignore[list-item]
        self._encodings: list[Encoding] | None = None if encodings is None else list(encodings)  # type: ignore[arg-type]
        if n_sequences is None and self._encodings:
            n_sequences = self._encodings[0].n_sequences
        self._n_sequences = n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self.data[key]
        if isinstance(key, slice) and self._encodings is None:
            return {name: value[key] for name, value in self.data.items()}
        return self._rows()[key]

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(f"BatchEncoding has no {name!r}; it holds {', '.join(data) or 'nothing'}.")

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "_encodings": self._encodings, "_n_sequences": self._n_sequences}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def encodings(self) -> "list[Encoding] | None":
        """One ``tokenizers.Encoding`` a row, or None for data that no tokenizer call made."""
        return self._encodings

    @property
    def n_sequences(self) -> int | None:
        """Texts in each row: 1, 2 for pairs, None where it is not known."""
        return self._n_sequences

    @property
    def is_fast(self) -> bool:
        """Whether the maps between tokens, words and characters are there."""
        return self._encodings is not None

    def _rows(self) -> "list[Encoding]":
        if not self._encodings:
            raise ValueError(
                "This BatchEncoding was not made by a tokenizer call, so it has no map between tokens, words and "
                "characters; call the tokenizer on the text."
            )
        return self._encodings

    def _locate(self, first: int, second: int | None) -> "tuple[Encoding, int]":
        """The row and the index in it, of ``f(index)`` for one row or ``f(row, index)``."""
        row, index = (0, first) if second is None else (first, second)
        return self._rows()[row], index

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Returns the tokens of one row, as strings."""
        return self._rows()[batch_index].tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Returns, for every token of one row, the index of its word, or None for a special token."""
        return self._rows()[batch_index].word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Returns, for every token of one row, 0 or 1 for the first or second text, or None for a special token."""
        return self._rows()[batch_index].sequence_ids

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Returns the text (0 or 1) that a token comes from; call with (token) or (row, token)."""
        row, index = self._locate(batch_or_token_index, token_index)
        return row.token_to_sequence(index + len(row) if index < 0 else index)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Returns the index of a token's word; call with (token) or (row, token)."""
        row, index = self._locate(batch_or_token_index, token_index)
        return row.token_to_word(index + len(row) if index < 0 else index)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """Returns a token's range of characters, or None for a special token; call with (token) or (row, token)."""
        row, index = self._locate(batch_or_token_index, token_index)
        span = row.token_to_chars(index)
        return None if span is None else CharSpan(*span)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Returns the token of a character, or None for white space; call with (char) or (row, char)."""
        row, index = self._locate(batch_or_char_index, char_index)
        return row.char_to_token(index, sequence_index)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """Returns a word's range of tokens, or None where it has none; call with (word) or (row, word)."""
        row, index = self._locate(batch_or_word_index, word_index)
        span = row.word_to_tokens(index, sequence_index)
        return None if span is None else TokenSpan(*span)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """Returns a word's range of characters; call with (word) or (row, word)."""
        row, index = self._locate(batch_or_word_index, word_index)
        span = row.word_to_chars(index, sequence_index)
        return None if span is None else CharSpan(*span)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Returns the word of a character; call with (char) or (row, char)."""
        row, index = self._locate(batch_or_char_index, char_index)
        return row.char_to_word(index, sequence_index)

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> "BatchEncoding":
        """Turns every list into an array: int64 for "np", int32 for "jax"; returns the same object.

        Raises:
            ValueError: the rows have different lengths, or the tensor type is not supported.
        """
        if check_tensor_type(tensor_type) is None:
            return self
        for name, value in self.data.items():
            try:
                array = np.asarray([value] if prepend_batch_axis else value)
            except ValueError as error:
                raise ValueError(
                    f"{name!r} has rows of different lengths and cannot become one array; "
                    "pass padding=True, and truncation=True with max_length where rows must not be longer."
                ) from error
            if array.size == 0:
                array = array.astype(np.int64)
            self.data[name] = array if tensor_type == "np" else _to_jax(array)
        return self


def _to_jax(array: np.ndarray) -> Any:
    # Ids are int32 on device: JAX has no int64 unless it is switched on.
    import jax.numpy as jnp

    return jnp.asarray(array.astype(np.int32) if array.dtype == np.int64 else array)
