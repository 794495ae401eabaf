"""Continued prefill: prompts are read in chunks, behind what a cache holds of them already.

Slot i of the cache is given to token i of every row, so a chunk is a range of columns. Rows that end before it have
only padding there; the logits of a row's last token are kept from the chunk that holds it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxpipe.generation.buckets import batch_bucket, cache_bucket, cache_stages, length_bucket
from jaxpipe.generation.filled import Filled
from jaxpipe.generation.inputs import Prompts
from jaxpipe.generation.kept import PastKeyValues, copied
from jaxpipe.generation.packing import Packed, pack, place_rows
from jaxpipe.generation.prefix_cache import PrefixCache, paste
from jaxpipe.models.config import ModelConfig
from jaxpipe.nn.cache import Cache, CacheLayout, WindowShape
from jaxpipe.nn.functional import Functional, Leaves
from jaxpipe.nn.rope import LayerRopes, Rope, input_length
from jaxpipe.sharding.memory import available_bytes
from jaxpipe.sharding.mesh import data_degree
from jaxpipe.sharding.rules import constrain

Array = jax.Array

# The part of a device's memory that the activations of one call on prompts may take.
_MEMORY_PART = 8
# Smallest chunk that is chosen, and smallest bucket of the tokens behind a filled cache.
_SMALLEST, _SMALLEST_TAIL = 256, 32


@dataclass(frozen=True)
class Reading:
    """How the prompts of a call are read.

    Attributes:
        chunk: most tokens of a row that are read at once; None: what memory allows.
        past: what is held of the prompts, checked against them.
        prefixes: where the beginnings of prompts are looked up.
        keep: the cache will be continued later, so it has to hold every token.
        stored: the 8-bit type in which keys and values are kept, or None.
    """

    chunk: int | None = None
    past: PastKeyValues | None = None
    prefixes: PrefixCache | None = None
    keep: bool = False
    stored: str | None = None


class Reader:
    """Reads the prompts of one model in chunks; its executables are kept between calls.

    Args:
        functional: the model taken apart.
        leaves: its weights.
        config: its configuration.
    """

    def __init__(self, functional: Functional, leaves: Leaves, config: ModelConfig):
        self._functional, self._leaves, self._config = functional, leaves, config
        self._empty = jax.jit(self._make_empty, static_argnums=(0, 1, 2))
        self._no_logits = jax.jit(self._make_logits, static_argnums=0)
        self.read_chunk = make_read_chunk(functional)

    def pack(self, prompts: Prompts, max_new_tokens: int, reading: Reading) -> Packed | None:
        """Reads prompts, and packs what a prefill goes on from; None where one call on them is as good.

        Args:
            prompts: of the call.
            max_new_tokens: of the call.
            reading: how they are read; layers with a window keep all tokens here.
        """
        mesh = self._functional.mesh
        rows, longest = batch_bucket(len(prompts.rows), data_degree(mesh)), max(map(len, prompts.rows))
        start, fill = self._beginning(prompts, reading, longest)
        tokens = longest - start
        most = reading.chunk or self.chunk_size(rows, tokens, start)
        if not start and tokens <= most and not (reading.keep and self._has_windows):
            return None
        size, count = chunks(tokens, most, exact=reading.chunk is not None)
        width = start + count * size
        slots = cache_bucket(width + max_new_tokens)
        first = cache_stages(width, slots)[0]
        packed = pack(prompts, (), rows=rows, width=first, slots=slots, mesh=mesh)
        _, ids, lengths, idle = packed.arrays
        filled = self._empty(rows, first, reading.stored) if fill is None else fill(rows, first)
        for number in range(count):
            filled = self.read_chunk(self._leaves, filled, ids, lengths, np.int32(start + number * size), size)
        return replace(packed, width=width, arrays=(filled, ids, lengths, idle))

    def _beginning(
        self, prompts: Prompts, reading: Reading, longest: int
    ) -> tuple[int, Callable[[int, int], Filled] | None]:
        """Returns how many tokens of every row are held, and what makes the cache that holds them."""
        past, prefixes = reading.past, reading.prefixes
        if self.longest_kept is not None and max(longest, past.longest if past else 0) > self.longest_kept:
            return 0, None  # positions in prompts of such a length turn at another pace
        # One token of every row is read at least, for its logits.
        last = min(map(len, prompts.rows)) - 1
        if past is not None:
            start = min(last, past.shortest())
            return start, (lambda rows, slots: self._copied(past, start, rows, slots)) if start else None
        if prefixes is None:
            return 0, None
        blocks = prefixes.find(self, prompts.rows, last, reading.stored)
        if not blocks:
            return 0, None
        start = len(blocks) * prefixes.block_size
        return start, lambda rows, slots: paste(self._empty(rows, slots, reading.stored), blocks)

    def _copied(self, past: PastKeyValues, start: int, rows: int, slots: int) -> Filled:
        source, columns = past.columns(start, rows, slots)
        cache = copied(source, place_rows(columns, self._functional.mesh), np.int32(start))
        return Filled(self._no_logits(rows), cache)

    def _make_empty(self, rows: int, slots: int, stored: str | None) -> Filled:
        cache = Cache.empty(self._layers, rows, slots, self._functional.dtype, CacheLayout(stored=stored))
        return Filled(self._make_logits(rows), replace(cache, fresh=False))

    def _make_logits(self, rows: int) -> Array:
        return constrain(jnp.zeros((rows, 1, self._config.vocab_size), jnp.float32), "batch", None, "vocab")

    @functools.cached_property
    def _layers(self) -> Sequence[Any]:
        return self._functional.module(self._leaves).cache_layers()

    @property
    def cuts(self) -> bool:
        """Whether what the layers remember can be cut after any token."""
        return all(isinstance(layer, tuple) for layer in self._layers)

    @functools.cached_property
    def _has_windows(self) -> bool:
        return any(isinstance(layer, WindowShape) for layer in self._layers)

    @functools.cached_property
    def longest_kept(self) -> int | None:
        """Tokens of the longest prompt whose positions turn as in shorter ones; None where all do."""
        ropes: list[Rope] = []
        for _, node in nnx.iter_graph(self._functional.module(self._leaves)):
            node = getattr(node, "rope", node)
            if isinstance(node, Rope | LayerRopes):
                ropes += [rope for _, rope in node.ropes] if isinstance(node, LayerRopes) else [node]
        return min((rope.longest_unscaled for rope in ropes if rope.longest_unscaled is not None), default=None)

    def chunk_size(self, rows: int, tokens: int, start: int = 0) -> int:
        """Returns the most tokens of each of `rows` rows that are read at once, where the user does not say.

        Args:
            rows: of the batch.
            tokens: to be read, of the longest row.
            start: tokens before them that the cache holds.
        """
        size = length_bucket(tokens)
        if self._memory is None:
            return size
        own, most = -(-rows // data_degree(self._functional.mesh)), self._memory // _MEMORY_PART
        if not start and self.activation_bytes(own, size) <= most:
            return size
        size, slots = 1 << (tokens - 1).bit_length(), start + tokens
        while size > _SMALLEST and self.activation_bytes(own, size, slots) > most:
            size //= 2
        return size

    def activation_bytes(self, rows: int, tokens: int, slots: int = 0) -> int:
        """Estimates the bytes that one call on prompts takes beside weights and cache.

        A layer's states and the wider ones within its MLP; the scores of one layer's attention where no fused kernel is
        there; and where one is, the mask of a chunk.

        Args:
            rows: of one device.
            tokens: of each.
            slots: that a chunk attends to; 0 for whole prompts.
        """
        width, features, heads = (self._size(*names) for names in _SIZES)
        features = features or 4 * width
        itemsize = jnp.dtype(self._functional.dtype).itemsize
        states = rows * tokens * (8 * width + 3 * features) * itemsize
        devices = self._functional.mesh.devices
        platform = devices.flat[0].platform
        on_tpu = platform == "tpu" and devices.size == 1 and not self._has_windows
        fused = on_tpu or (platform == "gpu" and itemsize == 2)
        return states + (3 * tokens * slots if fused else 8 * rows * heads * tokens**2)

    def _size(self, *names: str) -> int:
        found = (getattr(self._config, name, None) for name in names)
        return next((size for size in found if isinstance(size, int)), 0)

    @functools.cached_property
    def _memory(self) -> int | None:
        devices = list(self._functional.mesh.devices.flat)
        limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices[:1]]
        return limits[0] or available_bytes(devices, {}, None)


# Names of D, F and H in configs.
_SIZES = (
    ("hidden_size", "d_model", "n_embd"),
    ("intermediate_size", "n_inner", "ffn_dim", "d_ff"),
    ("num_attention_heads", "n_head", "num_heads"),
)


def chunks(tokens: int, most: int, *, exact: bool) -> tuple[int, int]:
    """Returns the size of the chunks that `tokens` tokens are cut into, and their number.

    Args:
        tokens: at least 1.
        most: of a chunk.
        exact: several chunks have the size `most`, so that all lengths share an executable; else they are as even as
            buckets allow, which reads less padding.
    """
    if tokens <= most:
        return min(most, length_bucket(tokens, minimum=_SMALLEST_TAIL)), 1
    size = most if exact else min(most, length_bucket(math.ceil(tokens / math.ceil(tokens / most))))
    return size, math.ceil(tokens / size)


def make_read_chunk(functional: Functional) -> Callable[..., Filled]:
    """Returns the jitted call of a model on one chunk.

    Its arguments: the leaves; the `Filled` cache, donated; prompts (B, S) int32 padded on the right; their lengths
    (B,); the chunk's first column () int32; and, static, its size. It returns the `Filled` with the chunk.
    """

    def read(leaves: Leaves, filled: Filled, prompts: Array, lengths: Array, start: Array, size: int) -> Filled:
        columns = start + jnp.arange(size, dtype=jnp.int32)
        last = lengths - 1 - start  # (B,), column of each row's last token in the chunk
        with input_length(jnp.max(lengths)):
            out = functional.call(
                leaves,
                lax.dynamic_slice_in_dim(prompts, start, size, axis=1),
                attention_mask=columns < lengths[:, None],
                position_ids=jnp.minimum(columns, lengths[:, None] - 1),
                cache=replace(filled.cache, slot=start, in_order=True),
                last=jnp.clip(last, 0, size - 1),
            )
        here = (last >= 0) & (last < size)
        logits = jnp.where(here[:, None, None], out.logits.astype(jnp.float32), filled.logits)
        positions = constrain(out.cache.positions, "batch", None)
        cache = replace(out.cache, positions=positions, in_order=False)
        return Filled(constrain(logits, "batch", None, "vocab"), cache)

    return jax.jit(read, donate_argnums=1, static_argnums=5)
