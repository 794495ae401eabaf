"""Checks of what users pass in, before anything compiles: a gather on a device clamps what is out of range."""

from typing import Any

import numpy as np
from jax.core import Tracer


def check_ids(name: str, value: Any, limit: int | None) -> np.ndarray:
    """Returns ids as an int32 array (B, T).

    Args:
        name: of the argument, for errors.
        value: array or nested lists.
        limit: the first id that is out of range; None where any is in range.

    Raises:
        ValueError: the value is not a rectangle of integers, or an id is out of range.
    """
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name} is a JAX tracer: inside jit, grad or vmap call the pure function instead: "
            "fn, weights = model.functional()."
        )
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} has rows of different lengths; pad them and pass attention_mask.") from None
    if array.dtype == bool:
        array = array.astype(np.int32)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be integers of shape (batch, length), both at least 1; found dtype {array.dtype}, "
            f"shape {array.shape}."
        )
    if limit is not None and (array.min() < 0 or array.max() >= limit):
        row, column = np.argwhere((array < 0) | (array >= limit))[0]
        raise ValueError(f"{name}[{row}, {column}] is {array[row, column]}; accepted are 0 to {limit - 1}.")
    return array.astype(np.int32)
