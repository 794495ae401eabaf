"""Activation functions by the names that Hub configs use."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxpipe.common.errors import ConfigError, nearest

Array = jax.Array


def _gelu(x: Array) -> Array:
    # By erf, which XLA's CPU backend computes four times as fast as the erfc of jax.nn.gelu; in float32, as the sum
    # cancels where x is negative.
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def _gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _relu2(x: Array) -> Array:
    return jnp.square(jax.nn.relu(x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "linear": lambda x: x,
    "mish": jax.nn.mish,
    "relu": jax.nn.relu,
    "relu2": _relu2,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def activation(name: str, key: str = "hidden_act") -> Callable[[Array], Array]:
    """Returns the function that a config calls `name` in its field `key`.

    Raises:
        ConfigError: no function of that name is known.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"config.json: {key}={name!r} is not a known activation; known: {', '.join(sorted(ACTIVATIONS))}."
            + nearest(name, ACTIVATIONS)
        )
    return ACTIVATIONS[name]
