"""Multi-head latent attention: keys and values of all heads are projected from one narrow latent of each token."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.kernels.attention import attention
from jaxpipe.nn.attention import Span, attend
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import HeadsOutProjection, HeadsProjection, Linear
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.rope import rotate

Array = jax.Array
# Of the norms of latents, whatever the config says of the others.
EPS = 1e-6


@dataclass(frozen=True)
class LatentShape:
    """The widths of latent attention.

    Attributes:
        heads: H.
        query_rank, kv_rank: of the queries' latent (None for queries without one) and of the one that is cached, R.
        plain, rotary: of the part of a query or key that is not rotated, n, and of the one that is, p.
        value: v.
    """

    heads: int
    query_rank: int | None
    kv_rank: int
    plain: int
    rotary: int
    value: int


class LatentAttention(nnx.Module):
    """Latent attention (DeepSeek-AI, 2024; arXiv 2405.04434), whose cache holds the latent and one rotated key.

    Args:
        width: D.
        shape: the other widths.
        bias: of the projections from and to D.
        scale: of the scores.
        interleaved: see `rotate`.
    """

    def __init__(self, init: Init, width: int, shape: LatentShape, *, bias: bool, scale: float, interleaved: bool):
        heads, query = shape.heads, shape.plain + shape.rotary
        if shape.query_rank is None:
            self.q_a_proj = self.q_a_layernorm = None
            self.queries = HeadsProjection(init, width, heads, query, names=("q_proj",))
        else:
            self.q_a_proj = Linear(init, width, shape.query_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(init, shape.query_rank, EPS)
            self.queries = HeadsProjection(init, shape.query_rank, heads, query, names=("q_b_proj",))
        self.kv_a_proj_with_mqa = Linear(init, width, shape.kv_rank + shape.rotary, bias=bias)
        self.kv_a_layernorm = RMSNorm(init, shape.kv_rank, EPS)
        self.keys_values = HeadsProjection(init, shape.kv_rank, heads, shape.plain + shape.value, names=("kv_b_proj",))
        self.o_proj = HeadsOutProjection(init, heads, heads, shape.value, width, bias=bias)
        self.shape, self.scale, self.interleaved = shape, scale, interleaved

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """One head, whose key is the rotated part and whose value is the latent."""
        return 1, self.shape.rotary, self.shape.kv_rank

    def __call__(
        self, x: Array, span: Span, table: tuple[Array, Array], cache: Any, weights: bool
    ) -> tuple[Array, Any, Array | None]:
        """Attends with x (B, T, D), rotated by the angles of `table`; see `nn.attention.attend`."""
        if self.q_a_proj is None or self.q_a_layernorm is None:
            (q,) = self.queries(x)  # (B, T, H, n + p)
        else:
            (q,) = self.queries(self.q_a_layernorm(self.q_a_proj(x)))
        compressed = self.kv_a_proj_with_mqa(x)  # (B, T, R + p)
        latent = self.kv_a_layernorm(compressed[..., : self.shape.kv_rank])[:, :, None]  # (B, T, 1, R)
        key = rotate(compressed[:, :, None, self.shape.kv_rank :], table, interleaved=self.interleaved)  # (B, T, 1, p)
        plain = q[..., : self.shape.plain]
        turned = rotate(q[..., self.shape.plain :], table, interleaved=self.interleaved)
        if cache is not None and span.slot is not None:
            cache = cache.write(key, latent, span.slot)
        if cache is None or span.whole:
            out, probabilities = self._expanded(plain, turned, latent, key, span, weights)
        else:
            out, probabilities = self._absorbed(plain, turned, cache, span, weights)
        return self.o_proj(out), cache, probabilities

    def _expanded(
        self, plain: Array, turned: Array, latent: Array, key: Array, span: Span, weights: bool
    ) -> tuple[Array, Array | None]:
        """Attends to the call's own tokens, whose keys and values are expanded for every head."""
        (expanded,) = self.keys_values(latent[:, :, 0])  # (B, T, H, n + v)
        shared = jnp.broadcast_to(key, turned.shape)  # (B, T, H, p)
        k = jnp.concatenate([expanded[..., : self.shape.plain], shared], axis=-1)
        q, v = jnp.concatenate([plain, turned], axis=-1), expanded[..., self.shape.plain :]
        out, _, probabilities = attend(q, k, v, span, scale=self.scale, weights=weights)
        return out, probabilities

    def _absorbed(
        self, plain: Array, turned: Array, cache: Any, span: Span, weights: bool
    ) -> tuple[Array, Array | None]:
        """Attends to the cached latents as they are: what would expand them is applied to queries and outputs."""
        kernel = self.keys_values.kernel[...]  # (R, H, n + v)
        q = jnp.einsum("bthn,rhn->bthr", plain, kernel[..., : self.shape.plain])
        keys, (key_scales, value_scales) = cache.keys.astype(turned.dtype), cache.scales
        scores = jnp.einsum("bthp,bskp->bhts", turned, keys, preferred_element_type=jnp.float32) * self.scale
        if key_scales is not None:
            scores = scores * key_scales.astype(jnp.float32)[:, None, None, :, 0]
        out, probabilities = attention(
            q,
            cache.values,
            cache.values,
            scale=self.scale,
            mask=span.mask(),
            weights=weights,
            bias=scores,
            key_scales=value_scales,
            value_scales=value_scales,
        )  # (B, T, H, R)
        return jnp.einsum("bthr,rhv->bthv", out, kernel[..., self.shape.plain :]), probabilities
