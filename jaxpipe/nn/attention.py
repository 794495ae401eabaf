"""Attention over a call's own tokens or over a cache, and which keys each query sees."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jaxpipe.kernels.attention import attention
from jaxpipe.nn.cache import Cache, KVLayer

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
    """

    queries: Array
    keys: Array
    slot: Array | None
    causal: bool = field(metadata={"static": True})
    whole: bool = field(metadata={"static": True})

    def mask(self, window: int | None = None) -> Array | None:
        """Returns which keys are seen, (1 or B, T, S), or None where causality alone decides.

        Args:
            window: a query sees the `window` last positions only, its own among them; where it sees later ones
                too, no more than as many of them.
        """
        if self.whole and window is None:
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
    keys = position_ids if cache.fresh else cache.positions
    return Span(position_ids, keys, cache.slot, causal=True, whole=cache.fresh)


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
    cache: KVLayer | None = None,
    *,
    scale: float,
    window: int | None = None,
    weights: bool = False,
    bias: Array | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
) -> tuple[Array, KVLayer | None, Array | None]:
    """Attends with q (B, T, H, h) to k and v (B, T, K, h), or to the cache after they are written into it.

    Args:
        q, k, v: of the call's tokens.
        span: which keys are seen, and where the cache is written.
        cache: of this layer.
        scale: of the scores.
        window: see `Span.mask`.
        weights: return the probabilities too.
        bias, softcap, sinks: see `kernels.attention.attention`; a bias is over the keys of `span`.

    Returns:
        the heads' outputs (B, T, H, h), the cache of the layer, and, if `weights`, the
        probabilities (B, H, T, S).
    """
    if cache is not None and span.slot is not None:
        cache = cache.write(k, v, span.slot)
        if not span.whole:
            k, v = cache.keys, cache.values
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
    )
    return out, cache, probabilities
