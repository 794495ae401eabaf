"""The gated MLPs of chosen experts: three forms of one computation, each the best for another number of tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxpipe.kernels.compute import platform
from jaxpipe.kernels.optional import kernel_module

Array = jax.Array
Gate = Callable[[Array, Array], Array]  # gate and up (..., F) -> activations (..., F)
Products = Callable[[Array, Array, Array], Array]  # rows, choices and matrices, as of `gathered_products`

# Gathering without the kernel of `few_experts` copies what it reads: worth it where the choices are no more than this
# part of the experts.
GATHERED_PART = 4
# Most tokens for which every expert is applied to every token. Accelerators read the weights in the time of that many
# products (on an H100 the dense form of 2048 tokens takes as long as the grouped one); a CPU does not.
DENSE_TOKENS, DENSE_TOKENS_CPU = 2048, 64
# Fewest and most tokens of a block that shares an expert.
BLOCKS = (8, 256)


@dataclass(frozen=True)
class ExpertWeights:
    """Weights of E experts.

    Attributes:
        gate_up: (E, D, 2, F), the gate's and the up projection's.
        down: (E, F, D).
        gate_up_bias: (E, 2, F) or None.
        gate: joins gate and up.
    """

    gate_up: Array
    down: Array
    gate_up_bias: Array | None
    gate: Gate


def experts(x: Array, chosen: Array, shares: Array, weights: ExpertWeights) -> Array:
    """Applies to every token its chosen experts, and sums their outputs by its shares.

    Args:
        x: (N, D).
        chosen: (N, k) int32; numbers outside of 0 to E - 1 contribute nothing.
        shares: (N, k) float32.
        weights: of the E experts.

    Returns:
        (N, D) in x's dtype.
    """
    count = weights.down.shape[0]
    if chosen.size < count and (products := _products_in_place(weights.gate_up)):
        return gathered_experts(x, chosen, shares, weights, products)
    if GATHERED_PART * chosen.size <= count:
        return gathered_experts(x, chosen, shares, weights)
    most = DENSE_TOKENS_CPU if platform() == "cpu" else DENSE_TOKENS
    return (dense_experts if len(x) <= most else grouped_experts)(x, chosen, shares, weights)


def dense_experts(x: Array, chosen: Array, shares: Array, weights: ExpertWeights) -> Array:
    """The plain form of `experts`: every expert is applied to every token; the others are tested against it."""
    count = weights.down.shape[0]
    repeated = jnp.broadcast_to(x, (count, *x.shape))  # (E, N, D)
    y = jnp.einsum("end,edcf->encf", repeated, weights.gate_up)  # (E, N, 2, F)
    if weights.gate_up_bias is not None:
        y = y + weights.gate_up_bias[:, None]
    h = weights.gate(y[:, :, 0], y[:, :, 1])  # (E, N, F)
    out = jnp.einsum("enf,efd->end", h, weights.down)  # (E, N, D)
    share = jnp.sum(jax.nn.one_hot(chosen, count, dtype=jnp.float32) * shares[..., None], axis=1)  # (N, E)
    return jnp.einsum("end,ne->nd", out.astype(jnp.float32), share).astype(x.dtype)


def gathered_products(x: Array, chosen: Array, weights: Array) -> Array:
    """The plain form of `few_experts.chosen_products`."""
    inside = (chosen >= 0) & (chosen < len(weights))
    x = jnp.broadcast_to(x, (*chosen.shape, x.shape[-1]))
    out = jnp.einsum("nkd,nkdf->nkf", x, weights[jnp.where(inside, chosen, 0)])
    return jnp.where(inside[..., None], out, 0)


def gathered_experts(
    x: Array, chosen: Array, shares: Array, weights: ExpertWeights, products: Products = gathered_products
) -> Array:
    """Reads the weights of the chosen experts only, once for every token that chose them.

    `products` multiplies them, as `gathered_products` does.
    """
    count, width, _, features = weights.gate_up.shape
    inside = (chosen >= 0) & (chosen < count)
    y = products(x[:, None], chosen, weights.gate_up.reshape(count, width, 2 * features))
    y = y.reshape(*chosen.shape, 2, features)
    if weights.gate_up_bias is not None:
        y = y + weights.gate_up_bias[jnp.where(inside, chosen, 0)]
    h = weights.gate(y[:, :, 0], y[:, :, 1])  # (N, k, F)
    return _sum_by_shares(products(h, chosen, weights.down), shares, inside).astype(x.dtype)


def grouped_experts(x: Array, chosen: Array, shares: Array, weights: ExpertWeights) -> Array:
    """Sorts the choices by expert, and applies to every block of tokens the one expert that they share.

    The last block of each expert is filled up with tokens whose output nobody reads.
    """
    count, choices = weights.down.shape[0], chosen.size
    inside = (chosen >= 0) & (chosen < count)
    owner = jnp.where(inside, chosen, count).reshape(-1)  # (N k)
    order = jnp.argsort(owner, stable=True)
    sizes = jnp.bincount(owner, length=count)  # (E)
    rows = _block_rows(choices, count)
    blocks = -(-sizes // rows)  # of each expert
    first_choice, first_block = jnp.cumsum(sizes) - sizes, jnp.cumsum(blocks) - blocks
    total = (choices + min(count, choices) * (rows - 1)) // rows  # as many as there can be

    number = jnp.arange(total)
    expert = jnp.minimum(jnp.searchsorted(jnp.cumsum(blocks), number, side="right"), count - 1)  # of each block
    start = first_choice[expert] + (number - first_block[expert]) * rows
    choice = order.at[start[:, None] + jnp.arange(rows)].get(mode="clip")  # (blocks, rows)

    def block(_: None, inputs: tuple[Array, Array]) -> tuple[None, Array]:
        x, e = inputs
        y = jnp.einsum("nd,dcf->ncf", x, weights.gate_up[e])
        if weights.gate_up_bias is not None:
            y = y + weights.gate_up_bias[e]
        return None, weights.gate(y[:, 0], y[:, 1]) @ weights.down[e]

    _, out = jax.lax.scan(block, None, (x[choice // chosen.shape[1]], expert))  # (blocks, rows, D)
    # Where the output of every choice lies.
    sorted_owner = jnp.minimum(owner[order], count - 1)
    place = first_block[sorted_owner] * rows + jnp.arange(choices) - first_choice[sorted_owner]
    place = jnp.zeros_like(place).at[order].set(place)
    out = out.reshape(total * rows, -1).at[place].get(mode="clip").reshape(*chosen.shape, -1)
    return _sum_by_shares(out, shares, inside).astype(x.dtype)


def _products_in_place(weights: Array) -> Products | None:
    """Returns the kernel that reads chosen ones of weights (E, D, F) in place; None where it does not apply."""
    few = kernel_module("few_experts") if platform() == "gpu" else None
    return few.chosen_products if few and few.applies(weights) else None


def _block_rows(choices: int, count: int) -> int:
    """A power of two near the tokens that an expert gets if all get as many."""
    least, most = BLOCKS
    return min(max(least, 1 << (choices // count).bit_length()), most)


def _sum_by_shares(out: Array, shares: Array, inside: Array) -> Array:
    """Sums the outputs (N, k, D) of the choices by their shares (N, k), those not `inside` left out."""
    weighted = jnp.where(inside[..., None], out.astype(jnp.float32) * shares[..., None], 0)
    return jnp.sum(weighted, axis=1)  # (N, D)
