"""cuDNN's attention of a chunk over a cache against its plain twin, on a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.kernels import continued

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("slot", [0, 1, 250, 640 - 96])
def test_cudnn_equals_xla(slot: int, heads: tuple[int, int], window: int | None) -> None:
    tokens, slots, width = 96, 640, 128
    keys_of = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys_of[0], (2, tokens, heads[0], width), jnp.bfloat16)
    keys, values = (jax.random.normal(key, (2, slots, heads[1], width), jnp.bfloat16) for key in keys_of[1:])
    k, v = (x[:, slot : slot + tokens] for x in (keys, values))
    scale = width**-0.5
    fast = jax.jit(lambda slot: continued._cudnn(q, keys, values, slot, scale, window))(jnp.int32(slot))
    assert fast is not None
    plain = continued.blockwise_attention(q, k, v, keys, values, jnp.int32(slot), scale=scale, window=window)
    np.testing.assert_allclose(np.asarray(fast, np.float32), np.asarray(plain, np.float32), atol=2e-2, rtol=2e-2)
