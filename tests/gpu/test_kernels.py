"""The kernels of attention against their plain twins, on a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.kernels import attention as kernels
from tests.kernels.cached import Case, make

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (8, 1)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_cudnn_equals_xla(heads: tuple[int, int], causal: bool, head_dim: int) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, 96, heads[0], head_dim), (2, 96, heads[1], head_dim), (2, 96, heads[1], head_dim)]
    q, k, v = (jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True))
    scale = head_dim**-0.5
    fast = jax.jit(lambda q, k, v: kernels._cudnn(q, k, v, scale, causal))(q, k, v)
    assert fast is not None
    plain, _ = kernels.xla_attention(q, k, v, scale=scale, mask=None, causal=causal, weights=False)
    np.testing.assert_allclose(np.asarray(fast, np.float32), np.asarray(plain, np.float32), atol=2e-2, rtol=2e-2)


CACHED = {
    "short": Case(1, 1, 32, 8, 128, 384),
    "long, split": Case(1, 1, 32, 8, 128, 8320),
    "several queries": Case(3, 11, 32, 8, 128, 640, window=200),
    "slots that no block divides": Case(2, 1, 16, 8, 256, 1288, softcap=30.0, sinks=True),
    "int8": Case(2, 1, 64, 8, 64, 1280, stored="int8"),
    "float8": Case(2, 1, 64, 8, 64, 1280, stored="float8_e4m3fn"),
}


@pytest.mark.parametrize("name", CACHED)
def test_decode_kernel_equals_xla(name: str) -> None:
    q, k, v, mask, extras = make(CACHED[name], jnp.bfloat16)
    fast = jax.jit(lambda *x: kernels._few_queries(*x, **extras))(q, k, v, mask)
    assert fast is not None
    wide = (x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in (q, k, v))
    with jax.default_matmul_precision("highest"):
        plain, _ = kernels.xla_attention(*wide, mask=mask, causal=False, weights=False, **extras)
    error = np.asarray(fast, np.float32) - np.asarray(plain, np.float32)
    assert np.linalg.norm(error) < 1e-2 * np.linalg.norm(np.asarray(plain, np.float32))
