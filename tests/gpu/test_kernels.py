"""cuDNN's attention against its plain twin, on a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.kernels import attention as kernels

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
