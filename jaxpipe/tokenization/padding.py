"""Padding and truncation: the strategies, and padding of rows that are already encoded."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpipe.common.errors import nearest

PADDING = ("longest", "max_length", "do_not_pad")
TRUNCATION = ("longest_first", "only_first", "only_second", "do_not_truncate")
SIDES = ("left", "right")
UNLIMITED = int(1e30)
# A model_max_length above this means that no length is known.
LARGEST_LENGTH = int(1e20)


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How rows are cut and filled: names from ``PADDING`` and ``TRUNCATION``, lengths in tokens."""

    padding: str = "do_not_pad"
    truncation: str = "do_not_truncate"
    max_length: int | None = None
    multiple: int | None = None
    side: str = "right"
    stride: int = 0

    def filled_length(self, longest: int) -> int:
        """Returns the tokens that each row is filled to, where the longest has so many."""
        if self.padding == "do_not_pad":
            return 0
        length = longest if self.padding == "longest" else self.max_length or longest
        return length if self.multiple is None else -(-length // self.multiple) * self.multiple


def _name(argument: str, value: Any, default: str, accepted: tuple[str, ...]) -> str:
    """The strategy's name for a bool, a name or an enum member whose value is the name."""
    value = getattr(value, "value", value)
    if value is None or value is False:
        return accepted[-1]
    if value is True:
        return default
    if value not in accepted:
        raise ValueError(
            f"{argument}={value!r} is not known; give True, False or one of {', '.join(accepted)}."
            + nearest(str(value), accepted)
        )
    return value


def check_side(argument: str, side: Any) -> str:
    """Returns "left" or "right".

    Raises:
        ValueError: the side is neither.
    """
    if side not in SIDES:
        raise ValueError(f"{argument}={side!r} is not known; give 'left' or 'right'.")
    return side


def choose(
    padding: Any,
    truncation: Any,
    max_length: int | None,
    multiple: int | None,
    side: str,
    stride: int,
    model_max_length: int,
    verbose: bool = True,
) -> Strategy:
    """Turns the arguments of a tokenizer call into a strategy, by the rules of Transformers.

    Args:
        padding: bool or a name from ``PADDING``.
        truncation: None, bool or a name from ``TRUNCATION``; None with ``max_length`` and no padding truncates.
        max_length: tokens; None takes ``model_max_length`` where a length is needed and one is known.
        multiple: pad to a multiple of so many tokens.
        side: padding side.
        stride: tokens shared by one piece of an overflowing text and the next.
        model_max_length: the tokenizer's limit, in tokens.
        verbose: warn where ``max_length`` has no effect.

    Raises:
        ValueError: an unknown name, a length that is not positive, or lengths that contradict each other.
    """
    if max_length is not None and (isinstance(max_length, bool) or int(max_length) != max_length or max_length < 0):
        raise ValueError(f"max_length={max_length!r} is not a number of tokens; give an integer >= 0.")
    if multiple is not None and multiple < 1:
        raise ValueError(f"pad_to_multiple_of={multiple!r} must be a positive number of tokens.")
    if truncation is None and max_length is not None and padding is False:
        truncation = True
    how_to_pad = _name("padding", padding, "longest", PADDING)
    how_to_cut = _name("truncation", truncation, "longest_first", TRUNCATION)
    if padding is True and max_length is not None and how_to_cut == "do_not_truncate" and verbose:
        warnings.warn(
            "max_length is ignored where padding=True and nothing is truncated; use padding='max_length'.",
            stacklevel=4,
        )
    if max_length is None and model_max_length > LARGEST_LENGTH:
        how_to_pad = "do_not_pad" if how_to_pad == "max_length" else how_to_pad
        how_to_cut = "do_not_truncate"
    elif max_length is None and (how_to_pad == "max_length" or how_to_cut != "do_not_truncate"):
        max_length = model_max_length
    cuts, pads = how_to_cut != "do_not_truncate", how_to_pad != "do_not_pad"
    if cuts and pads and multiple is not None and max_length is not None and max_length % multiple:
        raise ValueError(
            f"Rows are cut to max_length={max_length} but padded to a multiple of pad_to_multiple_of={multiple}; "
            "give a max_length that is a multiple of it."
        )
    if cuts and max_length is not None and stride and stride >= max_length:
        raise ValueError(f"stride={stride} must be smaller than max_length={max_length}.")
    return Strategy(how_to_pad, how_to_cut, max_length, multiple, check_side("padding_side", side), stride)


def to_lists(value: Any) -> Any:
    """Arrays (numpy, jax) as nested lists; lists, tuples and scalars of arrays as plain Python."""
    if isinstance(value, Mapping):
        return {key: to_lists(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [item if type(item) is int else to_lists(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def pad_row(
    row: dict[str, Any], main: str, length: int, side: str, pad_id: int, pad_type_id: int, with_mask: bool
) -> dict[str, Any]:
    """Fills the ids, the mask, the token types and the special-token mask of one row up to ``length`` tokens."""
    row = dict(row)
    if with_mask and "attention_mask" not in row:
        row["attention_mask"] = [1] * len(row[main])
    missing = max(0, length - len(row[main]))
    fill = {main: pad_id, "attention_mask": 0, "token_type_ids": pad_type_id, "special_tokens_mask": 1}
    for name, value in fill.items():
        if name in row and missing and (name != "attention_mask" or with_mask):
            padding = [value] * missing
            row[name] = list(row[name]) + padding if side == "right" else padding + list(row[name])
    return row


def to_columns(encoded: Any) -> dict[str, Any]:
    """One mapping of name to rows, of a mapping or of a list of mappings.

    Raises:
        ValueError: the mappings of a list have different names.
    """
    if isinstance(encoded, Mapping):
        return dict(encoded)
    if isinstance(encoded, Sequence) and all(isinstance(row, Mapping) for row in encoded):
        names = list(encoded[0]) if encoded else []
        for number, row in enumerate(encoded):
            if missing := set(names) ^ set(row):
                raise ValueError(f"Row {number} and row 0 differ in {sorted(missing)}; every row needs the same names.")
        return {name: [row[name] for row in encoded] for name in names}
    raise ValueError(f"pad needs a mapping or a list of mappings, not {type(encoded).__name__}.")


def is_array(value: Any) -> bool:
    """Whether a value, or the first item of a list, is a numpy or jax array."""
    first = value[0] if isinstance(value, (list, tuple)) and len(value) else value
    return isinstance(first, (np.ndarray, np.generic)) or hasattr(first, "addressable_shards")
