"""Linear biases: slopes of the paper, positions by mask or by cache."""

import jax.numpy as jnp
import numpy as np

from jaxpipe.nn.alibi import alibi, alibi_slopes
from jaxpipe.nn.attention import causal_span
from jaxpipe.nn.cache import Cache


def test_slopes():
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-i for i in range(1, 9)], rtol=1e-6)
    np.testing.assert_allclose(alibi_slopes(1), [2.0**-8], rtol=1e-6)
    # Four of the series of 4, then every other one of the series of 8.
    np.testing.assert_allclose(alibi_slopes(6), [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3], rtol=1e-6)
    assert alibi_slopes(71).shape == (71,)


def test_positions_count_along_the_mask():
    mask = jnp.asarray([[0, 0, 1, 1, 1], [1, 1, 0, 1, 0]])
    bias = alibi(8, causal_span(5, mask, None, None), mask)
    assert bias.shape == (2, 8, 1, 5)
    found = np.asarray(bias[:, 0, 0]) * 2  # the first head's slope is a half
    assert found[0, 2:].tolist() == [0, 1, 2]
    assert found[1, [0, 1, 3]].tolist() == [0, 1, 2]


def test_positions_of_a_cache():
    cache = Cache.empty([(1, 1)], 2, 6, jnp.dtype("float32"))
    valid = jnp.asarray([[True, True, True], [True, False, False]])
    cache = cache.enter(jnp.asarray([[0, 1, 2], [0, 0, 0]]), valid)
    cache = cache.leave(cache.layers, 3)
    cache = cache.enter(jnp.asarray([[3], [1]]), None)
    span = causal_span(1, None, jnp.asarray([[3], [1]]), cache)
    found = np.asarray(alibi(8, span, None))[:, 0, 0] * 2
    assert found[0, :4].tolist() == [0, 1, 2, 3]
    assert found[1, [0, 3]].tolist() == [0, 1]


def test_rounding_to_bfloat16():
    mask = jnp.ones((1, 300), jnp.int32)
    exact, rounded = (alibi(3, causal_span(300, None, None, None), None, rounded=flag) for flag in (False, True))
    slopes = jnp.asarray(alibi_slopes(3)).astype(jnp.bfloat16)[:, None]
    wanted = slopes * jnp.arange(300).astype(jnp.bfloat16)
    assert wanted.dtype == jnp.bfloat16
    assert np.array_equal(rounded[0, :, 0], wanted.astype(jnp.float32))
    assert not np.array_equal(exact, rounded)
    assert np.array_equal(exact, alibi(3, causal_span(300, mask, None, None), mask))
