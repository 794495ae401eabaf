"""Attention against its definition in numpy, float64."""

import numpy as np
import pytest

from jaxpipe.kernels.attention import attention
from jaxpipe.kernels.optional import kernel_module
from jaxpipe.nn.attention import Span, causal_span, full_span


def reference(q, k, v, *, scale, mask=None, causal=False, bias=None, softcap=None, sinks=None):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    b, t, heads, _ = q.shape
    s, per_group = k.shape[1], heads // k.shape[2]
    out, probabilities = np.zeros((b, t, heads, v.shape[-1])), np.zeros((b, heads, t, s))
    for row in range(b):
        for head in range(heads):
            scores = scale * q[row, :, head] @ k[row, :, head // per_group].T  # (T, S)
            if softcap is not None:
                scores = softcap * np.tanh(scores / softcap)
            if bias is not None:
                scores = scores + bias[row % len(bias), head]
            seen = np.ones((t, s), bool) if mask is None else mask[row % len(mask)]
            seen = seen & np.tril(np.ones((t, s), bool)) if causal else seen
            weights = np.where(seen, np.exp(scores - scores.max()), 0)
            total = weights.sum(-1, keepdims=True)
            if sinks is not None:
                total = total + np.exp(sinks[head] - scores.max())
            probabilities[row, head] = weights / total
            out[row, :, head] = probabilities[row, head] @ v[row, :, head // per_group]
    return out, probabilities


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("extra", ["plain", "causal", "mask", "bias", "softcap", "sinks", "all"])
def test_attention_is_what_its_definition_says(groups: int, extra: str) -> None:
    random = np.random.default_rng(0)
    heads, b, t, s, h, hv = 6, 2, 7, 7, 5, 3
    q = random.normal(size=(b, t, heads, h)).astype(np.float32)
    k = random.normal(size=(b, s, groups, h)).astype(np.float32)
    v = random.normal(size=(b, s, groups, hv)).astype(np.float32)
    mask = random.random((b, t, s)) < 0.7
    mask[..., 0] = True  # every query sees something
    options = {
        "causal": {"causal": True},
        "mask": {"mask": mask},
        "bias": {"bias": random.normal(size=(1, heads, t, s)).astype(np.float32)},
        "softcap": {"softcap": 2.0},
        "sinks": {"sinks": random.normal(size=heads).astype(np.float32)},
    }
    chosen = {name: value for key, option in options.items() if extra in (key, "all") for name, value in option.items()}
    found, weights = attention(q, k, v, scale=0.7, weights=True, **chosen)
    wanted, probabilities = reference(q, k, v, scale=0.7, **chosen)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(weights, probabilities, atol=1e-5)
    without, none = attention(q, k, v, scale=0.7, **chosen)
    assert none is None
    np.testing.assert_allclose(without, wanted, atol=1e-5)


def test_a_row_that_sees_nothing_is_finite() -> None:
    ones = np.ones((1, 2, 1, 4), np.float32)
    out, _ = attention(ones, ones, ones, scale=1.0, mask=np.zeros((1, 2, 2), bool))
    assert np.isfinite(out).all()


def test_a_window_counts_the_query_itself() -> None:
    mask = np.asarray(causal_span(5, None, None, None).mask(window=2))
    np.testing.assert_array_equal(mask[0], np.tril(np.ones((5, 5), bool)) & ~np.tril(np.ones((5, 5), bool), -2))


def test_spans_without_padding_need_no_mask() -> None:
    assert causal_span(4, None, None, None).mask() is None
    assert full_span(4, None).mask() is None


def test_slots_show_what_their_positions_allow() -> None:
    queries, keys = np.array([[3]]), np.array([[0, 1, -1, 3, 4]])
    span = Span(queries, keys, np.int32(3), causal=True, whole=False)
    np.testing.assert_array_equal(np.asarray(span.mask())[0, 0], [True, True, False, True, False])
    np.testing.assert_array_equal(np.asarray(span.mask(window=3))[0, 0], [False, True, False, True, False])


def test_a_kernel_that_cannot_be_imported_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="jaxpipe")
    assert kernel_module("no_such_kernel") is None
    assert "The kernel of no_such_kernel cannot be had from this version of JAX" in caplog.text
    assert kernel_module("splash") is not None
