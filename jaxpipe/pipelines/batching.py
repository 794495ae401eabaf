"""Batches: rows of similar length together, padded to one shape, and their outputs cut apart again."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import numpy as np

from jaxpipe.common.outputs import ModelOutput

Side = Literal["left", "right"]

# Fillers of the arrays that a tokenizer makes, besides input_ids whose filler is the pad id. A special token and a
# token that cannot be part of an answer are marked by 1.
_FILLERS = {"special_tokens_mask": 1, "p_mask": 1}
# Outputs whose second axis is the input's sequence whatever their rank.
_SEQUENCE_OUTPUTS = frozenset({"last_hidden_state", "start_logits", "end_logits", "encoder_last_hidden_state"})


@dataclass
class Row:
    """One preprocessed input of the model.

    Attributes:
        item: position of the item it comes from, in the inputs of the call.
        part: position among the rows of that item.
        inputs: arrays of shape (n, T, ...), n mostly 1, and anything else, which goes along untouched.
        last: whether it is the last row of its item.
    """

    item: int
    part: int
    inputs: dict[str, Any]
    last: bool = True

    @functools.cached_property
    def length(self) -> int:
        """Number of tokens T, 0 where there are none."""
        ids = self.inputs.get("input_ids")
        return ids.shape[1] if is_array(ids) and ids.ndim > 1 else 0

    @functools.cached_property
    def size(self) -> int:
        """Number n of rows that the model sees."""
        return next((len(value) for value in self.inputs.values() if is_array(value)), 1)


def is_array(value: Any) -> TypeGuard[np.ndarray]:
    """Whether a value is a numpy or jax array with at least one axis."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and len(value.shape) > 0


@dataclass
class Plan:
    """Rows that will share a batch.

    Attributes:
        rows: in the order of their items.
        length: T, with padding.
        size: B, with padding rows.
    """

    rows: list[Row]
    length: int
    size: int


def plan_batches(
    rows: Sequence[Row], full: Callable[[int], int], padded: Callable[[int], int], same_length: bool = False
) -> list[Plan]:
    """Groups rows of similar length.

    Args:
        rows: the rows of a window, in order.
        full: gives the number of rows that a batch of a padded length has; a batch has at least one row.
        padded: gives the padded length of a row.
        same_length: whether the rows of a batch must have the same length.

    Returns:
        Batches without padding rows, the one with the earliest item first, so that results can be given early.
    """
    plans: list[Plan] = []
    # The longest row first, so that what does not fill a batch is short.
    for row in sorted(rows, key=lambda row: -row.length):
        plan = plans[-1] if plans else None
        fits = plan is not None and plan.size + row.size <= full(plan.length)
        if plan is None or not fits or (same_length and row.length != plan.rows[0].length):
            plans.append(Plan([row], padded(row.length) if row.length else 0, row.size))
        else:
            plan.rows.append(row)
            plan.size += row.size
    for plan in plans:
        plan.rows.sort(key=lambda row: (row.item, row.part))
    return sorted(plans, key=lambda plan: (plan.rows[0].item, plan.rows[0].part))


@dataclass
class Batch:
    """Rows of one model call.

    Attributes:
        rows: the rows.
        inputs: what the model is called with: arrays (B, T, ...), padded; other values as lists with one entry a row.
        size: B, with padding rows.
        length: T, with padding.
        side: where the padding of the sequences lies.
    """

    rows: list[Row]
    inputs: dict[str, Any]
    size: int
    length: int
    side: Side


def collate(plan: Plan, *, pad_id: int, side: Side) -> Batch:
    """Joins the rows of a plan in one batch; the last row is repeated to fill it.

    Args:
        plan: the rows, which all have the same keys, and the shape.
        pad_id: token id at padded positions, which the attention mask excludes.
        side: where sequences are padded.

    Raises:
        ValueError: the rows have different keys, or arrays of one key that do not fit together.
    """
    rows, length, size = plan.rows, plan.length, plan.size
    keys = rows[0].inputs.keys()
    for row in rows[1:]:
        if row.inputs.keys() != keys:
            raise ValueError(
                f"Items {rows[0].item} and {row.item} cannot share a batch: preprocess gave {sorted(keys)} "
                f"and {sorted(row.inputs)}. Give batch_size=1."
            )
    inputs: dict[str, Any] = {}
    for key in keys:
        values = [row.inputs[key] for row in rows]
        if not all(map(is_array, values)):
            inputs[key] = values
            continue
        filler = pad_id if key == "input_ids" else _FILLERS.get(key, 0)
        padded = [_pad(np.asarray(v), row.length, length, side, filler) for v, row in zip(values, rows, strict=True)]
        inputs[key] = _join(key, padded, size)
    if "input_ids" in keys and "attention_mask" not in keys and any(row.length < length for row in rows):
        masks = [_pad(np.ones((row.size, row.length), np.int32), row.length, length, side, 0) for row in rows]
        inputs["attention_mask"] = _join("attention_mask", masks, size)
    return Batch(rows, inputs, size, length, side)


def _pad(array: np.ndarray, length: int, target: int, side: Side, filler: int) -> np.ndarray:
    """Pads axis 1 where it is the row's sequence; other arrays are left as they are."""
    if length == target or array.ndim != 2 or array.shape[1] != length:
        return array
    # np.pad takes ten times as long.
    padded = np.full((len(array), target), filler, array.dtype)
    kept = slice(target - length, None) if side == "left" else slice(length)
    padded[:, kept] = array
    return padded


def _join(key: str, arrays: list[np.ndarray], size: int) -> np.ndarray:
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"The arrays {key!r} have the shapes {sorted(shapes)} and cannot share a batch.")
    count = sum(map(len, arrays))
    return np.concatenate([*arrays, *[arrays[-1][-1:]] * (size - count)])


def split(outputs: Any, batch: Batch) -> Iterator[Any]:
    """Yields each row's part of a model's outputs, on the host, without the padding of batch and sequence.

    Args:
        outputs: a `ModelOutput` or a mapping; arrays with B rows are cut, as are tuples of them, lists with one entry
            a row are dealt out, everything else is given to every row.
        batch: the batch they are of.
    """
    import jax

    fields = dict(outputs.items()) if isinstance(outputs, (ModelOutput, Mapping)) else {"output": outputs}
    fields = {key: value if isinstance(value, list) else jax.device_get(value) for key, value in fields.items()}
    start = 0
    for number, row in enumerate(batch.rows):
        stop = start + row.size
        cut = {key: _part(key, value, number, start, stop, row, batch) for key, value in fields.items()}
        start = stop
        if isinstance(outputs, ModelOutput):
            yield type(outputs)(**cut)
        else:
            yield cut if isinstance(outputs, Mapping) else cut["output"]


def _part(key: str, value: Any, number: int, start: int, stop: int, row: Row, batch: Batch) -> Any:
    if isinstance(value, tuple):
        return tuple(_part(key, item, number, start, stop, row, batch) for item in value)
    if isinstance(value, list):
        return value[number] if len(value) == len(batch.rows) else value
    if not is_array(value) or len(value) != batch.size:
        return value
    part = value[start:stop]
    if row.length == batch.length:
        return part
    kept = slice(0, row.length) if batch.side == "right" else slice(batch.length - row.length, None)
    of_sequence = part.ndim > 1 and part.shape[1] == batch.length
    if key == "attentions" and part.ndim == 4 and part.shape[2:] == (batch.length, batch.length):
        return part[:, :, kept, kept]
    if of_sequence and (key in _SEQUENCE_OUTPUTS or (key in ("logits", "hidden_states") and part.ndim == 3)):
        return part[:, kept]
    return part
