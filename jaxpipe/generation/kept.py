"""What is kept of a call of `generate` for the next one: ``past_key_values``."""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.generation.inputs import Prompts
from jaxpipe.nn.cache import Cache
from jaxpipe.sharding.rules import constrain

Array = jax.Array

# Common tokens that are worth the executables of going on, even where most of a prompt is read.
_SHORT = 64


@dataclass(frozen=True)
class _Row:
    """The tokens (n,) of a row that a cache holds, the slots (n,) that they are in, and the row of the cache."""

    tokens: np.ndarray
    slots: np.ndarray
    line: int

    def first(self, count: int) -> "_Row":
        return replace(self, tokens=self.tokens[:count], slots=self.slots[:count])


class PastKeyValues:
    """The keys and values of sequences that were generated, for a call of `generate` that goes on from them.

    ``model.generate(longer_ids, past_key_values=past)`` reads only the tokens of ``longer_ids`` that ``past`` does not
    hold. It stays as it is, and can be used again; what goes on from it is a copy.

    Args:
        owner: who made it, and alone can use it.
        cache: its arrays are never donated.
        rows: what it holds.

    Attributes:
        longest: tokens of the longest row before any was forgotten.
    """

    def __init__(self, owner: Any, cache: Cache, rows: Sequence[_Row]):
        self._owner = weakref.ref(owner)
        self._cache = cache
        self._rows = list(rows)
        self.longest = self.get_seq_length()

    @classmethod
    def of_run(
        cls, owner: Any, cache: Cache, tokens: Array, valid: Array, sequences: Sequence[np.ndarray]
    ) -> "PastKeyValues":
        """Takes what a finished run leaves.

        Args:
            owner: see `PastKeyValues`.
            cache: after the last step.
            tokens, valid: (B, S), its slots' tokens, and which slots hold one.
            sequences: prompt and new tokens of each row; what the run chose beyond them is left out.
        """
        filled = np.asarray(valid) & (np.arange(valid.shape[1]) < int(cache.slot))
        ids = np.asarray(tokens)
        rows = []
        for line, sequence in enumerate(sequences):
            slots = np.flatnonzero(filled[line]).astype(np.int32)
            row = _Row(ids[line, slots], slots, line)
            rows.append(row.first(common_length(row.tokens, sequence)))
        return cls(owner, cache, rows)

    @classmethod
    def of_prompts(cls, owner: Any, cache: Cache, rows: Sequence[np.ndarray], lines: Sequence[int]) -> "PastKeyValues":
        """Takes prompts, each of which lies in the first slots of a row of the cache."""
        held = [_Row(row, np.arange(len(row), dtype=np.int32), line) for row, line in zip(rows, lines, strict=True)]
        return cls(owner, cache, held)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens that are held, of the longest row."""
        return max((len(row.tokens) for row in self._rows), default=0)

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Slots of a row; a call that needs more makes a larger cache."""
        return self._cache.positions.shape[1]

    @property
    def lengths(self) -> list[int]:
        """Number of tokens that are held of each row."""
        return [len(row.tokens) for row in self._rows]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return sum(x.nbytes for x in jax.tree.leaves(self._cache.layers))

    def __len__(self) -> int:
        return len(self._cache.layers)

    def __repr__(self) -> str:
        return f"PastKeyValues({len(self)} layers, tokens {self.lengths}, {self.nbytes:,} bytes)"

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens of every row.

        Args:
            tokens_to_remove: a number of tokens, as a negative integer as in Transformers 5; a positive one, as in
                Transformers 4, is the number of tokens that stay.
        """
        for i, row in enumerate(self._rows):
            kept = tokens_to_remove if tokens_to_remove > 0 else max(len(row.tokens) + tokens_to_remove, 0)
            self._rows[i] = row.first(kept)

    def batch_select_indices(self, indices: Iterable[int]) -> None:
        """Keeps the rows of these numbers, in this order.

        Raises:
            IndexError: there is no such row.
        """
        wanted = [int(index) for index in np.asarray(indices).reshape(-1)]
        for index in wanted:
            if not -len(self._rows) <= index < len(self._rows):
                raise IndexError(f"indices={wanted}: past_key_values has {len(self._rows)} rows, and no row {index}.")
        self._rows = [self._rows[index] for index in wanted]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row, one after another."""
        self._rows = [row for row in self._rows for _ in range(repeats)]

    def copy(self) -> "PastKeyValues":
        """Another object over the same arrays, which can be cropped by itself."""
        past = object.__new__(PastKeyValues)
        past._owner, past._cache, past._rows = self._owner, self._cache, list(self._rows)
        past.longest = self.longest
        return past

    def repeated(self, times: int) -> "PastKeyValues":
        """Returns what holds every row `times` times."""
        past = self.copy()
        past.batch_repeat_interleave(times)
        return past

    def shortest(self) -> int:
        """Number of tokens that are held of every row."""
        return min(self.lengths, default=0)

    def check(self, owner: Any, prompts: Prompts, sequences: int) -> None:
        """Checks that the prompts of a call begin with what is held.

        Args:
            owner: who wants to use it.
            prompts: of the call, each once.
            sequences: that the call returns of each.

        Raises:
            ValueError: it is another model's, or of other tokens or rows.
        """
        if self._owner() is not owner:
            raise ValueError(
                "past_key_values was made by another model, or by this one with other weights; leave it out, and take "
                "the one that this model's generate returns (return_dict_in_generate=True)."
            )
        count = len(prompts.rows)
        if len(self._rows) not in (count, count * sequences):
            raise ValueError(f"past_key_values holds {len(self._rows)} rows, but input_ids has {count}.")
        times = len(self._rows) // count
        for i, row in enumerate(self._rows):
            given = prompts.rows[i // times]
            same = common_length(row.tokens, given)
            if same == len(row.tokens):
                continue
            if same == len(given):
                raise ValueError(
                    f"Row {i} of past_key_values holds {len(row.tokens)} tokens, but row {i // times} of input_ids has "
                    f"{len(given)}: input_ids holds all tokens, those of past_key_values first. To go back, shorten it "
                    f"by past_key_values.crop({len(given) - len(row.tokens)})."
                )
            raise ValueError(
                f"Row {i // times}, column {_column(prompts, i // times, same)} of input_ids is {given[same]}, but "
                f"past_key_values holds {row.tokens[same]} there: input_ids must begin with the tokens that it holds. "
                "Leave past_key_values out, or crop it to what is the same."
            )

    def columns(self, count: int, rows: int, slots: int) -> tuple[Cache, np.ndarray]:
        """Returns a cache of `rows` rows, and the slots (rows, slots) in it of the first `count` tokens.

        Beyond them stands 0.
        """
        lines = np.zeros((rows,), np.int32)
        columns = np.zeros((rows, slots), np.int32)
        for i, row in enumerate(self._rows):
            lines[i], columns[i, :count] = row.line, row.slots[:count]
        cache = self._cache
        if len(cache.positions) != rows or any(row.line != i for i, row in enumerate(self._rows)):
            cache = _selected(cache, lines)
        return cache, columns

    def held(self) -> tuple[Cache, list[_Row]]:
        """The cache, and what it holds."""
        return self._cache, self._rows


class LastConversation:
    """Keeps the cache of the last call that it was given to as ``past_key_values``, for the next turn of a chat.

    A call goes on from the longest beginning that its prompt has in common with what is held, and reads everything
    where that is short, and less than half of the prompt.
    """

    def __init__(self) -> None:
        self.past: PastKeyValues | None = None

    def take(self, owner: Any, prompts: Prompts) -> PastKeyValues | None:
        """Returns what is held of a prompt, and holds it no longer."""
        past, self.past = self.past, None
        if past is None or past._owner() is not owner or len(past._rows) != 1 or len(prompts.rows) != 1:
            return None
        same = common_length(past._rows[0].tokens, prompts.rows[0])
        past._rows[0] = past._rows[0].first(same)
        return past if same >= min(_SHORT, len(prompts.rows[0]) / 2) else None


def common_length(one: np.ndarray, other: np.ndarray) -> int:
    """Returns how many tokens two sequences begin with alike."""
    count = min(len(one), len(other))
    differ = np.flatnonzero(one[:count] != other[:count])
    return int(differ[0]) if len(differ) else count


def _column(prompts: Prompts, row: int, number: int) -> int:
    """Column of a row's token in the arrays as they were given."""
    mask = prompts.mask
    return number if mask is None else int(np.flatnonzero(mask[row])[number])


@jax.jit
def copied(cache: Cache, columns: Array, count: Array) -> Cache:
    """Returns a cache whose first `count` slots hold what those of `columns` (B, S) hold in another, in order."""
    picked = jax.tree.map(lambda x: _pick(x, columns), cache.layers)
    slots = jnp.arange(columns.shape[1], dtype=jnp.int32)
    positions = jnp.broadcast_to(jnp.where(slots < count, slots, -1), columns.shape)
    return Cache(picked, constrain(positions, "batch", None), count, fresh=False)


def _pick(x: Array, columns: Array) -> Array:
    index = columns.reshape(*columns.shape, *(1,) * (x.ndim - 2))
    axes = ("batch", None, "kv_heads", *(None,) * (x.ndim - 3))
    return constrain(jnp.take_along_axis(x, index, axis=1, mode="clip"), *axes)


@jax.jit
def _selected(cache: Cache, lines: Array) -> Cache:
    """Returns the rows `lines` (R,) of a cache."""
    layers, positions = jax.tree.map(lambda x: jnp.take(x, lines, axis=0, mode="clip"), (cache.layers, cache.positions))
    return replace(cache, layers=layers, positions=positions)
