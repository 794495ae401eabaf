"""Attention of a chunk over a cache against the masked form over all its slots."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.kernels import continued
from jaxpipe.kernels.attention import xla_attention
from jaxpipe.kernels.continued import continued_attention

B, T, S, H, K, WIDTH = 2, 12, 80, 6, 2, 8


def arrays(slot: int, value_width: int = WIDTH) -> tuple[jax.Array, ...]:
    """Queries, own keys and values, and a cache that holds them from `slot` on; what lies behind them is NaN."""
    rng = np.random.default_rng(0)
    q, k = (rng.normal(size=(B, T, heads, WIDTH)) for heads in (H, K))
    v = rng.normal(size=(B, T, K, value_width))
    keys, values = np.full((B, S, K, WIDTH), np.nan), np.full((B, S, K, value_width), np.nan)
    for whole, own in ((keys, k), (values, v)):
        whole[:, :slot] = rng.normal(size=(B, slot, *own.shape[2:]))
        whole[:, slot : slot + T] = own
    return tuple(jnp.asarray(x, jnp.float32) for x in (q, k, v, keys, values))


def masked(q: jax.Array, keys: jax.Array, values: jax.Array, slot: int, window: int | None, **extras: Any) -> jax.Array:
    """The same by one mask over all slots that hold something."""
    end = slot + T
    distance = slot + np.arange(T)[:, None] - np.arange(end)
    seen = (distance >= 0) & (distance < (window or end))
    if extras.get("bias") is not None:
        extras["bias"] = extras["bias"][..., :end]
    cut = {"mask": jnp.asarray(seen[None]), "causal": False, "weights": False, **extras}
    return xla_attention(q, keys[:, :end], values[:, :end], scale=0.3, **cut)[0]


@pytest.mark.parametrize(("block", "window"), [(16, None), (10, 5), (16, 12), (10, 30), (1024, None), (1024, 30)])
def test_the_blocks_join_to_the_whole(block: int, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continued, "_BLOCK", block)
    run = jax.jit(lambda *x: continued_attention(*x, scale=0.3, window=window))
    for slot in (0, 1, 15, 16, 37, S - T):
        q, k, v, keys, values = arrays(slot)
        # The last block holds slots that nothing was written to: finite, as a cache's are.
        out = run(q, k, v, jnp.nan_to_num(keys), jnp.nan_to_num(values), jnp.int32(slot))
        np.testing.assert_allclose(out, masked(q, keys, values, slot, window), atol=1e-5, rtol=1e-5)
    assert run._cache_size() == 1


@pytest.mark.parametrize("extra", ["bias", "alibi", "softcap", "sinks", "all"])
def test_what_changes_the_scores(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continued, "_BLOCK", 16)
    keys_of = jax.random.split(jax.random.key(1), 3)
    biases = {"bias": (1, H, T, S), "alibi": (B, H, 1, S), "all": (B, H, T, S)}
    extras: dict[str, Any] = {}
    if extra in biases:
        extras["bias"] = jax.random.normal(keys_of[0], biases[extra])
    if extra in ("softcap", "all"):
        extras["softcap"] = 0.7
    if extra in ("sinks", "all"):
        extras["sinks"] = 3.0 * jax.random.normal(keys_of[1], (H,))
    slot, window = 37, 21 if extra == "all" else None
    q, k, v, keys, values = arrays(slot, value_width=5)
    out = continued_attention(
        q, k, v, jnp.nan_to_num(keys), jnp.nan_to_num(values), jnp.int32(slot), scale=0.3, window=window, **extras
    )
    np.testing.assert_allclose(out, masked(q, keys, values, slot, window, **extras), atol=1e-5, rtol=1e-5)


def test_half_precision_comes_out_as_it_goes_in() -> None:
    q, k, v, keys, values = (jnp.nan_to_num(x).astype(jnp.bfloat16) for x in arrays(20))
    out = continued_attention(q, k, v, keys, values, jnp.int32(20), scale=0.3)
    assert out.dtype == jnp.bfloat16
    wanted = masked(*(x.astype(jnp.float32) for x in (q, keys, values)), 20, None)
    np.testing.assert_allclose(out.astype(jnp.float32), wanted, atol=2e-2)


def test_a_block_divides_the_slots() -> None:
    for slots in (64, 80, 640, 1280, 1792, 4096, 7):
        size = continued._block(slots)
        assert slots % size == 0 and size <= 1024
    assert continued._block(4096) == 1024 and continued._block(1792) == 896
