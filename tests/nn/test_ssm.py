"""State-space layers: the chunked scan is the recurrence, and padding on the right leaves no trace."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.nn.cache import Cache, KVLayer, layer_bytes
from jaxpipe.nn.ssm import SSMShape, SSMState, causal_convolution, chunked_scan, scan_step

SHAPE = SSMShape(width=4, channels=6, heads=4, head_dim=3, state_size=5)
GROUPS = 2


def inputs(tokens: int, seed: int = 0) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    x, dt = normal(2, tokens, SHAPE.heads, SHAPE.head_dim), jax.nn.softplus(normal(2, tokens, SHAPE.heads))
    b, c = (normal(2, tokens, GROUPS, SHAPE.state_size) for _ in range(2))
    a = -jnp.exp(normal(SHAPE.heads))
    return x, dt, a, b, c, normal(2, SHAPE.heads, SHAPE.head_dim, SHAPE.state_size)


def stepwise(x: Any, dt: Any, a: Any, b: Any, c: Any, state: Any) -> tuple[np.ndarray, Any]:
    outputs = []
    for t in range(x.shape[1]):
        y, state = scan_step(x[:, t], dt[:, t], a, b[:, t], c[:, t], state)
        outputs.append(np.asarray(y))
    return np.stack(outputs, axis=1), state


@pytest.mark.parametrize(("tokens", "chunk"), [(1, 4), (7, 7), (13, 4), (12, 4), (5, 64)])
def test_scan_equals_steps(tokens: int, chunk: int):
    given = inputs(tokens)
    y, state = chunked_scan(*given, chunk=chunk)
    wanted, last = stepwise(*given)
    np.testing.assert_allclose(y, wanted, atol=2e-5)
    np.testing.assert_allclose(state, last, atol=2e-5)


def test_the_recurrence_in_plain_words():
    x, dt, a, b, c, state = (np.asarray(part, np.float64) for part in inputs(3))
    outputs = np.zeros(x.shape)
    for t in range(3):
        for row in range(2):
            for head in range(SHAPE.heads):
                group = head // (SHAPE.heads // GROUPS)
                kept = np.exp(dt[row, t, head] * a[head]) * state[row, head]
                state[row, head] = kept + dt[row, t, head] * np.outer(x[row, t, head], b[row, t, group])
                outputs[row, t, head] = state[row, head] @ c[row, t, group]
    y, last = stepwise(*inputs(3))
    np.testing.assert_allclose(y, outputs, atol=1e-5)
    np.testing.assert_allclose(last, state, atol=1e-5)


def test_large_rates_lose_nothing_small():
    """Fast decay and slow decay side by side: differences of running sums would be off by far more than 1e-5."""
    x, _, _, b, c, state = inputs(40)
    dt = jnp.where(jnp.arange(40)[:, None] < 20, 300.0, 1e-3) * jnp.ones((2, 40, SHAPE.heads))
    given = (x, dt, -jnp.ones(SHAPE.heads), b, c, state)
    np.testing.assert_allclose(chunked_scan(*given, chunk=40)[1], stepwise(*given)[1], rtol=1e-5, atol=1e-5)


def test_a_token_without_a_step_leaves_the_state():
    x, dt, a, b, c, state = inputs(9)
    length = 5
    stopped = dt.at[:, length:].set(0.0)
    _, padded = chunked_scan(x, stopped, a, b, c, state, 4)
    _, cut = chunked_scan(x[:, :length], dt[:, :length], a, b[:, :length], c[:, :length], state, 4)
    np.testing.assert_allclose(padded, cut, atol=1e-6)


def test_convolution_goes_on_from_its_window():
    rng = np.random.default_rng(0)
    x, kernel, bias = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((2, 11, 6), (6, 4), (6,)))
    start = jnp.zeros((2, 3, 6))
    whole, _ = causal_convolution(x, start, kernel, bias, None)
    wanted = np.stack([np.convolve(x[0, :, i], kernel[i, ::-1])[:11] + bias[i] for i in range(6)], axis=-1)
    np.testing.assert_allclose(whole[0], wanted, atol=1e-5)
    first, window = causal_convolution(x[:, :5], start, kernel, bias, None)
    second, _ = causal_convolution(x[:, 5:], window, kernel, bias, None)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-6)


def test_window_ends_at_each_rows_last_token():
    x = jnp.arange(2 * 6 * 1, dtype=jnp.float32).reshape(2, 6, 1) + 1
    valid = jnp.arange(6) < jnp.asarray([[4], [1]])
    _, window = causal_convolution(x, jnp.zeros((2, 3, 1)), jnp.ones((1, 4)), None, valid)
    assert window[:, :, 0].tolist() == [[2, 3, 4], [0, 0, 7]]


def test_a_cache_of_different_layers():
    cache = Cache.empty([(2, 3), SHAPE, (2, 3, 5)], 2, 7, jnp.dtype("bfloat16"))
    first, state, last = cache.layers
    assert isinstance(first, KVLayer) and first.keys.shape == first.values.shape == (2, 7, 2, 3)
    assert isinstance(state, SSMState) and state.window.shape == (2, 3, 6) and state.state.shape == (2, 4, 3, 5)
    assert state.window.dtype == jnp.bfloat16 and state.state.dtype == jnp.float32
    assert last.values.shape == (2, 7, 2, 5)


def test_bytes_of_layers():
    half = jnp.dtype("bfloat16")
    assert layer_bytes((4, 8), 100, half, 1) == 2 * 100 * 4 * 8 * 2
    assert layer_bytes((4, 8), 100, half, 2) == 100 * 4 * 8 * 2
    assert layer_bytes((3, 8, 6), 100, half, 2) == 100 * 3 * 14 * 2
    state = 4 * 4 * 3 * 5
    assert layer_bytes(SHAPE, 100, half, 1) == layer_bytes(SHAPE, 10, half, 1) == 3 * 6 * 2 + state
    assert layer_bytes(SHAPE, 100, half, 4) == 3 * 6 * 2 + state // 4
