"""Rings and 8-bit layers against plain ones, number by number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.kernels.attention import attention
from jaxpipe.kernels.continued import continued_attention
from jaxpipe.nn.attention import Span, attend, causal_span
from jaxpipe.nn.cache import Cache, CacheLayout, KVLayer, WindowShape, layer_bytes, slots_of
from jaxpipe.nn.quantized_cache import GREATEST, QuantizedKVLayer, quantize, scale_dtype
from jaxpipe.nn.ring import RingLayer, ring_slots

FLOAT = jnp.dtype(jnp.float32)


def random(*shape: int, seed: int = 0) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("dtype", sorted(GREATEST))
@pytest.mark.parametrize("scales", ["float32", "bfloat16"])
def test_quantising_loses_half_a_step_at_most(dtype: str, scales: str) -> None:
    x = random(2, 5, 3, 16) * jnp.asarray([1e-3, 1.0, 50.0])[:, None]
    stored, scale = quantize(x, jnp.dtype(dtype), jnp.dtype(scales))
    assert stored.dtype == dtype and stored.shape == x.shape and scale.dtype == scales and scale.shape == x.shape[:3]
    error = np.abs(stored.astype(np.float32) * scale.astype(np.float32)[..., None] - x)
    greatest = np.abs(x).max(-1, keepdims=True)
    # A step is 1 / 127 of the greatest; in e4m3 one eighth of the power of two below the number.
    bound = greatest / 254 if dtype == "int8" else np.maximum(np.abs(x) / 16, greatest / 2**15)
    assert (error <= bound * 1.01).all()
    assert error.max() > 0


def test_zeros_stay_zero_and_what_is_not_finite_does_not_vanish() -> None:
    for dtype in GREATEST:
        stored, scale = quantize(jnp.zeros((1, 1, 1, 4)), jnp.dtype(dtype), FLOAT)
        assert not (stored.astype(jnp.float32) * scale[..., None]).any()
        for bad in (jnp.nan, jnp.inf):
            stored, scale = quantize(jnp.asarray([1.0, bad]).reshape(1, 1, 1, 2), jnp.dtype(dtype), FLOAT)
            assert not jnp.isfinite(stored.astype(jnp.float32) * scale[..., None]).all()


def test_scales_of_half_precision() -> None:
    assert [scale_dtype(jnp.dtype(name)) for name in ("bfloat16", "float16", "float32")] == [
        jnp.bfloat16,
        jnp.float32,
        jnp.float32,
    ]


@pytest.mark.parametrize("dtype", sorted(GREATEST))
@pytest.mark.parametrize("tokens", [1, 3])
def test_attention_to_8_bits_is_attention_to_what_they_stand_for(dtype: str, tokens: int) -> None:
    q, k, v = random(2, tokens, 4, 8), random(2, 10, 2, 8, seed=1), random(2, 10, 2, 6, seed=2)
    layer = QuantizedKVLayer.empty((2, 10, 2), (8, 6), FLOAT, dtype).write(k, v, jnp.int32(0))
    assert layer.keys.dtype == dtype
    whole = [
        x.astype(jnp.float32) * s[..., None] for x, s in zip((layer.keys, layer.values), layer.scales, strict=True)
    ]
    given = {"scale": 0.3, "sinks": random(4), "softcap": 5.0, "bias": random(1, 4, 1, 10), "weights": True}
    mask = jnp.arange(10) < jnp.asarray([[[7]], [[10]]])
    out, weights = attention(
        q, layer.keys, layer.values, mask=mask, key_scales=layer.scales[0], value_scales=layer.scales[1], **given
    )
    wanted, wanted_weights = attention(q, *whole, mask=mask, **given)
    np.testing.assert_allclose(out, wanted, atol=1e-5)
    np.testing.assert_allclose(weights, wanted_weights, atol=1e-6)


@pytest.mark.parametrize("dtype", sorted(GREATEST))
def test_a_chunk_attends_to_its_own_exact_keys_and_to_what_8_bits_stand_for(dtype: str) -> None:
    tokens, slot, slots = 6, 37, 64
    q, k, v = random(2, tokens, 4, 8), random(2, slots, 2, 8, seed=1), random(2, slots, 2, 8, seed=2)
    layer = QuantizedKVLayer.empty((2, slots, 2), (8, 8), FLOAT, dtype).write(k, v, jnp.int32(0))
    own = slice(slot, slot + tokens)
    whole = [
        (x.astype(jnp.float32) * s[..., None]).at[:, own].set(exact[:, own])
        for x, s, exact in zip((layer.keys, layer.values), layer.scales, (k, v), strict=True)
    ]
    given = {"scale": 0.3, "window": 30}
    scales = {"key_scales": layer.scales[0], "value_scales": layer.scales[1]}
    at = jnp.int32(slot)
    out = continued_attention(q, k[:, own], v[:, own], layer.keys, layer.values, at, **given, **scales)
    wanted = continued_attention(q, k[:, own], v[:, own], *whole, at, **given)
    np.testing.assert_allclose(out, wanted, atol=1e-5)


@pytest.mark.parametrize("stored", sorted(GREATEST))
def test_8_bits_take_half_the_memory_of_bfloat16(stored: str) -> None:
    half = jnp.dtype(jnp.bfloat16)
    layouts = (CacheLayout(), CacheLayout(stored=stored))
    exact, own = (
        sum(x.nbytes for x in jax.tree.leaves(Cache.empty([(8, 128)], 2, 64, half, y).layers)) for y in layouts
    )
    assert own == exact * (128 + 2) / 256  # a number takes 1 byte, a scale 2


def test_slots_of_a_ring() -> None:
    assert [ring_slots(window) for window in (1, 16, 17, 4096, 4097)] == [16, 16, 32, 4096, 4112]
    shapes = [(2, 3), WindowShape(2, 3, 20, 5), WindowShape(2, 3, 200, 3)]
    cache = Cache.empty(shapes, 1, 64, FLOAT, CacheLayout(ring=True))
    assert [slots_of(layer) for layer in cache.layers] == [64, 32, 64]
    assert cache.layers[1].store.values.shape == (1, 32, 2, 5)
    plain = Cache.empty(shapes, 1, 64, FLOAT)
    assert all(isinstance(layer, KVLayer) and slots_of(layer) == 64 for layer in plain.layers)
    stored = Cache.empty(shapes, 1, 64, jnp.dtype(jnp.bfloat16), CacheLayout(ring=True, stored="int8"))
    first, ring, _ = stored.layers
    assert isinstance(first, QuantizedKVLayer) and isinstance(ring.store, QuantizedKVLayer)
    assert first.scales[0].shape == (1, 64, 2) and first.scales[0].dtype == jnp.bfloat16


def test_bytes_of_a_ring_are_those_of_its_window() -> None:
    half = jnp.dtype("bfloat16")
    ring = WindowShape(4, 8, 20, 8)
    assert layer_bytes(ring, 100, half, 1) == layer_bytes((4, 8), 32, half, 1)
    assert layer_bytes(ring, 100, half, 2) == layer_bytes((4, 8), 32, half, 2)
    assert layer_bytes(ring, 10, half, 1) == layer_bytes((4, 8), 10, half, 1)


def positions_seen(ring: RingLayer, queries: np.ndarray, slot: int) -> list[set[int]]:
    """What each row's query sees, by the values, which hold the positions of their tokens."""
    positions = np.asarray(ring.positions(jnp.asarray(queries)[:, None], jnp.int32(slot)))
    seen = (positions >= 0) & (positions <= queries[:, None]) & (queries[:, None] - positions < ring.window)
    held = np.asarray(ring.store.values)[:, :, 0, 0]
    return [set(row[keep].astype(int)) for row, keep in zip(held, seen, strict=True)]


@pytest.mark.parametrize(("window", "width"), [(5, 24), (16, 8), (20, 24), (17, 64), (40, 40)])
def test_a_ring_holds_the_window_of_every_row(window: int, width: int) -> None:
    lengths = np.array([1, 3, width // 2, width - 1, width])
    rows = len(lengths)
    columns = np.minimum(np.arange(width), lengths[:, None] - 1)
    value = np.where(np.arange(width) < lengths[:, None], columns, 999).astype(np.float32)[:, :, None, None]
    (ring,) = Cache.empty([WindowShape(1, 1, window, 1)], rows, 128, FLOAT, CacheLayout(ring=True)).layers
    ring = ring.start(jnp.asarray(value), jnp.asarray(value), jnp.asarray(lengths))
    for step in range(3 * ring.slots):
        slot, queries = width + step, lengths + step
        token = jnp.asarray(queries, jnp.float32)[:, None, None, None]
        ring = ring.write(token, token, jnp.int32(slot))
        if step < 4 or step > 2 * ring.slots:
            wanted = [set(range(max(0, query - window + 1), query + 1)) for query in queries]
            assert positions_seen(ring, queries, slot) == wanted


@pytest.mark.parametrize("stored", [None, "int8"])
def test_attention_to_a_ring_is_attention_to_the_window_of_a_full_cache(stored: str | None) -> None:
    width, window, steps, rows = 12, 7, 40, 3
    lengths = jnp.asarray([2, 9, 12])
    shape = [WindowShape(2, 4, window, 4)]
    full = Cache.empty(shape, rows, 64, FLOAT, CacheLayout(stored=stored))
    ring = Cache.empty(shape, rows, 64, FLOAT, CacheLayout(ring=True, stored=stored))
    for step in range(steps):
        tokens = 1 if step else width
        heads = (random(rows, tokens, n, 4, seed=3 * step + i) for i, n in enumerate((4, 2, 2)))
        q, k, v = heads
        positions = lengths[:, None] - 1 + step
        valid = None
        if not step:
            columns = jnp.arange(width)
            positions, valid = jnp.minimum(columns, lengths[:, None] - 1), columns < lengths[:, None]
        outs = []
        for cache in (full, ring):
            entered = cache.enter(positions, valid)
            span = causal_span(tokens, valid, positions, entered)
            out, layer, _ = attend(q, k, v, span, cache.layers[0], scale=0.5, window=window)
            outs.append(out)
            cache = entered.leave([layer], tokens)
            full, ring = (cache, ring) if len(outs) == 1 else (full, cache)
        last = np.asarray(lengths) - 1 if not step else np.zeros(rows, int)
        mine, wanted = (np.asarray(out)[np.arange(rows), last] for out in reversed(outs))
        np.testing.assert_allclose(mine, wanted, atol=1e-5)
    assert slots_of(ring.layers[0]) == 16 and slots_of(full.layers[0]) == 64


def test_a_ring_takes_one_token_after_its_prompt() -> None:
    (ring,) = Cache.empty([WindowShape(1, 1, 4, 1)], 1, 64, FLOAT, CacheLayout(ring=True)).layers
    with pytest.raises(ValueError, match=r"one token after its prompt, but the call has 2.*ring=False"):
        ring.write(jnp.zeros((1, 2, 1, 1)), jnp.zeros((1, 2, 1, 1)), jnp.int32(3))


@pytest.mark.parametrize("window", [3, 8, None])
def test_no_mask_where_a_window_holds_the_call(window: int | None) -> None:
    columns = jnp.arange(8, dtype=jnp.int32)[None]
    mask = Span(columns, columns, None, causal=True, whole=True).mask(window)
    assert (mask is None) == (window != 3)
