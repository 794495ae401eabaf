"""Products of few rows with chosen matrices: the kernel, interpreted, against its plain form."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.kernels.experts import gathered_products
from jaxpipe.kernels.few_experts import chosen_products, columns_of, splits_of


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("depth", "width"), [(64, 128), (70, 130), (33, 257), (33, 2900), (160, 12)])
@pytest.mark.parametrize(("rows", "k", "splits"), [(1, 2, 1), (2, 3, 2), (1, 1, None)])
@pytest.mark.parametrize("shared", [True, False])
def test_kernel_equals_the_gathered_form(depth, width, rows, k, splits, shared, dtype):
    rng = np.random.default_rng(depth + rows)
    x = jnp.asarray(rng.standard_normal((rows, 1 if shared else k, depth)), dtype)
    weights = jnp.asarray(rng.standard_normal((5, depth, width)), dtype)
    chosen = jnp.asarray(rng.integers(0, 5, (rows, k)), jnp.int32)
    got = chosen_products(x, chosen, weights, splits=splits, interpret=True)
    want = gathered_products(x.astype(jnp.float32), chosen, weights.astype(jnp.float32))
    assert got.dtype == x.dtype and got.shape == (rows, k, width)
    rounding = {"float32": 1e-6, "bfloat16": 2**-8}[dtype]  # of the result alone: sums are in float32
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=rounding, atol=1e-4)


def test_choices_outside_give_zeros():
    x, weights = jnp.ones((1, 1, 40)), jnp.ones((3, 40, 50))
    chosen = jnp.asarray([[-1, 2, 3]], jnp.int32)
    for form in (gathered_products, lambda *given: chosen_products(*given, interpret=True)):
        out = np.asarray(form(x, chosen, weights))
        assert (out[0, 0] == 0).all() and (out[0, 1] == 40).all() and (out[0, 2] == 0).all()


def test_tiles_are_narrow_where_columns_are_few():
    assert columns_of(pairs=4, width=5760) == 128
    assert columns_of(pairs=4, width=2880) == 64


def test_sums_are_split_where_columns_are_few():
    assert splits_of(programs=4, columns=128, tiles=64) == 16
    assert splits_of(programs=64, columns=128, tiles=448) == 16
    assert splits_of(programs=180, columns=128, tiles=90) == 5
    assert splits_of(programs=180, columns=64, tiles=90) == 11
    assert splits_of(programs=4096, columns=128, tiles=64) == 1
    assert splits_of(programs=4, columns=64, tiles=1) == 1
