"""A cache of the beginnings of prompts, block by block of tokens."""

import functools
import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpipe.generation.filled import Filled
from jaxpipe.nn.cache import Cache
from jaxpipe.sharding.memory import parse_bytes

Array = jax.Array


@dataclass(frozen=True)
class Block:
    """Keys and values of one block of tokens: layers whose arrays have one shape are stacked, (n, tokens, K, h)."""

    parts: tuple[Array, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(part.nbytes for part in self.parts)


class PrefixCache:
    """Keys and values of the beginnings of prompts, so that prompts that begin alike are read once.

    ``model.generate(ids, prefix_cache=PrefixCache("2GB"))``: what a call read or generated is cut into blocks, and a
    later prompt that begins with the same blocks reads the rest alone. A batch goes on from what is stored of all its
    rows. Where there is no room the blocks that were used the longest time ago give way, the last of a prompt first.
    It belongs to the model that uses it first.

    Args:
        max_bytes: that the blocks take at most, or such as ``"2GB"``.
        block_size: tokens of a block.

    Attributes:
        hits: rows of calls that began with at least one stored block.
        misses: rows of calls that did not.
        tokens_saved: tokens of rows that were not read, as they were stored.

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(self, max_bytes: int | str, block_size: int = 64):
        self.max_bytes = parse_bytes(max_bytes, "max_bytes")
        if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
            raise ValueError(f"block_size={block_size!r}: expected an integer of at least 1.")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes!r}: expected at least 1 byte.")
        self.block_size = block_size
        self.hits = self.misses = self.tokens_saved = 0
        self._owner: Any = None
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the stored blocks."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._blocks)

    def __repr__(self) -> str:
        return (
            f"PrefixCache({len(self)} blocks of {self.block_size} tokens, {self._bytes:,} of {self.max_bytes:,} bytes, "
            f"hits {self.hits}, misses {self.misses}, tokens saved {self.tokens_saved})"
        )

    def clear(self) -> None:
        """Forgets all blocks."""
        with self._lock:
            self._blocks.clear()
            self._bytes = 0

    def bind(self, owner: Any) -> None:
        """Makes `owner`, who reads prompts, the only one that can use it.

        Raises:
            ValueError: it is another's.
        """
        if self._owner is None:
            self._owner = weakref.ref(owner)
        if self._owner() is not owner:
            raise ValueError(
                "prefix_cache holds keys and values of another model, or of this one with other weights; make a "
                "PrefixCache for each model."
            )

    def find(self, owner: Any, rows: Sequence[np.ndarray], most: int, stored: str | None) -> list[tuple[Block, ...]]:
        """Returns the stored blocks that all rows begin with: for each block one of each row.

        Args:
            owner: who reads the prompts.
            rows: their tokens.
            most: tokens that may be taken of a row.
            stored: the 8-bit type of the cache that they are for, or None.
        """
        self.bind(owner)
        with self._lock:
            found = [self._chain(row[:most], stored) for row in rows]
            count = min(map(len, found))
            for chain in found:
                for key in reversed(chain[:count]):
                    self._blocks.move_to_end(key)
            self.hits += len(rows) if count else 0
            self.misses += 0 if count else len(rows)
            self.tokens_saved += count * self.block_size * len(rows)
            return [tuple(self._blocks[chain[i]] for chain in found) for i in range(count)]

    def _chain(self, tokens: np.ndarray, stored: str | None) -> list[bytes]:
        chain = []
        for key in self._keys(tokens, stored):
            if key not in self._blocks:
                break
            chain.append(key)
        return chain

    def _keys(self, tokens: np.ndarray, stored: str | None) -> Iterator[bytes]:
        """The key of each whole block: a hash of its tokens and of the key before it, so of all tokens up to it."""
        key = str(stored).encode()
        for start in range(0, len(tokens) - self.block_size + 1, self.block_size):
            block = np.ascontiguousarray(tokens[start : start + self.block_size], np.int32)
            key = hashlib.sha256(key + block.tobytes()).digest()
            yield key

    def store(self, cache: Cache, rows: Sequence[Any], stored: str | None) -> None:
        """Stores the whole blocks of what a call left.

        Args:
            cache: after the call.
            rows: as of `PastKeyValues.held`: tokens, the slots that they are in, and the row of the cache.
            stored: its 8-bit type, or None.
        """
        with self._lock:
            for row in rows:
                self._store_row(cache, row, stored)

    def _store_row(self, cache: Cache, row: Any, stored: str | None) -> None:
        keys = list(self._keys(row.tokens, stored))
        size = self.block_size
        # Each block takes as much; what is more than there is room for would only push out its own beginning.
        slots = cache.positions.shape[1] * len(cache.positions)
        one = sum(x.nbytes for x in jax.tree.leaves(cache.layers)) * size // slots
        keys = keys[: self.max_bytes // max(one, 1)]
        for i, key in enumerate(keys):
            if key not in self._blocks:
                block = Block(_cut(cache.layers, np.int32(row.line), row.slots[i * size : (i + 1) * size]))
                self._blocks[key] = block
                self._bytes += block.nbytes
        for key in reversed(keys):
            self._blocks.move_to_end(key)
        while self._bytes > self.max_bytes:
            _, block = self._blocks.popitem(last=False)
            self._bytes -= block.nbytes


def paste(filled: Filled, blocks: Sequence[tuple[Block, ...]]) -> Filled:
    """Writes blocks into the first slots of a cache, whose arrays are donated.

    Args:
        filled: an empty cache.
        blocks: for each block one of each row; rows beyond them get those of the first.
    """
    rows = len(filled.cache.positions)
    for number, row_blocks in enumerate(blocks):
        alike = all(block is row_blocks[0] for block in row_blocks)
        parts = [block.parts for block in (row_blocks[:1] if alike else row_blocks)]
        if not alike:
            parts += parts[:1] * (rows - len(parts))
        tokens = parts[0][0].shape[1]
        filled = _paste(filled, tuple(parts), np.int32(number * tokens))
    return filled


def _grouped(layers: Any) -> tuple[list[Array], Any, dict[Any, list[int]]]:
    """The arrays (B, S, ...) of layers, their tree, and for each shape of a token the numbers of its arrays."""
    arrays, tree = jax.tree.flatten(layers)
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(arrays):
        groups.setdefault((x.shape[2:], x.dtype), []).append(i)
    return arrays, tree, groups


@jax.jit
def _cut(layers: Any, line: Array, slots: Array) -> tuple[Array, ...]:
    """Returns what a row's slots (n,) hold, as `Block` has it."""
    arrays, _, groups = _grouped(layers)
    picked = [jnp.take(lax.dynamic_index_in_dim(x, line, keepdims=False), slots, axis=0, mode="clip") for x in arrays]
    return tuple(jnp.stack([picked[i] for i in group]) for group in groups.values())


@functools.partial(jax.jit, donate_argnums=0)
def _paste(filled: Filled, rows: tuple[tuple[Array, ...], ...], slot: Array) -> Filled:
    """Writes a block of every row, or one for all rows, from a slot on."""
    arrays, tree, groups = _grouped(filled.cache.layers)
    for number, group in enumerate(groups.values()):
        parts = jnp.stack([row[number] for row in rows], axis=1)  # (n, B or 1, tokens, ...)
        for place, i in enumerate(group):
            x = arrays[i]
            part = jnp.broadcast_to(parts[place], (x.shape[0], *parts.shape[2:]))
            arrays[i] = lax.dynamic_update_slice_in_dim(x, part, slot, axis=1)
    cache = filled.cache
    tokens = rows[0][0].shape[1]
    new = jnp.broadcast_to(slot + jnp.arange(tokens, dtype=jnp.int32), (len(cache.positions), tokens))
    positions = lax.dynamic_update_slice_in_dim(cache.positions, new, slot, axis=1)
    return replace(filled, cache=replace(cache, layers=jax.tree.unflatten(tree, arrays), positions=positions))
