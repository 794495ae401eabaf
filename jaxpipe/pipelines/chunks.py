"""What pipelines share that run a model over pieces of a text."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def row_of(encoding: Any, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Returns one piece of a text as arrays (1, T) int32.

    Args:
        encoding: a ``tokenizers.Encoding``.
        names: the tokenizer's ``model_input_names``.
    """
    columns = {
        "input_ids": encoding.ids,
        "attention_mask": encoding.attention_mask,
        "token_type_ids": encoding.type_ids,
    }
    return {name: np.asarray([columns[name]], np.int32) for name in names if name in columns}


def check_positions(tokens: int, limit: int | None, advice: str) -> None:
    """Raises ValueError where a piece has more tokens than the model has learned positions.

    Args:
        tokens: number of tokens T.
        limit: number of positions, or None where the model computes them.
        advice: what to do, as the end of a sentence.
    """
    if limit is not None and tokens > limit:
        raise ValueError(f"The input has {tokens} tokens, but the model has learned positions for {limit}; {advice}.")


def checked_count(name: str, value: Any, least: int) -> int:
    """Returns a parameter that counts something.

    Raises:
        ValueError: it is no whole number, or less than ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name}= takes a whole number of at least {least}, not {value!r}.")
    return int(value)


def checked_flag(name: str, value: Any) -> bool:
    """Returns a parameter that is True or False.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}= takes True or False, not {value!r}.")
    return bool(value)
