"""Attention of a chunk of tokens to itself and to the tokens before it, which a cache holds."""

import jax
import jax.numpy as jnp

from jaxpipe.common.logging import info_once
from jaxpipe.kernels.attention import over_scores
from jaxpipe.kernels.compute import platform

Array = jax.Array

# Most slots of the cache that `blockwise_attention` scores at a time.
_BLOCK = 1024


def continued_attention(
    q: Array,
    k: Array,
    v: Array,
    keys: Array,
    values: Array,
    slot: Array,
    *,
    scale: float,
    window: int | None = None,
    bias: Array | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    key_scales: Array | None = None,
    value_scales: Array | None = None,
) -> Array:
    """Attends with the T tokens in the slots from `slot` on, causally; every slot before them is seen.

    Args:
        q: (B, T, H, h).
        k, v: (B, T, K, h) of the same tokens; query head i reads head i // (H / K).
        keys, values: (B, S, K, h), into which k and v are written already.
        slot: () int32, from 0 to S - T.
        scale: of the scores, before the softmax.
        window: a token sees that many last ones, its own among them; None for all.
        bias: (1 or B, H, 1 or T, S), added to the scaled scores.
        softcap, sinks: see `kernels.attention.attention`.
        key_scales, value_scales: (B, S, K), what keys and values, in 8 bits, are to be multiplied by; not k and v.

    Returns:
        the outputs (B, T, H, h) in q's dtype.
    """
    plain = bias is None and softcap is None and sinks is None and key_scales is None
    if plain and v.shape[-1] == q.shape[-1]:
        out = _cudnn(q, keys, values, slot, scale, window)
        if out is not None:
            return out
    extras = {"bias": bias, "softcap": softcap, "sinks": sinks}
    extras |= {"key_scales": key_scales, "value_scales": value_scales}
    return blockwise_attention(q, k, v, keys, values, slot, scale=scale, window=window, **extras)


def blockwise_attention(
    q: Array,
    k: Array,
    v: Array,
    keys: Array,
    values: Array,
    slot: Array,
    *,
    scale: float,
    window: int | None = None,
    bias: Array | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    key_scales: Array | None = None,
    value_scales: Array | None = None,
) -> Array:
    """The plain form of `continued_attention`: scores of T x T and of T x one block of slots at a time.

    The blocks are joined by a running softmax (Milakov and Gimelshein, 2018; arXiv 1805.02867), and blocks that no
    token sees are not visited.
    """
    b, t, heads, h = q.shape
    kv_heads, slots, dtype = k.shape[2], keys.shape[1], q.dtype
    q = q.reshape(b, t, kv_heads, heads // kv_heads, h).transpose(0, 2, 3, 1, 4)  # (B, K, H/K, T, h)
    columns = jnp.arange(t, dtype=jnp.int32)

    def scores(k: Array, first: Array, seen: Array, scales: Array | None = None) -> Array:
        size, k = k.shape[1], k.astype(dtype).transpose(0, 2, 3, 1)
        x = jnp.matmul(q.reshape(b, kv_heads, -1, h), k, preferred_element_type=jnp.float32)
        x = x.reshape(b, kv_heads, heads // kv_heads, t, size) * scale
        if scales is not None:
            x = x * over_scores(scales)
        if softcap is not None:
            x = softcap * jnp.tanh(x / softcap)
        if bias is not None:
            part = jax.lax.dynamic_slice_in_dim(bias, first, size, axis=3).astype(jnp.float32)
            x = x + part.reshape(bias.shape[0], kv_heads, -1, *part.shape[2:])
        return jnp.where(seen, x, -jnp.inf)

    def mixed(weights: Array, v: Array, scales: Array | None = None) -> Array:
        if scales is not None:
            weights, v = weights * over_scores(scales), v.astype(dtype)
        weights = weights.reshape(b, kv_heads, -1, v.shape[1]).astype(v.dtype)
        out = jnp.matmul(weights, v.transpose(0, 2, 1, 3), preferred_element_type=jnp.float32)
        return out.reshape(b, kv_heads, heads // kv_heads, t, -1)

    def within(distance: Array) -> Array:
        return jnp.ones(distance.shape, bool) if window is None else distance < window

    # The chunk itself comes first: a token sees itself, so that the running maximum is finite from there on.
    distance = columns[:, None] - columns  # (T, T)
    x = scores(k, slot, (distance >= 0) & within(distance))
    highest = jnp.max(x, axis=-1, keepdims=True)  # (B, K, H/K, T, 1)
    x = jnp.exp(x - highest)
    total, out = jnp.sum(x, axis=-1, keepdims=True), mixed(x, v)

    size = _block(slots)

    def block(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, total, out = carry
        index = i * size + jnp.arange(size, dtype=jnp.int32)
        seen = (index < slot) & within(slot + columns[:, None] - index)  # (T, size)
        k, v, k_scales, v_scales = (
            None if part is None else jax.lax.dynamic_slice_in_dim(part, i * size, size, axis=1)
            for part in (keys, values, key_scales, value_scales)
        )
        assert k is not None and v is not None
        x = scores(k, i * size, seen, k_scales)
        raised = jnp.maximum(highest, jnp.max(x, axis=-1, keepdims=True))
        x, kept = jnp.exp(x - raised), jnp.exp(highest - raised)
        return raised, total * kept + jnp.sum(x, axis=-1, keepdims=True), out * kept + mixed(x, v, v_scales)

    first = jnp.zeros_like(slot) if window is None else jnp.maximum(slot - window + 1, 0) // size
    highest, total, out = jax.lax.fori_loop(first, (slot + size - 1) // size, block, (highest, total, out))
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(1, kv_heads, -1, 1, 1)
        raised = jnp.maximum(highest, sink)
        total, out = total * jnp.exp(highest - raised) + jnp.exp(sink - raised), out * jnp.exp(highest - raised)
    out = (out / total).transpose(0, 3, 1, 2, 4)  # (B, T, K, H/K, h)
    return out.reshape(b, t, heads, v.shape[-1]).astype(dtype)


def _block(slots: int) -> int:
    """The largest size up to `_BLOCK` that divides the slots: a block beyond the end would be moved, not cut."""
    return next(size for size in range(min(_BLOCK, slots), 0, -1) if slots % size == 0)


def _cudnn(q: Array, keys: Array, values: Array, slot: Array, scale: float, window: int | None) -> Array | None:
    """Asks for cuDNN's fused attention over the whole cache, None where it does not apply.

    Which keys are seen is the same for all rows and heads, so the mask takes T x S numbers.
    """
    if platform() != "gpu" or q.dtype not in (jnp.bfloat16, jnp.float16):
        return None
    tokens, slots = q.shape[1], keys.shape[1]
    distance = slot + jnp.arange(tokens, dtype=jnp.int32)[:, None] - jnp.arange(slots, dtype=jnp.int32)  # (T, S)
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    lengths = jnp.full((q.shape[0],), slot + tokens, jnp.int32)  # what lies behind them is not read
    try:
        return jax.nn.dot_product_attention(
            q, keys, values, mask=seen[None, None], scale=scale, key_value_seq_lengths=lengths, implementation="cudnn"
        )
    except (NotImplementedError, RuntimeError, ValueError) as error:
        info_once(
            f"cuDNN attention does not take q {q.shape} and a cache {keys.shape} in {q.dtype}: {error}; XLA does."
        )
        return None
