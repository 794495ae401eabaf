"""Scores of experts and the choice of the best for few tokens, as two GPU kernels in Pallas.

Scores are few numbers that are made of many, and their choice is a chain of small steps. XLA takes a kernel that reads
with few threads for the one, and three kernels for the other. Here several programs sum parts of each token's scores,
and one program adds them and chooses by counting how many are better. Arrays in a kernel have lengths that are powers
of two, so there are parts, and choices, that nobody needs.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxpipe.kernels.compute import on_one_device

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
    fits = tokens <= _MOST_TOKENS and experts <= _MOST_EXPERTS and experts == pl.next_power_of_2(experts)
    return fits and on_one_device()


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
    parts = _scores(x.reshape(-1, x.shape[-1]), kernel, interpret)
    chosen, shares = _choice(parts, bias, count, normalise, (x.dtype, dtype), interpret)
    shape = *x.shape[:2], count
    return chosen[:, :count].reshape(shape), shares[:, :count].reshape(shape)


def _scores(x: Array, weights: Array, interpret: bool) -> Array:
    """Multiplies x (N, D) with weights (D, E); returns the parts of the sums, (N, parts, E) float32."""
    depth, experts = weights.shape
    rows = min(_MOST_ROWS, max(_PART // experts, 16))
    parts = pl.next_power_of_2(pl.cdiv(depth, rows))

    def kernel(x_ref: Any, weights_ref: Any, out_ref: Any) -> None:
        token, part = pl.program_id(0), pl.program_id(1)
        mine, all_experts = pl.ds(part * rows, rows), pl.ds(0, experts)
        there = part * rows + jnp.arange(rows) < depth
        own = triton.load(x_ref.at[token, mine], mask=there, other=0).astype(jnp.float32)
        both = jnp.broadcast_to(there[:, None], (rows, experts))
        tile = triton.load(weights_ref.at[mine, all_experts], mask=both, other=0).astype(jnp.float32)
        triton.store(out_ref.at[token, part, all_experts], jnp.sum(own[:, None] * tile, axis=0))

    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((len(x), parts, experts), jnp.float32),
        grid=(len(x), parts),
        name="expert_scores",
        **_settings(interpret),
    )(x, weights)


def _choice(
    parts: Array, bias: Array | None, count: int, normalise: bool, dtypes: tuple[Any, Any], interpret: bool
) -> tuple[Array, Array]:
    """Adds parts (N, parts, E) and chooses; returns numbers and shares, (N, `count` or more).

    Args:
        dtypes: of the scores and of the shares; other arguments are those of `softmax_choice`.
    """
    (tokens, number, experts), places = parts.shape, pl.next_power_of_2(count)

    def kernel(parts_ref: Any, *refs: Any) -> None:
        *bias_ref, chosen_ref, shares_ref = refs
        token, all_places = pl.program_id(0), pl.ds(0, places)
        scores = jnp.sum(parts_ref.at[token, pl.ds(0, number), pl.ds(0, experts)][...], axis=0).astype(dtypes[0])
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
        triton.store(shares_ref.at[token, all_places], (weighed / jnp.sum(among)).astype(dtypes[1]))

    chosen, shares = (jax.ShapeDtypeStruct((tokens, places), form) for form in (jnp.int32, dtypes[1]))
    return pl.pallas_call(
        kernel, out_shape=(chosen, shares), grid=(tokens,), name="expert_choice", **_settings(interpret)
    )(parts, *(() if bias is None else (bias,)))


def _settings(interpret: bool) -> dict[str, Any]:
    return {"interpret": True} if interpret else {"compiler_params": triton.CompilerParams(num_warps=4)}
