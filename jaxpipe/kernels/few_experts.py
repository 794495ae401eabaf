"""Products of few rows with the matrices that they chose among many, as one GPU kernel in Pallas.

Gathering chosen matrices copies them before they are multiplied; here every program reads a tile of a chosen matrix
where it lies. Rows are few, so a program multiplies and adds without the tensor cores, at the speed of memory. Where
rows and columns are too few to fill the device the sum is split among several programs.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxpipe.kernels.compute import on_one_device

Array = jax.Array

# Rows of a tile, which a program of four warps keeps in registers, and its columns: wide where wide tiles alone are
# enough to give each processor of a large GPU one.
_ROWS, _WIDE, _NARROW, _PROCESSORS = 32, 128, 64, 132
# Numbers of the tiles that a processor holds at a time; programs beyond them wait for the others to end.
_HELD = 8 * _ROWS * _WIDE
# Fewest tiles that are worth a program.
_FEWEST_TILES = 4


def applies(weights: Array) -> bool:
    """Whether the kernel takes matrices (E, D, F): on one device, and no larger than its 32-bit offsets reach."""
    return weights.size < 2**31 and on_one_device()


def columns_of(pairs: int, width: int) -> int:
    """Returns the columns of a tile, where `pairs` products are `width` columns wide."""
    return _WIDE if pairs * pl.cdiv(width, _WIDE) >= _PROCESSORS else _NARROW


def splits_of(programs: int, columns: int, tiles: int) -> int:
    """Returns among how many programs a sum over `tiles` tiles is split, where there are `programs` sums."""
    together = _PROCESSORS * _HELD // (_ROWS * columns)
    return max(1, min(together // programs, tiles // _FEWEST_TILES))


# Jitted, so that the layers of a model share one trace and one lowering of it.
@partial(jax.jit, static_argnames=("splits", "interpret"))
def chosen_products(
    x: Array, chosen: Array, weights: Array, *, splits: int | None = None, interpret: bool = False
) -> Array:
    """Multiplies each row with the matrices that it chose.

    Args:
        x: (N, k, D), or (N, 1, D) where all choices of a row are multiplied with the same.
        chosen: (N, k) int32; numbers outside of 0 to E - 1 give zeros, and nothing is read for them.
        weights: (E, D, F).
        splits: overrides `splits_of`.
        interpret: run without a GPU.

    Returns:
        (N, k, F) in x's dtype, summed in float32.
    """
    pairs, (count, depth, width) = chosen.size, weights.shape
    size = _ROWS, columns_of(pairs, width)
    tiles, blocks = pl.cdiv(depth, size[0]), pl.cdiv(width, size[1])
    splits = splits or splits_of(pairs * blocks, size[1], tiles)
    x = x.reshape(-1, depth)
    shared = pairs // len(x)

    def kernel(chosen_ref: Any, x_ref: Any, weights_ref: Any, out_ref: Any) -> None:
        pair, block, split = (pl.program_id(axis) for axis in range(3))
        expert = chosen_ref[pair]
        inside = (expert >= 0) & (expert < count)
        expert = jnp.where(inside, expert, 0)
        columns = pl.ds(block * size[1], size[1])
        within = _within(block * size[1], size[1], width)
        each = -(-tiles // splits)
        first = split * each
        last = jnp.where(inside, jnp.minimum(first + each, tiles), first)

        def tile(i: Array, total: Array) -> Array:
            rows = pl.ds(i * size[0], size[0])
            there = _within(i * size[0], size[0], depth)
            part = _load(x_ref.at[pair // shared, rows], there).astype(jnp.float32)
            mask = None if there is None and within is None else _both(there, within, size)
            return total + part[:, None] * _load(weights_ref.at[expert, rows, columns], mask).astype(jnp.float32)

        total = lax.fori_loop(first, last, tile, jnp.zeros(size, jnp.float32))
        triton.store(out_ref.at[split, pair, columns], jnp.sum(total, axis=0), mask=within)

    settings: dict[str, Any] = (
        {} if interpret else {"compiler_params": triton.CompilerParams(num_warps=4, num_stages=3)}
    )
    parts = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((splits, pairs, width), jnp.float32),
        grid=(pairs, blocks, splits),
        name="chosen_products",
        interpret=interpret,
        **settings,
    )(chosen.reshape(-1), x, weights)
    return jnp.sum(parts, axis=0).reshape(*chosen.shape, width).astype(x.dtype)


def _within(start: Any, size: int, end: int) -> Array | None:
    """Which of `size` places from `start` on are before `end`; None where all tiles are full."""
    return None if end % size == 0 else start + jnp.arange(size) < end


def _both(rows: Array | None, columns: Array | None, size: tuple[int, int]) -> Array:
    there = jnp.ones((size[0], 1), bool) if rows is None else rows[:, None]
    return jnp.broadcast_to(there if columns is None else there & columns[None], size)


def _load(ref: Any, mask: Array | None) -> Array:
    return ref[...] if mask is None else triton.load(ref, mask=mask, other=0)
