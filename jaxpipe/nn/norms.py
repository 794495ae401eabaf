"""Normalisation layers; statistics are float32 whatever the dtype."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.nn.init import Init
from jaxpipe.nn.layout import Direct

Array = jax.Array


class RMSNorm(nnx.Module):
    """Root-mean-square norm (Zhang and Sennrich, 2019), scaled after the cast back, as Llama does."""

    def __init__(self, init: Init, width: int, eps: float):
        self.scale = init.param((None,), (width,), Direct("weight", (width,)), initializer="ones")
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return self.scale[...] * x32.astype(x.dtype)


class FloatRMSNorm(nnx.Module):
    """Root-mean-square norm whose scale is applied in float32, before the cast back, as OLMo 2 does.

    Args:
        width: of what is normed.
        heads: norms the last two dimensions of (..., heads, width) together; a multiple of `heads` holds each head
            several times (see `layout.PackedHeads`).
    """

    def __init__(self, init: Init, width: int, eps: float, *, heads: int | None = None):
        size = width * (heads or 1)
        self.scale = init.param((None,), (size,), Direct("weight", (size,)), initializer="ones")
        self.eps, self.heads = eps, heads

    def __call__(self, x: Array) -> Array:
        x32, scale, axes = x.astype(jnp.float32), self.scale[...].astype(jnp.float32), -1
        if self.heads is not None:
            scale = jnp.repeat(scale.reshape(self.heads, -1), x.shape[-2] // self.heads, axis=0)  # (G, h)
            axes = (-2, -1)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=axes, keepdims=True) + self.eps)
        return (x32 * scale).astype(x.dtype)


class OffsetRMSNorm(nnx.Module):
    """Root-mean-square norm whose weight is the scale less one, applied before the cast back, as Gemma does."""

    def __init__(self, init: Init, width: int, eps: float):
        self.offset = init.param((None,), (width,), Direct("weight", (width,)), initializer="zeros")
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * (1.0 + self.offset[...].astype(jnp.float32))).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm (Ba et al., 2016) with scale and, unless it is switched off, bias."""

    def __init__(self, init: Init, width: int, eps: float, *, bias: bool = True):
        self.scale = init.param((None,), (width,), Direct("weight", (width,)), initializer="ones")
        self.bias = init.param((None,), (width,), Direct("bias", (width,)), initializer="zeros") if bias else None
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps) * self.scale[...].astype(jnp.float32)
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)


class HeadsLayerNorm(nnx.Module):
    """Layer norm without bias over each head (..., heads, h), with a scale of its own for every head, as in Command R.

    Args:
        heads: a multiple of them holds each head several times (see `layout.PackedHeads`).
    """

    def __init__(self, init: Init, heads: int, head_dim: int, eps: float):
        shape = (heads, head_dim)
        self.scale = init.param((None, None), shape, Direct("weight", shape), initializer="ones")
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        scale = self.scale[...].astype(jnp.float32)
        scale = jnp.repeat(scale, x.shape[-2] // scale.shape[0], axis=0)  # (G, h)
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.eps) * scale).astype(x.dtype)
