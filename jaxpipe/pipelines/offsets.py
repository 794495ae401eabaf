"""Which characters of a text its tokens are: of words given apart, and as a user gave them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Mapped:
    """An item with the characters (start, end) of its tokens."""

    item: Any
    offsets: list[tuple[int, int]]


def mapped(inputs: Any, offset_mapping: Any) -> Any:
    """Puts each item's offsets beside it.

    Args:
        inputs: a text, or a list of items.
        offset_mapping: pairs of one item, or a list of such lists.

    Returns:
        A `Mapped`, or a list of them.

    Raises:
        ValueError: the inputs are neither, the numbers differ, or there is anything but pairs of whole numbers.
    """
    if not isinstance(inputs, (str, list, tuple)):
        raise ValueError("offset_mapping= goes with a text or a list of texts, not with a data set or generator.")
    items = [inputs] if isinstance(inputs, str) else list(inputs)
    mappings = list(offset_mapping)
    # A mapping of one text has pairs of numbers, that of several has lists of pairs.
    if len(items) == 1 and mappings and np.ndim(mappings[0]) == 1:
        mappings = [mappings]
    if len(mappings) != len(items):
        raise ValueError(f"offset_mapping= has {len(mappings)} entries for {len(items)} texts; give one for each.")
    pairs = [_pairs(mapping, place) for place, mapping in enumerate(mappings)]
    made = [Mapped(item, offsets) for item, offsets in zip(items, pairs, strict=True)]
    return made[0] if isinstance(inputs, str) else made


def _pairs(mapping: Any, place: int) -> list[tuple[int, int]]:
    try:
        array = np.asarray(mapping)
        fits = array.ndim == 2 and array.shape[-1] == 2 and array.dtype.kind in "iu"
        pairs: list[tuple[int, int]] = [(int(start), int(end)) for start, end in array] if fits else []
    except ValueError:
        pairs = []
    if not pairs:
        raise ValueError(f"offset_mapping= has no list of pairs (start, end) of whole numbers for item {place}.")
    return pairs


def check_mapping(mapping: Offsets, tokens: Sequence[int], *, cut: bool) -> None:
    """Checks that a mapping fits a text.

    Args:
        mapping: the characters of every token.
        tokens: number of tokens of each piece of the text.
        cut: whether there are more tokens, which are not read.

    Raises:
        ValueError: there are several pieces, or another number of tokens.
    """
    if len(tokens) > 1:
        raise ValueError(f"offset_mapping= holds for a text in one piece, but stride= makes {len(tokens)}; give one.")
    # The mapping of a text that was cut may go on after the cut.
    if len(mapping) < tokens[0] or (len(mapping) > tokens[0] and not cut):
        raise ValueError(
            f"offset_mapping= has {len(mapping)} pairs for a text of {tokens[0]} tokens, special ones counted."
        )


def offsets_of(encoding: Any, offsets: Offsets, words: Sequence[str], delimiter: str) -> list[tuple[int, int]]:
    """Returns the characters of tokens in the words joined by the delimiter.

    Args:
        encoding: the ``tokenizers.Encoding`` of the words.
        offsets: the characters of every token in its word.
        words: the words.
        delimiter: what stands between them.
    """
    # (W + 1,): where each word begins.
    starts = np.cumsum([0, *(len(word) + len(delimiter) for word in words)]).tolist()
    begins = [0 if word is None else starts[word] for word in encoding.word_ids]
    in_words = offsets[: len(begins)]
    return [(begin + start, begin + end) for begin, (start, end) in zip(begins, in_words, strict=True)]
