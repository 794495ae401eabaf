"""Queries and a cache whose rows are filled to different lengths, as decoding has them."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@dataclass(frozen=True)
class Case:
    """Shapes of an attention of few queries: rows, queries, query heads, key-value heads, their width, slots."""

    rows: int
    queries: int
    heads: int
    kv_heads: int
    width: int
    slots: int
    splits: int = 1
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    stored: str | None = None


def make(case: Case, dtype: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
    """Returns q, k, v, the mask (B, T, S), and the keyword arguments of an attention.

    A row's prompt stands at the left, of its own length; then come the same slots for all rows, after a gap.
    """
    random = np.random.default_rng(0)
    rows, common = case.rows, case.slots // 3
    positions = np.full((rows, case.slots), -1)
    for row in range(rows):
        length = random.integers(5, common)
        positions[row, :length] = np.arange(length)
        positions[row, common : common + 10] = length + np.arange(10)
    queries = positions.max(1)[:, None] + 1 - case.queries + np.arange(case.queries)
    distance = queries[:, :, None] - positions[:, None]
    mask = (positions[:, None] >= 0) & (distance >= 0) & (distance < (case.window or case.slots))
    q = jnp.asarray(random.normal(size=(rows, case.queries, case.heads, case.width)), dtype)
    k, v = (random.normal(size=(rows, case.slots, case.kv_heads, case.width)) for _ in range(2))
    extras: dict[str, Any] = {"scale": case.width**-0.5, "softcap": case.softcap}
    if case.sinks:
        extras["sinks"] = jnp.asarray(random.normal(size=case.heads), jnp.float32)
    if case.stored is None:
        return q, jnp.asarray(k, dtype), jnp.asarray(v, dtype), jnp.asarray(mask), extras
    for name, x in (("key_scales", k), ("value_scales", v)):
        extras[name] = jnp.asarray(np.abs(x).max(-1) / 100, jnp.float32)
    stored = (x / np.abs(x).max(-1, keepdims=True) * 100 for x in (k, v))
    as_stored = (jnp.asarray(np.round(x) if case.stored == "int8" else x, case.stored) for x in stored)
    return q, *as_stored, jnp.asarray(mask), extras  # type: ignore[return-value]
