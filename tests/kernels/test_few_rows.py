"""Products with weights on CPU against einsums in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.kernels import few_rows
from jaxpipe.kernels.compute import tracing_for
from jaxpipe.kernels.few_rows import lookup, product, table_product

TOLERANCES = {"float32": 1e-5, "bfloat16": 2**-8}


@pytest.fixture(autouse=True)
def small_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the forms for small weights, too."""
    monkeypatch.setattr(few_rows, "_FEWEST_ENTRIES", 1)


def normal(*shape: int, dtype: str, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def check(got: jax.Array, spec: str, x: jax.Array, weight: jax.Array) -> None:
    expected = np.einsum(spec, np.asarray(x, np.float64), np.asarray(weight, np.float64))
    assert got.dtype == x.dtype and got.shape == expected.shape
    error = np.abs(np.asarray(got, np.float64) - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCES[x.dtype.name]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("rows", [(1, 1), (1, 3), (4, 1)])
@pytest.mark.parametrize(
    ("spec", "weight", "summed"),
    [
        ("bti,io->bto", (576, 960), 1),
        ("bti,io->bto", (20, 7), 1),
        ("bti,io->bto", (33, 5), 1),
        ("bti,io->bto", (1, 1), 1),
        ("bti,io->bto", (16, 2**14 + 1), 1),
        ("btd,dnf->btnf", (24, 2, 10), 1),
        ("btgf,gfd->btd", (3, 24, 40), 2),
    ],
)
def test_products(spec: str, weight: tuple[int, ...], summed: int, rows: tuple[int, int], dtype: str) -> None:
    x, w = normal(*rows, *weight[:summed], dtype=dtype), normal(*weight, dtype=dtype, seed=1)
    check(jax.jit(lambda x, w: product(spec, x, w, summed))(x, w), spec, x, w)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("rows", [(1, 1), (1, 3)])
@pytest.mark.parametrize("table", [(300, 576), (300, 768), (77, 16), (77, 20), (50, 784)])
def test_products_with_a_table(table: tuple[int, int], rows: tuple[int, int], dtype: str) -> None:
    x, t = normal(*rows, table[1], dtype=dtype), normal(*table, dtype=dtype, seed=1)
    check(jax.jit(table_product)(x, t), "btd,vd->btv", x, t)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_gradients(dtype: str) -> None:
    x, w = normal(1, 1, 24, dtype=dtype), normal(24, 10, dtype=dtype, seed=1)

    def total(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(product("bti,io->bto", x, w))

    of_x, of_w = jax.jit(jax.grad(total, (0, 1)))(x, w)
    np.testing.assert_allclose(of_x[0, 0], jnp.sum(w, axis=1), rtol=2**-7, atol=2**-6)
    np.testing.assert_allclose(of_w, jnp.broadcast_to(x[0, 0, :, None], w.shape), rtol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_lookup(dtype: str) -> None:
    table = normal(9, 4, dtype=dtype)
    np.testing.assert_array_equal(lookup(table, jnp.array([[0, 8, 3, 20]])), table[jnp.array([[0, 8, 3, 8]])])


def test_weights_are_not_widened_in_memory() -> None:
    table, weight, x = (normal(*shape, dtype="bfloat16") for shape in ((640, 64), (64, 640), (1, 64)))

    def decode(table: jax.Array, weight: jax.Array, x: jax.Array) -> jax.Array:
        def step(_: int, x: jax.Array) -> jax.Array:
            x = x + product("bi,io->bo", x, weight)[:, :64]
            ids = jnp.argmax(table_product(x, table), axis=-1)
            return (lookup(table, ids).astype(jnp.float32) * 2).astype(x.dtype)

        return jax.lax.fori_loop(0, 4, step, x)

    memory = jax.jit(decode).lower(table, weight, x).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < math.prod(table.shape) * 2


def test_others_take_the_einsum(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = jnp.ones((1, 1, 16)), jnp.ones((16, 32))

    def traced(x: jax.Array, w: jax.Array) -> str:
        return str(jax.make_jaxpr(lambda x, w: product("bti,io->bto", x, w))(x, w))

    plain = str(jax.make_jaxpr(lambda x, w: jnp.einsum("bti,io->bto", x, w))(x, w))
    assert "optimization_barrier" in traced(x, w)
    with tracing_for("gpu", jnp.bfloat16):
        assert traced(x, w) == plain
    monkeypatch.setattr(few_rows, "_FEWEST_ENTRIES", w.size + 1)
    assert traced(x, w) == plain
