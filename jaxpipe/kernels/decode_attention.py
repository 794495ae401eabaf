"""Attention of few queries to a long cache as one GPU kernel, in Pallas; `attention.xla_attention` is its plain twin.

One program reads some slots of one key-value head of one row, with the running softmax of Milakov and Gimelshein
(2018, arXiv 1805.02867). Where rows and heads are too few to fill the device the slots are split among several
programs, whose results a second kernel joins. Slots before the first and behind the last that is seen are not read, so
that a cache costs what is filled of it, and keys and values in 8 bits are widened in registers.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxpipe.kernels.compute import on_one_device

Array = jax.Array

# Rows of a tile of the tensor cores, and the most (queries times query heads of a key-value head) of one program.
_TILE, _MOST_ROWS = 16, 64
# Programs that fill a large GPU, and the fewest slots that are worth one of them.
_PROGRAMS, _FEWEST_SLOTS = 256, 256
_BLOCK = 64
_WIDTHS = (32, 64, 128, 256)
_LOWEST, _SMALLEST = -1e30, 1e-30
# A slot is seen by the queries from `code % _UNTIL` on, and no more by those from `code // _UNTIL` on.
_UNTIL = 128


def applies(q: Array, k: Array, v: Array) -> bool:
    """Whether the kernel takes queries (B, T, H, h) and a cache (B, S, K, h): on one device, in half precision, few
    queries, and heads whose width is a power of two.
    """
    heads, width = q.shape[2:]
    fits = width == v.shape[-1] and width in _WIDTHS and q.shape[1] * (heads // k.shape[2]) <= _MOST_ROWS
    return fits and q.dtype in (jnp.bfloat16, jnp.float16) and on_one_device()


def splits_of(programs: int, slots: int) -> int:
    """Returns among how many programs the slots of a head are split, where there are as many heads as `programs`."""
    wanted = min(-(-_PROGRAMS // programs), slots // _FEWEST_SLOTS)
    return 1 << max(wanted, 1).bit_length() - 1


# Jitted, so that the layers of a model share one trace and one lowering of it.
@partial(jax.jit, static_argnames=("scale", "softcap", "splits", "interpret"))
def decode_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Array | None = None,
    key_scales: Array | None = None,
    value_scales: Array | None = None,
    splits: int | None = None,
    interpret: bool = False,
) -> Array:
    """Attends with few queries, where `applies`; see `attention.attention` for the arguments.

    Args:
        q: (B, T, H, h).
        k, v: (B, S, K, h).
        mask: (1 or B, T, S). The queries that see a slot are consecutive ones, as in causal attention.
        scale, softcap, sinks, key_scales, value_scales: see `attention.attention`.
        splits: overrides `splits_of`.
        interpret: run without a GPU.

    Returns:
        the outputs (B, T, H, h).
    """
    b, t, heads, h = q.shape
    slots, kv_heads = k.shape[1:3]
    group = heads // kv_heads
    rows, splits = max(_TILE, pl.next_power_of_2(t * group)), splits or splits_of(b * kv_heads, slots)
    codes, first, end = _seen(jnp.broadcast_to(mask, (b, t, slots)))
    q = q.reshape(b, t, kv_heads, group, h).transpose(0, 2, 1, 3, 4).reshape(b, kv_heads, t * group, h)

    of_row = pl.BlockSpec((None,), lambda b, kv, split: (b,))
    of_head = pl.BlockSpec((None, None, rows, h), lambda b, kv, split: (b, kv, 0, 0))
    cache = pl.BlockSpec((None, slots, None, h), lambda b, kv, split: (b, 0, kv, 0))
    inputs = {"q": (q, of_head), "k": (k, cache), "v": (v, cache), "first": (first, of_row), "end": (end, of_row)}
    inputs["codes"] = codes, pl.BlockSpec((None, slots), lambda b, kv, split: (b, 0))
    if sinks is not None:
        each = jnp.tile(sinks.reshape(kv_heads, group), (1, t))  # (K, T H/K)
        inputs["sinks"] = each, pl.BlockSpec((None, rows), lambda b, kv, split: (kv, 0))
    for name, scales in (("key_scales", key_scales), ("value_scales", value_scales)):
        if scales is not None:
            inputs[name] = scales, pl.BlockSpec((None, slots, None), lambda b, kv, split: (b, 0, kv))
    outputs: dict[str, tuple[jax.ShapeDtypeStruct, pl.BlockSpec]] = {}
    if splits == 1:
        outputs["out"] = jax.ShapeDtypeStruct(q.shape, q.dtype), of_head
    else:
        part = (b, kv_heads, splits, t * group)
        number = pl.BlockSpec((None, None, None, rows), lambda b, kv, split: (b, kv, split, 0))
        sums = pl.BlockSpec((None, None, None, rows, h), lambda b, kv, split: (b, kv, split, 0, 0))
        outputs["sums"] = jax.ShapeDtypeStruct((*part, h), jnp.float32), sums
        outputs |= {name: (jax.ShapeDtypeStruct(part, jnp.float32), number) for name in ("highest", "total")}
    names = (*inputs, *outputs)

    def kernel(*refs: Any) -> None:
        _attend(dict(zip(names, refs, strict=True)), t=t, group=group, scale=scale, softcap=softcap)

    got = pl.pallas_call(
        kernel,
        out_shape=[shape for shape, _ in outputs.values()],
        grid=(b, kv_heads, splits),
        in_specs=[spec for _, spec in inputs.values()],
        out_specs=[spec for _, spec in outputs.values()],
        name="decode_attention",
        interpret=interpret,
        **_compiler_params(interpret, num_stages=3),
    )(*(x for x, _ in inputs.values()))
    found = dict(zip(outputs, got, strict=True))
    out = found["out"] if splits == 1 else _joined(found["sums"], found["highest"], found["total"], q.dtype, interpret)
    return out.reshape(b, kv_heads, t, group, h).transpose(0, 2, 1, 3, 4).reshape(b, t, heads, h)


def _compiler_params(interpret: bool, **settings: int) -> dict[str, Any]:
    return {} if interpret else {"compiler_params": triton.CompilerParams(num_warps=4, **settings)}


def _seen(mask: Array) -> tuple[Array, Array, Array]:
    """Of a mask (B, T, S): a code (B, S) int16 of the queries that see each slot; the first slot that any sees and
    the one behind the last, (B,) int32.
    """
    queries, slots = mask.shape[1:]
    seen = jnp.any(mask, axis=1)  # (B, S)
    since = jnp.argmax(mask, axis=1)
    until = jnp.where(seen, queries - jnp.argmax(mask[:, ::-1], axis=1), 0)
    first = jnp.argmax(seen, axis=1)
    end = jnp.where(jnp.any(seen, axis=1), slots - jnp.argmax(seen[:, ::-1], axis=1), 0)
    return (since + _UNTIL * until).astype(jnp.int16), first.astype(jnp.int32), end.astype(jnp.int32)


def _attend(refs: Mapping[str, Any], *, t: int, group: int, scale: float, softcap: float | None) -> None:
    """The kernel: one split of one key-value head of one row.

    Args:
        refs: q (rows, h), of which T H/K rows are there; k and v (S, h); codes (S,); first and end (); perhaps sinks
            (rows,), key_scales and value_scales (S,). Written are ``out`` (rows, h) or, of a split, sums (rows, h),
            highest and total (rows,).
        t, group: T and H/K.
        scale, softcap: see `attention.attention`.
    """
    slots, h = refs["k"].shape
    index = jnp.arange(refs["q"].shape[0])
    query, there = index // group, index < t * group
    q = _load(refs["q"].at[:, :], there[:, None])
    start, stop = refs["first"][()] // _BLOCK, pl.cdiv(refs["end"][()], _BLOCK)
    each = pl.cdiv(stop - start, pl.num_programs(2))
    start = start + pl.program_id(2) * each
    stop = jnp.minimum(start + each, stop)

    def capped(x: Array) -> Array:
        return x if softcap is None else softcap * jnp.tanh(x / softcap)

    def block(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, total, out = carry
        here = pl.ds(i * _BLOCK, _BLOCK)
        within = None if slots % _BLOCK == 0 else i * _BLOCK + jnp.arange(_BLOCK) < slots
        tall = None if within is None else within[:, None]
        codes = _load(refs["codes"].at[here], within).astype(jnp.int32)[None]
        seen = (codes % _UNTIL <= query[:, None]) & (query[:, None] < codes // _UNTIL)
        k, v = (_load(refs[name].at[here, :], tall).astype(q.dtype) for name in ("k", "v"))
        x = jnp.dot(q, k.T, preferred_element_type=jnp.float32) * scale  # (rows, block)
        if "key_scales" in refs:
            x = x * _load(refs["key_scales"].at[here], within).astype(jnp.float32)[None]
        x = jnp.where(seen, capped(x), _LOWEST)
        raised = jnp.maximum(highest, jnp.max(x, axis=1))
        x = jnp.where(seen, jnp.exp(x - raised[:, None]), 0.0)
        kept = jnp.exp(highest - raised)
        total = total * kept + jnp.sum(x, axis=1)
        if "value_scales" in refs:
            x = x * _load(refs["value_scales"].at[here], within).astype(jnp.float32)[None]
        return raised, total, out * kept[:, None] + jnp.dot(x.astype(q.dtype), v, preferred_element_type=jnp.float32)

    highest, total = jnp.full(index.shape, _LOWEST, jnp.float32), jnp.zeros(index.shape, jnp.float32)
    if "sinks" in refs:
        once = pl.program_id(2) == 0  # whatever the splits
        highest = jnp.where(once, _load(refs["sinks"].at[:], there).astype(jnp.float32), highest)
        total = jnp.where(once, 1.0, total)
    highest, total, out = lax.fori_loop(
        start, stop, block, (highest, total, jnp.zeros((index.shape[0], h), jnp.float32))
    )
    if "out" in refs:
        out = out / jnp.maximum(total, _SMALLEST)[:, None]
        _store(refs["out"].at[:, :], out.astype(refs["out"].dtype), there[:, None])
    else:
        _store(refs["sums"].at[:, :], out, there[:, None])
        _store(refs["highest"].at[:], highest, there)
        _store(refs["total"].at[:], total, there)


def _joined(sums: Array, highest: Array, total: Array, dtype: Any, interpret: bool) -> Array:
    """Joins sums (B, K, n, R, h), highest and total (B, K, n, R) of n splits to outputs (B, K, R, h)."""
    b, kv_heads, splits, rows, h = sums.shape

    def kernel(sums_ref: Any, highest_ref: Any, total_ref: Any, out_ref: Any) -> None:
        highest = highest_ref[...]  # (n,)
        kept = jnp.exp(highest - jnp.max(highest, axis=0))
        total = jnp.sum(total_ref[...] * kept, axis=0)
        out = jnp.sum(sums_ref[...] * kept[:, None], axis=0) / jnp.maximum(total, _SMALLEST)  # (h,)
        out_ref[...] = out.astype(out_ref.dtype)

    number = pl.BlockSpec((None, None, splits, None), lambda b, kv, row: (b, kv, 0, row))
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((b, kv_heads, rows, h), dtype),
        grid=(b, kv_heads, rows),
        in_specs=[pl.BlockSpec((None, None, splits, None, h), lambda b, kv, row: (b, kv, 0, row, 0)), number, number],
        out_specs=pl.BlockSpec((None, None, None, h), lambda b, kv, row: (b, kv, row, 0)),
        name="decode_attention_join",
        interpret=interpret,
        **_compiler_params(interpret, num_stages=1),
    )(sums, highest, total)


def _load(ref: Any, mask: Array | None) -> Array:
    return ref[...] if mask is None else triton.load(ref, mask=mask, other=0)


def _store(ref: Any, x: Array, mask: Array) -> None:
    triton.store(ref, x, mask=mask)
