"""Splash attention, run without a TPU, against its plain twin."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxpipe.kernels.attention import attention, xla_attention
from jaxpipe.kernels.compute import tracing_for
from jaxpipe.kernels.splash import applies, blocks_of, splash_attention

Array = jax.Array


@dataclass(frozen=True)
class Case:
    """Shapes of an attention: rows, queries, keys, query heads, key-value heads, their width and that of values."""

    rows: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    width: int
    value_width: int
    causal: bool = True
    softcap: float | None = None
    sinks: bool = False


CASES = {
    "one block": Case(2, 128, 128, 4, 4, 32, 32),
    "grouped heads, two blocks with padding": Case(2, 530, 530, 4, 2, 24, 24, softcap=5.0),
    "one key-value head, values of another width": Case(1, 131, 131, 3, 1, 40, 16, sinks=True),
    "not causal": Case(1, 256, 256, 2, 1, 16, 16, causal=False),
    "not causal, with padding": Case(2, 140, 515, 4, 2, 16, 16, causal=False, softcap=3.0, sinks=True),
}


def make(case: Case, dtype: Any) -> tuple[Array, Array, Array, dict[str, Any]]:
    """Returns q, k, v and the keyword arguments of an attention."""
    random = np.random.default_rng(0)
    q = random.normal(size=(case.rows, case.queries, case.heads, case.width))
    k = random.normal(size=(case.rows, case.keys, case.kv_heads, case.width))
    v = random.normal(size=(case.rows, case.keys, case.kv_heads, case.value_width))
    sinks = jnp.asarray(random.normal(size=case.heads), jnp.float32) if case.sinks else None
    extras = {"scale": case.width**-0.5, "causal": case.causal, "softcap": case.softcap, "sinks": sinks}
    return jnp.asarray(q, dtype), jnp.asarray(k, dtype), jnp.asarray(v, dtype), extras


def twin(q: Array, k: Array, v: Array, **extras: Any) -> Array:
    return xla_attention(q, k, v, mask=None, weights=False, **extras)[0]


@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_its_twin(name: str) -> None:
    q, k, v, extras = make(CASES[name], jnp.float32)
    fast = splash_attention(q, k, v, interpret=True, **extras)
    np.testing.assert_allclose(np.asarray(fast), np.asarray(twin(q, k, v, **extras)), atol=1e-5)


def test_bfloat16_rounds_the_scaled_queries_once_more() -> None:
    q, k, v, extras = make(Case(1, 200, 200, 4, 2, 96, 96), jnp.bfloat16)
    exact = np.asarray(twin(*(x.astype(jnp.float32) for x in (q, k, v)), **extras))
    fast = splash_attention(q, k, v, interpret=True, **extras)
    assert fast.dtype == jnp.bfloat16
    assert np.linalg.norm(np.asarray(fast, np.float32) - exact) < 4e-3 * np.linalg.norm(exact)


def test_gradients_are_those_of_the_twin() -> None:
    q, k, v, extras = make(Case(1, 130, 130, 2, 1, 16, 16, softcap=4.0, sinks=True), jnp.float32)
    sinks = extras.pop("sinks")
    asked = jax.random.normal(jax.random.key(0), q.shape)

    def loss(attend: Any, *inputs: Array) -> Array:
        q, k, v, sinks = inputs
        return jnp.sum(asked * attend(q, k, v, sinks=sinks, **extras))

    def fast(*inputs: Array, **extras: Any) -> Array:
        return splash_attention(*inputs, interpret=True, **extras)

    found, wanted = (jax.grad(loss, argnums=(1, 2, 3, 4))(f, q, k, v, sinks) for f in (fast, twin))
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=1e-5)


def test_blocks_are_as_few_and_as_small_as_can_be() -> None:
    assert blocks_of(128) == (128, 1)
    assert blocks_of(130) == (256, 1)
    assert blocks_of(512) == (512, 1)
    assert blocks_of(640) == (384, 2)
    assert blocks_of(8064) == (512, 16)


@pytest.fixture
def one_device() -> Iterator[None]:
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])):
        yield


def shapes(t: int, dtype: Any = jnp.bfloat16) -> list[Any]:
    return [jax.ShapeDtypeStruct((1, t, heads, 64), dtype) for heads in (4, 2, 2)]


@pytest.mark.usefixtures("one_device")
def test_where_it_applies() -> None:
    assert applies(*shapes(128))
    assert applies(*shapes(1000, jnp.float32))
    assert not applies(*shapes(127))
    assert not applies(*shapes(128, jnp.float16))
    q, k, _ = shapes(128)
    assert not applies(q, k, shapes(128, jnp.float32)[2])


def test_it_applies_to_no_mesh_and_to_no_mesh_of_several_devices() -> None:
    assert not applies(*shapes(128))
    with jax.set_mesh(jax.make_mesh((2,), ("tensor",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])):
        assert not applies(*shapes(128))


def traced(dtype: Any, platform: str = "tpu", precision: str | None = None, **inputs: Any) -> str:
    """The trace of `attention` on a platform."""

    def f(q: Array, k: Array, v: Array) -> Any:
        with tracing_for(platform, dtype, precision):
            return attention(q, k, v, scale=0.1, **inputs)

    return str(jax.make_jaxpr(f)(*shapes(128, dtype)))


@pytest.mark.usefixtures("one_device")
def test_attention_without_a_mask_takes_it_on_a_tpu() -> None:
    assert "splash" in traced(jnp.bfloat16, causal=True)
    assert "splash" in traced(jnp.bfloat16, softcap=2.0, sinks=jnp.zeros(4))
    assert "splash" not in traced(jnp.bfloat16, "cpu", causal=True)
    assert "splash" not in traced(jnp.bfloat16, mask=jnp.ones((1, 128, 128), bool))
    assert "splash" not in traced(jnp.bfloat16, bias=jnp.zeros((1, 4, 128, 128)))
    assert "splash" not in traced(jnp.bfloat16, causal=True, weights=True)


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("precision", [None, "high", "highest"])
def test_precision_is_that_of_the_dtype(precision: str | None) -> None:
    wide, half = (traced(dtype, causal=True, precision=precision) for dtype in (jnp.float32, jnp.bfloat16))
    assert wide.count("dot_general[") == wide.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") > 0
    assert half.count("dot_general[") == half.count("precision=(Precision.DEFAULT, Precision.DEFAULT)") > 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_it_lowers_for_a_tpu(dtype: Any) -> None:
    q, k, v, extras = make(CASES["not causal, with padding"], dtype)
    lowered = jax.jit(lambda: splash_attention(q, k, v, **extras)).trace().lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in lowered.as_text()
