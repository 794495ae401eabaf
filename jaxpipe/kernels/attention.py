"""Scaled dot-product attention: cuDNN's kernel, that of `decode_attention` or `splash` where they apply, else XLA."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxpipe.common.logging import info_once
from jaxpipe.kernels.compute import platform
from jaxpipe.kernels.optional import kernel_module

Array = jax.Array


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    mask: Array | None = None,
    causal: bool = False,
    weights: bool = False,
    bias: Array | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    key_scales: Array | None = None,
    value_scales: Array | None = None,
) -> tuple[Array, Array | None]:
    """Attends with H query heads to K key-value heads, H a multiple of K.

    Args:
        q: (B, T, H, h).
        k, v: (B, S, K, h); query head i reads head i // (H / K).
        scale: of the scores, before the softmax.
        mask: (1 or B, T, S) bool, True where a key is seen.
        causal: column t sees no column after t; T = S.
        weights: return the probabilities too.
        bias: (1 or B, H, T, S), added to the scaled scores.
        softcap: scaled scores are brought to ``softcap * tanh(scores / softcap)`` before the bias.
        sinks: (H,), a score of each head that takes part in the softmax and attends to nothing.
        key_scales, value_scales: (B, S, K), what k and v, in 8 bits, are to be multiplied by.

    Returns:
        the outputs (B, T, H, h) in q's dtype, and the probabilities (B, H, T, S) or None.
    """
    plain = mask is None and bias is None and softcap is None and sinks is None and key_scales is None and not weights
    if plain and q.shape[1] > 1 and v.shape[-1] == q.shape[-1]:
        out = _cudnn(q, k, v, scale, causal)
        if out is not None:
            return out, None
    if mask is None and bias is None and key_scales is None and not weights:
        out = _splash(q, k, v, scale=scale, causal=causal, softcap=softcap, sinks=sinks)
        if out is not None:
            return out, None
    extras = {"softcap": softcap, "sinks": sinks, "key_scales": key_scales, "value_scales": value_scales}
    if mask is not None and bias is None and not causal and not weights:
        out = _few_queries(q, k, v, mask, scale=scale, **extras)
        if out is not None:
            return out, None
    return xla_attention(q, k, v, scale=scale, mask=mask, causal=causal, weights=weights, bias=bias, **extras)


def xla_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    mask: Array | None,
    causal: bool,
    weights: bool,
    bias: Array | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    key_scales: Array | None = None,
    value_scales: Array | None = None,
) -> tuple[Array, Array | None]:
    """The plain form of `attention`, which every other form is tested against."""
    b, t, heads, h = q.shape
    s, kv_heads = k.shape[1:3]
    q = q.reshape(b, t, kv_heads, heads // kv_heads, h)  # (B, T, K, H/K, h)
    scores = _scores(q, k if key_scales is None else k.astype(q.dtype)) * scale  # (B, K, H/K, T, S)
    if key_scales is not None:
        scores = scores * over_scores(key_scales)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32).reshape(bias.shape[0], kv_heads, -1, *bias.shape[2:])
    if causal:
        mask = jnp.tril(jnp.ones((1, t, s), bool)) if mask is None else mask & jnp.tril(jnp.ones((1, t, s), bool))
    if mask is not None:
        # Finite, so that a row that sees nothing stays free of NaN.
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(1, kv_heads, -1, 1, 1)
        scores = jnp.concatenate([scores, jnp.broadcast_to(sink, (*scores.shape[:-1], 1))], axis=-1)
    probabilities = jax.nn.softmax(scores, axis=-1)[..., :s]  # (B, K, H/K, T, S)
    weighted = probabilities
    if value_scales is not None:
        weighted, v = probabilities * over_scores(value_scales), v.astype(q.dtype)
    out = _mixed(weighted.astype(v.dtype), v)  # (B, T, K, H/K, h)
    out = out.reshape(b, t, heads, v.shape[-1]).astype(q.dtype)
    return out, probabilities.reshape(b, heads, t, s).astype(q.dtype) if weights else None


def over_scores(scales: Array) -> Array:
    """Brings the scales of keys or values (B, S, K) to float32 scores, (B, K, 1, 1, S)."""
    return scales.astype(jnp.float32).transpose(0, 2, 1)[:, :, None, None]


def _scores(q: Array, k: Array) -> Array:
    """Returns the products of q (B, T, K, G, h) and k (B, S, K, h) in float32, (B, K, G, T, S)."""
    if not _heads_first(q.shape[1]):
        return jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    b, t, kv_heads, group, h = q.shape
    q = q.transpose(0, 2, 3, 1, 4).reshape(b, kv_heads, group * t, h)
    scores = jnp.matmul(q, k.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)
    return scores.reshape(b, kv_heads, group, t, -1)


def _mixed(probabilities: Array, v: Array) -> Array:
    """Returns the mean of v (B, S, K, h) by probabilities (B, K, G, T, S), (B, T, K, G, h)."""
    b, kv_heads, group, t, s = probabilities.shape
    if not _heads_first(t):
        return jnp.einsum("bkgts,bskh->btkgh", probabilities, v)
    out = jnp.matmul(probabilities.reshape(b, kv_heads, group * t, s), v.transpose(0, 2, 1, 3))
    return out.reshape(b, kv_heads, group, t, -1).transpose(0, 3, 1, 2, 4)


def _heads_first(t: int) -> bool:
    """Whether heads are brought to the front before the products: XLA's CPU backend then takes half the time. One
    query is left to XLA, which then writes its cache in place.
    """
    return t > 1 and platform() == "cpu"


def _few_queries(q: Array, k: Array, v: Array, mask: Array, **inputs: Any) -> Array | None:
    """Runs the kernel for fewer queries than keys; None where it does not apply."""
    few = kernel_module("decode_attention") if platform() == "gpu" and q.shape[1] < k.shape[1] else None
    return few.decode_attention(q, k, v, mask, **inputs) if few and few.applies(q, k, v) else None


def _splash(q: Array, k: Array, v: Array, **inputs: Any) -> Array | None:
    """Runs JAX's kernel for TPUs; None where it does not apply."""
    splash = kernel_module("splash") if platform() == "tpu" else None
    return splash.splash_attention(q, k, v, **inputs) if splash and splash.applies(q, k, v) else None


def _cudnn(q: Array, k: Array, v: Array, scale: float, causal: bool) -> Array | None:
    """Asks for cuDNN's fused attention: half precision, heads to 256; None where it does not apply."""
    if platform() != "gpu" or q.dtype not in (jnp.bfloat16, jnp.float16):
        return None
    try:
        return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=causal, implementation="cudnn")
    except (NotImplementedError, RuntimeError, ValueError) as error:
        info_once(f"cuDNN attention does not take q {q.shape} and k {k.shape} in {q.dtype}: {error}; XLA does.")
        return None
