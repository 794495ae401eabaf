"""Grouped-query self-attention with rotary positions, as most decoders have it."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
from flax import nnx

from jaxpipe.nn.attention import Span, attend
from jaxpipe.nn.cache import CacheLayer, WindowShape
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout import Direct
from jaxpipe.nn.linear import HeadsOutProjection, QKVProjection
from jaxpipe.nn.rope import rotate

Array = jax.Array


class RotaryAttention(nnx.Module):
    """Projects to heads, rotates queries and keys, attends, and projects back.

    Args:
        width: D.
        heads: query heads H, key-value heads K, and the width h of a head.
        bias: of the projections of query, key and value.
        output_bias: of the output projection, as `bias` if None.
        names: see `QKVProjection`.
        qk_norm: makes the norm of the heads of the queries, and another one of the keys, before they are rotated; it
            is called with the number of heads, as some have weights for each.
        scale: of the scores, h^-1/2 if None.
        window: a token sees that many last tokens, its own among them; None for all.
        softcap: see `kernels.attention.attention`.
        rotary: False where the layer has no positions.
        interleaved: see `rotate`.
        sinks: every head has a learned score that attends to nothing; see `kernels.attention.attention`.

    Attributes of the class, as the checkpoint has the names:
        output: attribute of the output projection.
        norms: attributes of the norms of queries and keys.
    """

    output: ClassVar[str] = "o_proj"
    norms: ClassVar[tuple[str, str]] = ("q_norm", "k_norm")

    def __init__(
        self,
        init: Init,
        width: int,
        heads: tuple[int, int, int],
        *,
        bias: bool = False,
        output_bias: bool | None = None,
        names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj"),
        qk_norm: Callable[[int], Any] | None = None,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        rotary: bool = True,
        interleaved: bool = False,
        sinks: bool = False,
    ):
        self.qkv_proj = QKVProjection(init, width, *heads, bias=bias, names=names)
        output_bias = bias if output_bias is None else output_bias
        setattr(self, self.output, HeadsOutProjection(init, *heads, width, bias=output_bias))
        for name, count in zip(self.norms, heads[:2], strict=True):
            setattr(self, name, qk_norm(count) if qk_norm else None)
        self.scale = heads[2] ** -0.5 if scale is None else scale
        self.window, self.softcap = window, softcap
        self.rotary, self.interleaved = rotary, interleaved
        self.sinks = init.param((None,), (heads[0],), Direct("sinks", (heads[0],))) if sinks else None

    @property
    def cache_shape(self) -> CacheLayer:
        """Key-value heads and head width of the layer's cache, and its window."""
        heads, width = self.qkv_proj.groups, self.qkv_proj.head_dim
        return (heads, width) if self.window is None else WindowShape(heads, width, self.window, width)

    def __call__(
        self, x: Array, span: Span, table: tuple[Array, Array] | None, cache: Any, weights: bool
    ) -> tuple[Array, Any, Array | None]:
        """Attends with x (B, T, D), rotated by the angles of `table`; see `nn.attention.attend`."""
        q, k, v = self.project(x, table)
        given: dict[str, Any] = {"scale": self.scale, "window": self.window, "softcap": self.softcap}
        if self.sinks is not None:
            given["sinks"] = self.sinks[...]
        out, cache, probabilities = attend(q, k, v, span, cache, weights=weights, **given)
        return getattr(self, self.output)(out), cache, probabilities

    def project(self, x: Array, table: Any) -> tuple[Array, Array, Array]:
        """Queries (B, T, H, h), keys and values (B, T, K, h) of x (B, T, D), normalised and rotated; architectures
        that do more to them extend it.
        """
        q, k, v = self.qkv_proj(x)
        q_norm, k_norm = (getattr(self, name) for name in self.norms)
        if q_norm is not None:
            q, k = q_norm(q), k_norm(k)
        if self.rotary and table is not None:
            q, k = (rotate(part, table, interleaved=self.interleaved) for part in (q, k))
        return q, k, v
