"""The platform, the devices and the precision that a function is traced for."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import get_abstract_mesh

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


def platform() -> str:
    """The platform that is traced for: ``"cpu"``, ``"gpu"`` or ``"tpu"``."""
    return _platform.get() or jax.default_backend()


def on_one_device() -> bool:
    """Whether the function is traced for one device: on its mesh, or without any."""
    return get_abstract_mesh().size in (0, 1)


@contextlib.contextmanager
def tracing_for(name: str | None, dtype: Any, matmul_precision: str | None = None) -> Iterator[None]:
    """Entered inside a jitted function, while it is traced.

    float32 means float32: JAX multiplies float32 in TF32 on recent GPUs and in bfloat16 on TPUs
    unless it is told otherwise, so such models are traced at the highest precision.

    Args:
        name: the platform of the devices, None for JAX's default.
        dtype: of the computation.
        matmul_precision: a precision of `jax.default_matmul_precision` to use instead.
    """
    token = _platform.set(name)
    precision = matmul_precision or ("highest" if jnp.dtype(dtype) == jnp.float32 else None)
    try:
        with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
            yield
    finally:
        _platform.reset(token)
