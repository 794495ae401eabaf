"""Mixtures of experts: routers that choose k of E experts for every token, and the experts themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.common.errors import ConfigError
from jaxpipe.kernels.compute import platform
from jaxpipe.kernels.experts import ExpertWeights, Gate, experts
from jaxpipe.kernels.optional import kernel_module
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout import Direct, Transposed
from jaxpipe.nn.layout_experts import ExpertLayouts
from jaxpipe.sharding.shards import over_shards

Array = jax.Array

# Comparisons for which choosing by counting takes no more than its kernels' launches.
_MOST_COMPARED = 2**20


def check_choices(chosen: int, experts: int) -> None:
    """Raises ConfigError where a token would choose no expert, or more than it may choose from."""
    if not 0 < chosen <= experts:
        raise ConfigError(f"config.json: num_experts_per_tok={chosen}, but a token may choose from {experts} experts.")


@dataclass(frozen=True)
class Gated:
    """``act(gate) * up`` (Shazeer, 2020)."""

    act: Callable[[Array], Array]

    def __call__(self, gate: Array, up: Array) -> Array:
        return self.act(gate) * up


def best(scores: Array, count: int) -> tuple[Array, Array]:
    """Returns ``lax.top_k(scores, count)``; on a GPU by counting, where scores (..., E) are few.

    XLA sorts, in more kernels and with copies: of one token's 32 scores that takes 4 us more on an H100.
    """
    size = scores.shape[-1]
    if platform() != "gpu" or scores.size * size > _MOST_COMPARED:
        return jax.lax.top_k(scores, count)
    one, other, index = scores[..., :, None], scores[..., None, :], jnp.arange(size, dtype=jnp.int32)
    ahead = (other > one) | ((other == one) & (index < index[:, None]))  # (..., E, E)
    rank = jnp.sum(ahead, axis=-1, dtype=jnp.int32)
    place = rank[..., None, :] == jnp.arange(count, dtype=jnp.int32)[:, None]  # (..., count, E)
    return jnp.sum(jnp.where(place, other, 0), axis=-1), jnp.sum(jnp.where(place, index, 0), axis=-1)


class Experts(nnx.Module):
    """E gated MLPs, of which every token goes through those that a router chose.

    Args:
        sizes: E, D and F.
        gate: joins the gate's and the up projection's outputs.
        layouts: of the arrays in the checkpoint; biases are there where it has layouts for them.
        up: the module, counted upwards from this one, that the layouts' names are relative to.
    """

    def __init__(self, init: Init, sizes: tuple[int, int, int], gate: Gate, layouts: ExpertLayouts, *, up: int = 0):
        count, width, features = sizes
        axes = ("experts", "embed", None, "mlp")
        self.gate_up = init.param(axes, (count, width, 2, features), layouts.gate_up, up=up)
        self.down = init.param(("experts", "mlp", "embed"), (count, features, width), layouts.down, up=up)
        zeros: dict[str, Any] = {"initializer": "zeros", "up": up}
        layout = layouts.gate_up_bias
        shape = (count, 2, features)
        self.gate_up_bias = init.param(("experts", None, "mlp"), shape, layout, **zeros) if layout else None
        layout = layouts.down_bias
        self.down_bias = init.param(("experts", None), (count, width), layout, **zeros) if layout else None
        self.gate = gate

    def __call__(self, x: Array, chosen: Array, shares: Array) -> Array:
        """Sums the chosen experts' outputs of x (B, T, D) by their shares.

        Args:
            x: (B, T, D).
            chosen: (B, T, k) int32, different experts.
            shares: (B, T, k).
        """
        axes = ("batch", None, None)
        arrays = [
            (x, axes),
            (chosen, axes),
            (shares.astype(jnp.float32), axes),
            (self.gate_up[...], ("experts", None, None, "mlp")),
            (self.down[...], ("experts", "mlp", None)),
        ]
        if self.gate_up_bias is not None:
            arrays.append((self.gate_up_bias[...], ("experts", None, "mlp")))

        def local(
            first: Array | int, x: Array, chosen: Array, shares: Array, gate_up: Array, down: Array, *bias: Array
        ) -> Array:
            weights = ExpertWeights(gate_up, down, bias[0] if bias else None, self.gate)
            tokens, choices = x.reshape(-1, x.shape[-1]), chosen.reshape(-1, chosen.shape[-1])
            out = experts(tokens, choices - first, shares.reshape(choices.shape), weights)
            return out.reshape(x.shape)

        out = over_shards(local, arrays, axes, offset_of="experts", summed=("experts", "mlp"))
        return out if self.down_bias is None else out + self._bias(chosen, shares).astype(out.dtype)

    def _bias(self, chosen: Array, shares: Array) -> Array:
        """Sums the chosen experts' biases of the down projection by their shares, (B, T, D)."""
        assert self.down_bias is not None
        bias = self.down_bias[...]
        if chosen.size < len(bias):  # so few are gathered in the kernel that adds them
            return jnp.sum(shares[..., None].astype(jnp.float32) * bias[chosen], axis=2)
        one_hot = jax.nn.one_hot(chosen, len(bias), dtype=shares.dtype)  # (B, T, k, E)
        return jnp.einsum("bte,ed->btd", jnp.einsum("btk,btke->bte", shares, one_hot), bias)


class SoftmaxRouter(nnx.Module):
    """Chooses the k experts of the largest probability (Shazeer et al., 2017).

    Args:
        width: D.
        experts: E.
        count: k.
        normalise: the shares are divided by their sum, as a softmax over the chosen experts alone gives them.
        bias: of the scores.
        name: of the layer in the checkpoint, beside this module's own; empty for none.
        dtype: that the shares are rounded to, the scores' own if None.
    """

    def __init__(
        self,
        init: Init,
        width: int,
        experts: int,
        count: int,
        *,
        normalise: bool,
        bias: bool = False,
        name: str = "",
        dtype: jnp.dtype | None = None,
    ):
        prefix = f"{name}." if name else ""
        shape = (width, experts)
        self.kernel = init.param(("embed", None), shape, Transposed(f"{prefix}weight", shape))
        layout = Direct(f"{prefix}bias", (experts,))
        self.bias = init.param((None,), (experts,), layout, initializer="zeros") if bias else None
        self.count, self.normalise, self.dtype = count, normalise, dtype

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Returns the chosen experts (B, T, k) int32 of x (B, T, D), and their shares (B, T, k)."""
        kernel, bias = self.kernel[...], None if self.bias is None else self.bias[...]
        dtype = self.dtype or x.dtype
        few = kernel_module("few_choices") if platform() == "gpu" else None
        if few and few.applies(x, kernel):
            return few.softmax_choice(x, kernel, bias, count=self.count, normalise=self.normalise, dtype=dtype)
        scores = jnp.einsum("btd,de->bte", x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)
        scores = (scores if bias is None else scores + bias).astype(jnp.float32)
        values, chosen = best(scores, self.count)
        if self.normalise:
            return chosen, jax.nn.softmax(values, axis=-1).astype(dtype)
        return chosen, jnp.exp(values - jax.nn.logsumexp(scores, axis=-1, keepdims=True)).astype(dtype)


class GroupLimitedRouter(nnx.Module):
    """Chooses k experts by sigmoids, from the best groups of experts only (DeepSeek-AI, 2024; arXiv 2412.19437).

    A bias of each expert, learned to balance them, enters the choice and not the shares.

    Args:
        width: D.
        experts: E.
        count: k.
        groups: into which the experts are split.
        chosen_groups: whose experts may be chosen: those of the largest sums of their two best scores.
        normalise: the shares are divided by their sum.
        factor: of the shares, after that.
    """

    def __init__(
        self,
        init: Init,
        width: int,
        experts: int,
        count: int,
        *,
        groups: int,
        chosen_groups: int,
        normalise: bool,
        factor: float,
    ):
        shape = (width, experts)
        self.kernel = init.param(("embed", None), shape, Transposed("weight", shape))
        layout = Direct("e_score_correction_bias", (experts,))
        self.bias = init.param((None,), (experts,), layout, initializer="zeros", dtype=jnp.float32)
        self.count, self.groups, self.chosen_groups = count, groups, chosen_groups
        self.normalise, self.factor = normalise, factor

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Returns the chosen experts (B, T, k) int32 of x (B, T, D), and their shares (B, T, k) float32."""
        kernel = self.kernel[...].astype(jnp.float32)
        scores = jax.nn.sigmoid(jnp.einsum("btd,de->bte", x.astype(jnp.float32), kernel))
        by_group = (scores + self.bias[...]).reshape(*scores.shape[:2], self.groups, -1)  # (B, T, groups, E / groups)
        of_group = jnp.sum(best(by_group, 2)[0], axis=-1)  # (B, T, groups)
        _, kept = best(of_group, self.chosen_groups)
        open_groups = jnp.any(jax.nn.one_hot(kept, self.groups, dtype=bool), axis=-2)  # (B, T, groups)
        ranked = jnp.where(open_groups[..., None], by_group, -jnp.inf).reshape(scores.shape)
        _, chosen = best(ranked, self.count)
        shares = jnp.take_along_axis(scores, chosen, axis=-1)
        if self.normalise:
            shares = shares / (jnp.sum(shares, axis=-1, keepdims=True) + 1e-20)
        return chosen, shares * self.factor


class SparseMoE(nnx.Module):
    """A feed-forward block in which every token goes through the experts that a router chose for it.

    Args:
        router: called with x (B, T, D), it returns the chosen experts and their shares.
        experts: applies them.
        name: attribute of the router, as the checkpoint names it.
    """

    def __init__(self, router: Any, experts: Experts, *, name: str = "gate"):
        setattr(self, name, router)
        self.router_name = name
        self.experts = experts

    def __call__(self, x: Array) -> Array:
        chosen, shares = getattr(self, self.router_name)(x)
        return self.experts(x, chosen, shares)  # (B, T, D)
