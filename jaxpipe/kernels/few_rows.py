"""Products with weights on CPU, in other forms than XLA's where it is slow: for one row, and in bfloat16.

XLA reads a weight row by row for a float32 row, and widens a whole weight in memory for bfloat16. The forms here read
it once, in several streams; `docs/design/0009-products-on-cpu.md` has the figures.
"""

import math
from functools import partial, reduce
from operator import add

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe.kernels import compute

Array = jax.Array

# A smaller weight takes microseconds in any form, and XLA's compiles fastest.
_FEWEST_ENTRIES = 2**18
# Slices of a weight that one loop reads. Of bfloat16, LLVM vectorises sums of up to 8.
_PARTS = 8
# With more outputs the sums of parts leave the caches, and XLA's float32 product is as fast.
_MOST_OUTPUTS = 2**14
# Of a table: lanes that float32 is summed in, and the width from which on XLA's product is as fast.
_LANES, _WIDEST_ENTRY = 16, 768


def product(spec: str, x: Array, weight: Array, summed: int = 1) -> Array:
    """Returns ``jnp.einsum(spec, x, weight)``, on one CPU in the form that is fast there.

    Args:
        spec: sums the last dimensions of x and the first of `weight`, in the same order; the result has the other
            dimensions of x, then those of `weight`.
        x: (..., I...).
        weight: (I..., O...).
        summed: how many dimensions I has.

    Returns:
        (..., O...), summed in float32.
    """
    if not _applies(x, weight):
        return jnp.einsum(spec, x, weight)
    shape = (*x.shape[:-summed], *weight.shape[summed:])
    inputs = math.prod(weight.shape[:summed])
    # Flat: XLA copies a weight of which it sums two dimensions.
    x, weight = x.reshape(-1, inputs), weight.reshape(inputs, -1)
    parts = math.gcd(inputs, _PARTS)
    wide = weight.shape[1] > _MOST_OUTPUTS and weight.dtype == jnp.float32
    out = _dot(x, weight, 0) if len(x) > 1 or parts == 1 or wide else _row_product(x, weight, parts)
    return out.astype(x.dtype).reshape(shape)


def table_product(x: Array, table: Array) -> Array:
    """Returns ``jnp.einsum("...d,vd->...v", x, table)``, on one CPU in the form that is fast there.

    Args:
        x: (..., D).
        table: (V, D).

    Returns:
        (..., V), summed in float32.
    """
    if not _applies(x, table):
        return jnp.einsum("...d,vd->...v", x, table)
    entries, width = table.shape
    shape = (*x.shape[:-1], entries)
    x = x.reshape(-1, width)
    parts = width // _LANES if x.dtype == jnp.float32 else _PARTS
    narrow = width <= _WIDEST_ENTRY and width % _LANES == 0
    out = _row_table_product(x, table, parts) if len(x) == 1 and narrow else _dot(x, table, 1)
    return out.astype(x.dtype).reshape(shape)


def lookup(table: Array, ids: Array) -> Array:
    """Returns the entries (..., D) of `table` (V, D) at ids (...), which are clipped to its ends."""
    if compute.platform() == "cpu" and table.dtype == jnp.bfloat16:
        # XLA would widen the whole table first, where what comes after is in float32.
        ids, table = _kept_here(ids, table)
    return table.at[ids].get(mode="clip")


def _applies(x: Array, weight: Array) -> bool:
    """Whether the forms here take a weight: a large one, in float32 or bfloat16, on one CPU."""
    one_cpu = compute.platform() == "cpu" and compute.on_one_device()
    known = x.dtype == weight.dtype and x.dtype in (jnp.float32, jnp.bfloat16)
    return one_cpu and known and x.size > 0 and weight.size >= _FEWEST_ENTRIES


def _dot(x: Array, weight: Array, axis: int) -> Array:
    """Sums the columns of x (N, I) and that axis of `weight`; float32 (N, O)."""
    # XLA multiplies bfloat16 as it is only for a result in float32 and for several rows.
    rows = jnp.repeat(x, 2, 0) if len(x) == 1 and x.dtype == jnp.bfloat16 else x
    return lax.dot_general(rows, weight, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)[: len(x)]


def _kept_here(x: Array, weight: Array) -> tuple[Array, Array]:
    """Returns both, so that nothing is computed of a weight before x is there.

    XLA would slice and widen the weights before a loop of decode steps, and keep them in float32.
    """
    return lax.optimization_barrier((x, weight))


# Jitted, so that the layers of a model share one trace of them. What adds the parts' sums up is a product with ones: a
# sum would be computed in one pass with the parts, which XLA does not vectorise.
@partial(jax.jit, static_argnums=2)
def _row_product(x: Array, weight: Array, parts: int) -> Array:
    """Multiplies x (1, I) with `weight` (I, O), of which as many parts as I can be cut into are read at once."""
    x, weight = _kept_here(x, weight)
    columns, rows = jnp.split(x[0].astype(jnp.float32)[:, None], parts), jnp.split(weight, parts)
    sums = reduce(add, (c * w.astype(jnp.float32) for c, w in zip(columns, rows, strict=True)))  # (I / parts, O)
    return jnp.dot(jnp.ones((1, len(sums))), sums, precision="highest")


@partial(jax.jit, static_argnums=2)
def _row_table_product(x: Array, table: Array, parts: int) -> Array:
    """Multiplies x (1, D) with the entries of `table` (V, D), each cut into parts that are summed lane by lane."""
    x, table = _kept_here(x, table)
    rows, columns = jnp.split(x.astype(jnp.float32), parts, 1), jnp.split(table, parts, 1)
    sums = reduce(add, (r * w.astype(jnp.float32) for r, w in zip(rows, columns, strict=True)))  # (V, D / parts)
    return jnp.dot(sums, jnp.ones(sums.shape[1]), precision="highest")
