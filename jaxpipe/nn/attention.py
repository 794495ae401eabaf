"""Attention over a call's own tokens or over a cache, and which keys each query sees."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxpipe.kernels.attention import attention
from jaxpipe.kernels.continued import continued_attention
from jaxpipe.nn.cache import Cache, KVLayer
from jaxpipe.nn.quantized_cache import QuantizedKVLayer
from jaxpipe.nn.ring import RingLayer

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Span:
    """The queries and keys of one call: which keys may be seen, and where the cache is written.

    Attributes:
        queries: (1 or B, T) int32 positions of the call's tokens.
        keys: (1 or B, S) int32 positions of the keys, -1 where there is nothing to see.
        slot: () int32, the first slot of the cache that the call writes; None without a cache.
        causal: a query sees no key of a later position.
        whole: the keys are the call's own tokens, and none that a query may see is padding.
        lengths: (B,) int32, tokens of each row that are not padding, where a cache is fresh.
        in_order: positions are slots, and every slot before the call's own tokens is seen; see `nn.cache.Cache`.
    """

    queries: Array
    keys: Array
    slot: Array | None
    causal: bool = field(metadata={"static": True})
    whole: bool = field(metadata={"static": True})
    lengths: Array | None = None
    in_order: bool = field(default=False, metadata={"static": True})

    def mask(self, window: int | None = None) -> Array | None:
        """Returns which keys are seen, (1 or B, T, S), or None where causality alone decides.

        Args:
            window: a query sees the `window` last positions only, its own among them; where it sees later ones
                too, no more than as many of them.
        """
        # Among the tokens of one call that are no more than the window, it hides nothing.
        if self.whole and (window is None or self.queries.shape[1] <= window):
            return None
        queries, keys = self.queries[:, :, None], self.keys[:, None, :]  # (B, T, 1), (B, 1, S)
        seen = jnp.broadcast_to(keys >= 0, jnp.broadcast_shapes(queries.shape, keys.shape))
        if self.causal:
            seen = seen & (keys <= queries)
        if window is not None:
            seen = seen & (queries - keys < window)
            if not self.causal:
                seen = seen & (keys - queries < window)
        return seen


def causal_span(tokens: int, attention_mask: Array | None, position_ids: Array | None, cache: Cache | None) -> Span:
    """Returns the span of a decoder's call.

    Without a cache, order is the order of the columns and `attention_mask` (B, T) may be False
    anywhere. With one, `position_ids` (B, T) give the order; the rows of a prefill, which finds the
    cache fresh, are padded on the right, so that causality alone hides their padding.
    """
    if cache is None:
        columns = jnp.arange(tokens, dtype=jnp.int32)[None]
        keys = columns if attention_mask is None else jnp.where(attention_mask.astype(bool), columns, -1)
        return Span(columns, keys, None, causal=True, whole=attention_mask is None)
    assert position_ids is not None  # Cache.enter saw to it
    if cache.in_order:
        slots = jnp.arange(cache.positions.shape[1], dtype=jnp.int32)[None]
        queries = cache.slot + jnp.arange(tokens, dtype=jnp.int32)[None]
        keys = jnp.where(slots < cache.slot + tokens, slots, -1)
        return Span(queries, keys, cache.slot, causal=True, whole=False, in_order=True)
    if not cache.fresh:
        return Span(position_ids, cache.positions, cache.slot, causal=True, whole=False)
    valid = jnp.ones(position_ids.shape, bool) if attention_mask is None else attention_mask.astype(bool)
    lengths = jnp.sum(valid, axis=1, dtype=jnp.int32)
    return Span(position_ids, position_ids, cache.slot, causal=True, whole=True, lengths=lengths)


def full_span(tokens: int, attention_mask: Array | None) -> Span:
    """Returns the span of an encoder's call: every query sees every token that is not padding."""
    columns = jnp.arange(tokens, dtype=jnp.int32)[None]
    keys = columns if attention_mask is None else jnp.where(attention_mask.astype(bool), columns, -1)
    return Span(columns, keys, None, causal=False, whole=attention_mask is None)


def attend(
    q: Array,
    k: Array,
    v: Array,
    span: Span,
    cache: Any = None,
    *,
    scale: float,
    window: int | None = None,
    weights: bool = False,
    bias: Array | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
) -> tuple[Array, Any, Array | None]:
    """Attends with q (B, T, H, h) to k and v (B, T, K, h), or to the cache after they are written into it.

    Args:
        q, k, v: of the call's tokens.
        span: which keys are seen, and where the cache is written.
        cache: of this layer, a `KVLayer`, `QuantizedKVLayer` or `RingLayer`.
        scale: of the scores.
        window: see `Span.mask`.
        weights: return the probabilities too.
        bias, softcap, sinks: see `kernels.attention.attention`; a bias is over the keys of `span`.

    Returns:
        the heads' outputs (B, T, H, h), the cache of the layer, and, if `weights`, the
        probabilities (B, H, T, S).
    """
    scales = None, None
    if cache is not None and span.slot is not None:
        cache = write(cache, k, v, span)
        if span.in_order and isinstance(cache, KVLayer | QuantizedKVLayer) and not weights:
            extras = {"bias": bias, "softcap": softcap, "sinks": sinks}
            extras["key_scales"], extras["value_scales"] = cache.scales
            out = continued_attention(
                q, k, v, cache.keys, cache.values, span.slot, scale=scale, window=window, **extras
            )
            return out, cache, None
        if not span.whole:
            store, span = readable(cache, span)
            k, v, scales = store.keys, store.values, store.scales
    out, probabilities = attention(
        q,
        k,
        v,
        scale=scale,
        mask=span.mask(window),
        causal=span.causal and span.whole,
        weights=weights,
        bias=bias,
        softcap=softcap,
        sinks=sinks,
        key_scales=scales[0],
        value_scales=scales[1],
    )
    return out, cache, probabilities


def write(cache: Any, k: Array, v: Array, span: Span) -> Any:
    """Writes the keys and values (B, T, K, h) of a call into the cache of a layer."""
    assert span.slot is not None
    if isinstance(cache, RingLayer) and span.whole:
        assert span.lengths is not None  # the span of a fresh cache
        return cache.start(k, v, span.lengths)
    return cache.write(k, v, span.slot)


def readable(cache: Any, span: Span) -> tuple[Any, Span]:
    """Returns the store of a layer after the call's tokens were written into it, and the span of its slots."""
    if not isinstance(cache, RingLayer):
        return cache, span
    assert span.slot is not None
    return cache.store, replace(span, keys=cache.positions(span.queries, span.slot))
