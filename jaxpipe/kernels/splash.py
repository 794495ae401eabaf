"""Attention of a call's own tokens on a TPU: JAX's splash attention; `attention.xla_attention` is its plain twin.

The kernel keeps a block of scores on the chip, with the running softmax of Milakov and Gimelshein (2018, arXiv
1805.02867), and visits no block that causality hides.
"""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import get_abstract_mesh

from jaxpipe.kernels.attention import xla_attention

Array = jax.Array

# The lanes of a vector register, of which blocks are multiples.
_LANES, _LARGEST_BLOCK = 128, 512
# Mosaic has no products of bfloat16 for them.
_NO_BFLOAT16 = ("TPU v2", "TPU v3")


def applies(q: Array, k: Array, v: Array) -> bool:
    """Whether the kernel takes queries (B, T, H, h), keys (B, S, K, h) and values: from 128 tokens on, in bfloat16 or
    float32, on a mesh of one device. Without a mesh nobody knows how the arrays lie, and XLA cannot split a kernel.
    """
    long = min(q.shape[1], k.shape[1]) >= _LANES
    dtypes = (jnp.float32,) if jax.devices()[0].device_kind in _NO_BFLOAT16 else (jnp.bfloat16, jnp.float32)
    fits = q.dtype == k.dtype == v.dtype and q.dtype in dtypes
    return long and fits and get_abstract_mesh().size == 1


def blocks_of(length: int) -> tuple[int, int]:
    """Returns the size of a block, and how many of them hold a sequence: as few as can, then as small as can."""
    count = -(-length // _LARGEST_BLOCK)
    return -(-length // (count * _LANES)) * _LANES, count


# Jitted, so that the layers of a model share one trace and one lowering of it.
@partial(jax.jit, static_argnames=("scale", "causal", "softcap", "interpret"))
def splash_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    causal: bool,
    softcap: float | None = None,
    sinks: Array | None = None,
    interpret: bool = False,
) -> Array:
    """Attends without a mask, where `applies`; see `attention.attention` for the arguments.

    The kernel takes no scale, so that queries are scaled before it, and rounded once more in bfloat16 unless the scale
    is a power of two. Products of float32 are exact to float32 whatever precision is set. Gradients are those of the
    plain twin.

    Args:
        q: (B, T, H, h).
        k, v: (B, S, K, h); the width of v may be another one.
        scale, causal, softcap, sinks: see `attention.attention`.
        interpret: run without a TPU.

    Returns:
        the outputs (B, T, H, h) in q's dtype.
    """
    return _attend(q, k, v, sinks, scale, causal, softcap, interpret)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _attend(
    q: Array,
    k: Array,
    v: Array,
    sinks: Array | None,
    scale: float,
    causal: bool,
    softcap: float | None,
    interpret: bool,
) -> Array:
    t, s, heads = q.shape[1], k.shape[1], q.shape[2]
    (block_q, count_q), (block_kv, count_kv) = blocks_of(t), blocks_of(s)
    queries, keys = block_q * count_q, block_kv * count_kv
    mask = (splash.CausalMask if causal else splash.FullMask)((queries, keys))
    kernel: Any = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(block_q=block_q, block_kv=block_kv),
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )
    segments = None
    if not causal and s < keys:  # causality hides keys behind the last token by itself
        segments = splash.SegmentIds(_is_padding(t, queries), _is_padding(s, keys))
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    with _precision(q.dtype):
        out = jax.vmap(lambda q, k, v: kernel(q, k, v, segments, sinks))(
            _heads_first(q, queries), _heads_first(k, keys), _heads_first(v, keys)
        )
    return out.transpose(0, 2, 1, 3)[:, :t]  # (B, T, H, h)


def _heads_first(x: Array, length: int) -> Array:
    """Pads x (B, T, H, h) to `length` tokens and brings it to (B, H, length, h)."""
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0))).transpose(0, 2, 1, 3)


def _is_padding(tokens: int, length: int) -> Array:
    """Returns 0 for every token and 1 for the padding behind them, (length,)."""
    return (jnp.arange(length) >= tokens).astype(jnp.int32)


def _forward(q: Array, k: Array, v: Array, sinks: Array | None, *settings: Any) -> tuple[Array, Any]:
    return _attend(q, k, v, sinks, *settings), (q, k, v, sinks)


def _backward(scale: float, causal: bool, softcap: float | None, interpret: bool, inputs: Any, gradient: Array) -> Any:
    def plain(q: Array, k: Array, v: Array, sinks: Array | None) -> Array:
        extras = {"softcap": softcap, "sinks": sinks}
        return xla_attention(q, k, v, scale=scale, mask=None, causal=causal, weights=False, **extras)[0]

    with _precision(gradient.dtype):  # this is traced where that of the forward call has been left
        return jax.vjp(plain, *inputs)[1](gradient)


_attend.defvjp(_forward, _backward)


def _precision(dtype: Any) -> AbstractContextManager[None]:
    """The precision of products: Mosaic lowers no third one."""
    return jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default")
