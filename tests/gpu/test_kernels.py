"""The kernels against their plain twins, on a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.kernels import attention as kernels
from jaxpipe.kernels.experts import gathered_products
from jaxpipe.kernels.few_experts import chosen_products
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("count", "depth", "width"), [(8, 1024, 2048), (32, 720, 1444), (5, 70, 130)])
@pytest.mark.parametrize(("rows", "k", "shared"), [(1, 2, True), (3, 4, False)])
def test_chosen_products_equal_gathered_ones(
    count: int, depth: int, width: int, rows: int, k: int, shared: bool, dtype: str
) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (rows, 1 if shared else k, depth), dtype)
    weights = jax.random.normal(keys[1], (count, depth, width), dtype)
    chosen = jax.random.randint(keys[2], (rows, k), -1, count + 1)
    fast = np.asarray(chosen_products(x, chosen, weights), np.float32)
    with jax.default_matmul_precision("highest"):
        plain = np.asarray(gathered_products(x.astype(jnp.float32), chosen, weights.astype(jnp.float32)))
    bound = {"bfloat16": 1e-2, "float32": 1e-5}[dtype]
    assert np.linalg.norm(fast - plain) < bound * np.linalg.norm(plain)
