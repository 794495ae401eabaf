"""The choice of experts for few tokens: the kernels, interpreted, against the router's plain form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from jaxpipe.kernels.compute import tracing_for
from jaxpipe.kernels.few_choices import applies, softmax_choice
from jaxpipe.nn.init import Init
from jaxpipe.nn.moe import SoftmaxRouter


def router_of(depth: int, experts: int, count: int, **settings: Any) -> SoftmaxRouter:
    router = SoftmaxRouter(Init(), depth, experts, count, **settings)
    rng = np.random.default_rng(depth + experts)
    router.kernel[...] = jnp.asarray(rng.standard_normal((depth, experts)), jnp.float32)
    if router.bias is not None:
        router.bias[...] = jnp.asarray(rng.standard_normal(experts), jnp.float32)
    return router


def by_kernel(router: SoftmaxRouter, x: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    bias = None if router.bias is None else router.bias[...].astype(x.dtype)
    settings: dict[str, Any] = {"count": router.count, "normalise": router.normalise, "dtype": dtype}
    return softmax_choice(x, router.kernel[...].astype(x.dtype), bias, **settings, interpret=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("depth", "experts", "count", "rows"),
    [(64, 8, 2, 1), (83, 4, 3, 2), (300, 32, 5, 1), (513, 64, 1, 3), (1000, 128, 8, 1), (7, 2, 2, 8)],
)
def test_kernels_equal_the_plain_form(depth: int, experts: int, count: int, rows: int, normalise: bool, bias: bool):
    router = router_of(depth, experts, count, normalise=normalise, bias=bias)
    x = jnp.asarray(np.random.default_rng(rows).standard_normal((rows, 1, depth)) / depth**0.5, jnp.float32)
    with jax.default_matmul_precision("highest"):
        chosen, shares = router(x)
    found, parts = by_kernel(router, x, jnp.float32)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, chosen)
    np.testing.assert_allclose(parts, shares, rtol=2e-5)


def test_scores_are_rounded_before_the_bias_and_the_first_of_equals_wins() -> None:
    """Whole numbers, which sums in bfloat16 round: what is chosen tells when."""
    router = router_of(40, 8, 4, normalise=True, bias=True)
    router.kernel[...] = jnp.broadcast_to(jnp.asarray([6.0, 6.425, 6.0, 1.0, 6.425, 6.0, 0.0, 6.0]), (40, 8))
    assert router.bias is not None
    router.bias[...] = jnp.asarray([17.0, 1.0, 16.0, 0.0, 0.0, 16.0, 3.0, 17.0])
    x = jnp.ones((1, 2, 40), jnp.bfloat16)
    for leaf in (router.kernel, router.bias):
        leaf[...] = leaf[...].astype(jnp.bfloat16)
    chosen, shares = router(x)
    found, parts = by_kernel(router, x, jnp.bfloat16)
    assert parts.dtype == shares.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, chosen)
    np.testing.assert_allclose(np.asarray(parts, np.float32), np.asarray(shares, np.float32), rtol=2**-7)
    equal = softmax_choice(x, jnp.zeros((40, 8), x.dtype), None, count=4, normalise=True, dtype=x.dtype, interpret=True)
    assert np.asarray(equal[0]).tolist() == [[[0, 1, 2, 3]] * 2] and (np.asarray(equal[1], np.float32) == 0.25).all()


def test_they_are_for_few_tokens_and_experts() -> None:
    x, kernel = jnp.zeros((4, 2, 16)), jnp.zeros((16, 128))
    assert applies(x, kernel)
    assert not applies(jnp.zeros((3, 3, 16)), kernel)
    assert not applies(x, jnp.zeros((16, 256))) and not applies(x, jnp.zeros((16, 60)))
    with use_abstract_mesh(AbstractMesh((2,), ("expert",))):
        assert not applies(x, kernel)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_a_router_takes_them_on_a_gpu() -> None:
    router, x = router_of(2880, 32, 4, normalise=True, bias=True), jnp.zeros((1, 1, 2880))
    h100 = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu"))
    with use_abstract_mesh(h100), tracing_for("gpu", jnp.bfloat16):
        text = jax.jit(router).trace(x).lower(lowering_platforms=("cuda",)).as_text()
    assert "expert_scores" in text and "expert_choice" in text
