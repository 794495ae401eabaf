"""Attention of an encoder-decoder: self-attention, attention to the encoder's output, and the cache of both."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.nn.attention import Span, attend
from jaxpipe.nn.cache import Cache, KVLayer
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import HeadsOutProjection, HeadsProjection, QKVProjection
from jaxpipe.sharding.rules import constrain

Array = jax.Array
Names = tuple[str, str, str, str]  # of the projections to query, key and value, and of the output's
NAMES: Names = ("q_proj", "k_proj", "v_proj", "out_proj")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Memory:
    """What a decoder sees of the encoder's output: made once, read at every step, never written.

    Attributes:
        layers: keys and values (B, S, H, h) of each layer.
        valid: (B, S) bool, False at padding; None where there is none.
    """

    layers: tuple[KVLayer, ...]
    valid: Array | None

    def span(self, tokens: int) -> Span:
        """Returns the span of `tokens` queries, each of which sees all that is not padding."""
        columns = jnp.arange(self.layers[0].keys.shape[1], dtype=jnp.int32)[None]
        keys = columns if self.valid is None else jnp.where(self.valid.astype(bool), columns, -1)
        queries = jnp.zeros((1, tokens), jnp.int32)
        return Span(queries, keys, None, causal=False, whole=self.valid is None)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EncoderDecoderCache(Cache):
    """The cache of a decoder's own tokens, with its memory of the encoder's; a fresh one has none yet."""

    memory: Memory | None = None


class SelfAttention(nnx.Module):
    """Multi-head self-attention, of an encoder or of a decoder.

    Args:
        scale: of the scores; ``head_dim ** -0.5`` if None.
        names: of the projections in the checkpoint.
    """

    def __init__(
        self,
        init: Init,
        width: int,
        heads: int,
        head_dim: int,
        *,
        bias: bool = True,
        scale: float | None = None,
        names: Names = NAMES,
    ):
        self.qkv = QKVProjection(init, width, heads, heads, head_dim, bias=bias, names=names[:3])
        self.output = HeadsOutProjection(init, heads, heads, head_dim, width, bias=bias, name=names[3])
        self.scale = head_dim**-0.5 if scale is None else scale

    def __call__(
        self, x: Array, span: Span, cache: KVLayer | None, weights: bool, bias: Array | None = None
    ) -> tuple[Array, KVLayer | None, Array | None]:
        q, k, v = self.qkv(x)  # (B, T, H, h) each
        out, cache, probabilities = attend(q, k, v, span, cache, scale=self.scale, weights=weights, bias=bias)
        return self.output(out), cache, probabilities


class CrossAttention(nnx.Module):
    """Multi-head attention of a decoder to the encoder's output; arguments as of `SelfAttention`."""

    def __init__(
        self,
        init: Init,
        width: int,
        heads: int,
        head_dim: int,
        *,
        bias: bool = True,
        scale: float | None = None,
        names: Names = NAMES,
    ):
        shape = (width, heads, head_dim)
        self.query = HeadsProjection(init, *shape, bias=bias, names=names[:1])
        self.key_value = HeadsProjection(init, *shape, bias=bias, names=names[1:3])
        self.output = HeadsOutProjection(init, heads, heads, head_dim, width, bias=bias, name=names[3])
        self.scale = head_dim**-0.5 if scale is None else scale

    def remember(self, x: Array) -> KVLayer:
        """Keys and values (B, S, H, h) of the encoder's output x (B, S, D)."""
        k, v = (constrain(part, "batch", None, "kv_heads", None) for part in self.key_value(x))
        return KVLayer(k, v)

    def __call__(self, x: Array, memory: KVLayer, span: Span, weights: bool) -> tuple[Array, Array | None]:
        (q,) = self.query(x)  # (B, T, H, h)
        out, _, probabilities = attend(q, memory.keys, memory.values, span, scale=self.scale, weights=weights)
        return self.output(out), probabilities
