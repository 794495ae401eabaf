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
