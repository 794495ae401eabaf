"""Scores of experts and the choice of the best for few tokens, as two GPU kernels in Pallas.

Scores are few numbers that are made of many, and their choice is a chain of small steps. XLA takes a kernel that reads
with few threads for the one, and three kernels for the other. Here several programs sum parts of each token's scores,
and one program adds them and chooses by counting how many are better.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import get_abstract_mesh

Array = jax.Array

# Tokens from which on the tensor cores do better, and experts whose comparisons a program keeps in registers.
_MOST_TOKENS, _MOST_EXPERTS = 8, 128
# Weights of a part of the scores, which a program keeps in registers, and most of its rows.
_PART, _MOST_ROWS = 8192, 256


def applies(x: Array, kernel: Array) -> bool:
    """Whether the kernels take x (B, T, D) and a router's kernel (D, E): on one device, few tokens, and few experts,
    whose number is a power of two.
    """
    tokens, experts = x.size // x.shape[-1], kernel.shape[1]
    fits = tokens <= _MOST_TOKENS and experts <= _MOST_EXPERTS and experts == _power(experts)
    return fits and get_abstract_mesh().size in (0, 1)


# Jitted, so that the layers of a model share one trace and one lowering of it.
@partial(jax.jit, static_argnames=("count", "normalise", "dtype", "interpret"))
def softmax_choice(
    x: Array,
    kernel: Array,
    bias: Array | None,
    *,
    count: int,
    normalise: bool,
    dtype: Any,
    interpret: bool = False,
) -> tuple[Array, Array]:
    """Chooses each token's experts of the largest scores, the first of equals first.

    Args:
        x: (B, T, D).
        kernel: (D, E).
        bias: (E,), of the scores.
        count: k, experts to choose.
        normalise: shares are the softmax over the chosen alone, else over all.
        dtype: of the shares.
        interpret: run without a GPU.

    Returns:
        The chosen experts (B, T, k) int32, and their shares (B, T, k). Scores are summed in float32 and rounded to x's
        dtype before the bias is added.
    """
    shape, (depth, experts) = x.shape[:2], kernel.shape
    x = x.reshape(-1, depth)
    rows = min(_MOST_ROWS, max(_PART // experts, 16))
    # Arrays in a kernel have lengths that are powers of two: there are parts, and choices, that nobody needs.
    parts, places = _power(pl.cdiv(depth, rows)), _power(count)

    def score(x_ref: Any, kernel_ref: Any, out_ref: Any) -> None:
        token, part = pl.program_id(0), pl.program_id(1)
        mine, all_experts = pl.ds(part * rows, rows), pl.ds(0, experts)
        there = part * rows + jnp.arange(rows) < depth
        own = triton.load(x_ref.at[token, mine], mask=there, other=0).astype(jnp.float32)
        both = jnp.broadcast_to(there[:, None], (rows, experts))
        weights = triton.load(kernel_ref.at[mine, all_experts], mask=both, other=0).astype(jnp.float32)
        triton.store(out_ref.at[token, part, all_experts], jnp.sum(own[:, None] * weights, axis=0))

    def choose(parts_ref: Any, *refs: Any) -> None:
        *bias_ref, chosen_ref, shares_ref = refs
        token, all_places = pl.program_id(0), pl.ds(0, places)
        scores = jnp.sum(parts_ref.at[token, pl.ds(0, parts), pl.ds(0, experts)][...], axis=0).astype(x.dtype)
        if bias_ref:
            scores = scores + bias_ref[0][...]
        scores = scores.astype(jnp.float32)
        index, place = jnp.arange(experts), jnp.arange(places)
        better = (scores[None] > scores[:, None]) | ((scores[None] == scores[:, None]) & (index[None] < index[:, None]))
        here = jnp.sum(better.astype(jnp.int32), axis=1)[None] == place[:, None]  # (places, E)
        best = jnp.sum(jnp.where(here, scores[None], 0.0), axis=1)
        weighed = jnp.exp(best - jnp.max(scores))
        among = jnp.where(place < count, weighed, 0.0) if normalise else jnp.exp(scores - jnp.max(scores))
        numbers = jnp.sum(jnp.where(here, index[None], 0), axis=1).astype(jnp.int32)
        triton.store(chosen_ref.at[token, all_places], numbers)
        triton.store(shares_ref.at[token, all_places], (weighed / jnp.sum(among)).astype(dtype))

    settings: dict[str, Any] = {} if interpret else {"compiler_params": triton.CompilerParams(num_warps=4)}
    scored = pl.pallas_call(
        score,
        out_shape=jax.ShapeDtypeStruct((len(x), parts, experts), jnp.float32),
        grid=(len(x), parts),
        name="expert_scores",
        interpret=interpret,
        **settings,
    )(x, kernel)
    numbers, shares = (jax.ShapeDtypeStruct((len(x), places), form) for form in (jnp.int32, dtype))
    chosen, weights = pl.pallas_call(
        choose,
        out_shape=(numbers, shares),
        grid=(len(x),),
        name="expert_choice",
        interpret=interpret,
        **settings,
    )(scored, *(() if bias is None else (bias,)))
    return chosen[:, :count].reshape(*shape, count), weights[:, :count].reshape(*shape, count)


def _power(size: int) -> int:
    """The least power of two that is not below `size`."""
    return 1 << max(size - 1, 0).bit_length()
