"""Worker: the same decode as a bare JAX loop, with nothing around it. Settings: shape, dtype.

A Llama of the same shapes and random weights: one array a layer for q, k and v and one for gate and up, layers
unrolled, a donated static cache as long as it must be, XLA's or cuDNN's attention, greedy. No masks of padding, no
stopping, no settings: what is left to gain on it is what a library may cost.
"""

import functools
import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import serve
from jax import lax
from shapes import SHAPES

Array = jax.Array
settings = json.loads(sys.argv[1])
shape, dtype = SHAPES[settings["shape"]], jnp.dtype(settings["dtype"])
width, hidden, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
head = width // heads
kernel = "cudnn" if jax.default_backend() == "gpu" and dtype != jnp.float32 else "xla"


@functools.partial(jax.jit, static_argnums=1)
def normal(key: Array, size: tuple[int, ...]) -> Array:
    """Weights of a layer."""
    return 0.02 * jax.random.normal(key, size, dtype)


keys = iter(jax.random.split(jax.random.key(0), 4 * shape["num_hidden_layers"] + 2))
layers: list[dict[str, Any]] = [
    {
        "norm": jnp.ones((2, width), dtype),
        "qkv": normal(next(keys), (width, (heads + 2 * kv_heads) * head)),
        "out": normal(next(keys), (width, width)),
        "gate_up": normal(next(keys), (width, 2 * hidden)),
        "down": normal(next(keys), (hidden, width)),
    }
    for _ in range(shape["num_hidden_layers"])
]
embedding = normal(next(keys), (vocabulary, width))
readout = embedding.T if shape.get("tie_word_embeddings") else normal(next(keys), (width, vocabulary))
weights = {"layers": layers, "norm": jnp.ones((width,), dtype), "embedding": embedding, "head": readout}
frequencies = 500000.0 ** (-jnp.arange(0, head, 2, dtype=jnp.float32) / head)


def norm(x: Array, scale: Array) -> Array:
    """Root-mean-square norm."""
    wide = x.astype(jnp.float32)
    return scale * (wide * lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-5)).astype(dtype)


def rotate(x: Array, angles: Array) -> Array:
    """Rotary positions of x (B, T, H, h)."""
    cos, sin = (f(angles)[None, :, None].astype(dtype) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, -1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def forward(weights: Any, ids: Array, cache: list[tuple[Array, Array]], slot: Array) -> tuple[Array, Any]:
    """Runs ids (B, T), which go into the slots from `slot` on; returns the next token (B,) and the cache."""
    b, t = ids.shape
    x = weights["embedding"][ids]
    angles = (slot + jnp.arange(t))[:, None] * frequencies
    written = []
    for layer, (keys, values) in zip(weights["layers"], cache, strict=True):
        qkv = norm(x, layer["norm"][0]) @ layer["qkv"]
        q, k, v = jnp.split(qkv.reshape(b, t, heads + 2 * kv_heads, head), [heads, heads + kv_heads], 2)
        q, k = rotate(q, angles), rotate(k, angles)
        keys, values = (lax.dynamic_update_slice(x, new, (0, slot, 0, 0)) for x, new in ((keys, k), (values, v)))
        written.append((keys, values))
        if t > 1:
            out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=kernel)
        else:
            seen = jnp.arange(keys.shape[1]) <= slot
            out = jax.nn.dot_product_attention(q, keys, values, mask=seen[None, None, None], implementation="xla")
        x = x + out.reshape(b, t, width) @ layer["out"]
        gate, up = jnp.split(norm(x, layer["norm"][1]) @ layer["gate_up"], 2, -1)
        x = x + (jax.nn.silu(gate) * up) @ layer["down"]
    logits = norm(x[:, -1], weights["norm"]) @ weights["head"]
    return jnp.argmax(logits.astype(jnp.float32), -1).astype(jnp.int32), written


@functools.partial(jax.jit, static_argnums=2)
def prefill(weights: Any, ids: Array, slots: int) -> tuple[Array, Any]:
    """Reads the prompts into a new cache."""
    size = (len(ids), slots, kv_heads, head)
    cache = [(jnp.zeros(size, dtype), jnp.zeros(size, dtype)) for _ in weights["layers"]]
    return forward(weights, ids, cache, jnp.int32(0))


@functools.partial(jax.jit, static_argnums=4, donate_argnums=2)
def decode(weights: Any, token: Array, cache: Any, slot: Array, count: int) -> tuple[Array, Any]:
    """Generates `count` tokens more, (B, count)."""

    def step(i: Array, state: Any) -> Any:
        token, cache, tokens = state
        token, cache = forward(weights, token[:, None], cache, slot + i)
        return token, cache, lax.dynamic_update_slice(tokens, token[:, None], (0, i))

    _, cache, tokens = lax.fori_loop(0, count, step, (token, cache, jnp.zeros((len(token), count), jnp.int32)))
    return tokens, cache


def answer(batch: int, prompt: int, new: int, **_: object) -> dict[str, float]:
    """Generates `new` tokens for `batch` random prompts; returns seconds."""
    ids = np.random.default_rng(0).integers(0, vocabulary, (batch, prompt)).astype(np.int32)
    start = time.perf_counter()
    token, cache = prefill(weights, ids, prompt + new)
    if new > 1:
        token, cache = decode(weights, token, cache, jnp.int32(prompt), new - 1)
    np.asarray(token)
    return {"seconds": time.perf_counter() - start}


device = jax.devices()[0]
with jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default"):
    serve({"device": device.device_kind, "platform": device.platform}, answer)
