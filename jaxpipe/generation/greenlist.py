"""The watermark of green tokens, as Transformers makes it on a CPU.

Which tokens are green is drawn with torch's generator, a shuffle of the vocabulary for each seed; that is no work for
an accelerator, so the host is asked in every step. With ``lefthash`` the answer depends on the last token alone, and
the lists of tokens that came before are kept.
"""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.generation.step import StepState, last_tokens
from jaxpipe.generation.torch_random import is_among_first, randperm
from jaxpipe.generation.watermarking import WatermarkingConfig

Array = jax.Array

# Candidates that are looked at with "selfhash"; the number is Transformers'.
CANDIDATES = 40
_TABLE_SIZE = 1_000_003
_SEEDS = 2**64 - 1
# Of the lists that are kept, for all keys together by twice: a bit for each token of the vocabulary.
_KEPT_BYTES = 64 * 2**20
NO_CONTEXT = -1


@functools.lru_cache(maxsize=4)
def _hash_table(hashing_key: int) -> np.ndarray:
    """A fixed shuffle of numbers by which tokens are hashed, from 1 on."""
    return randperm(hashing_key, _TABLE_SIZE) + 1


class GreenLists:
    """The green tokens of one key and vocabulary, on the host.

    Args:
        hashing_key: of the draws.
        vocab_size: V.
        green: number of tokens that are green.
    """

    def __init__(self, hashing_key: int, vocab_size: int, green: int):
        self._key, self._vocab_size, self._green = hashing_key, vocab_size, green
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._most = max(_KEPT_BYTES // max(vocab_size // 8, 1), 1)

    def after(self, token: int) -> np.ndarray:
        """Returns which tokens are green after a token, (V,) bool, with ``lefthash``."""
        packed = self._kept.get(token)
        if packed is None:
            mask = np.zeros(self._vocab_size, bool)
            mask[randperm(self._key * token % _SEEDS, self._vocab_size, self._green)] = True
            packed = self._kept[token] = np.packbits(mask)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return np.unpackbits(packed, count=self._vocab_size).astype(bool)

    def is_green(self, window: Sequence[int]) -> bool:
        """Tells whether the last token of a window is green after those before it, with ``selfhash``."""
        table = _hash_table(self._key)
        hashes = [int(table[token % _TABLE_SIZE]) for token in window]
        # torch multiplies in 64 bits with a sign, which wrap around.
        products = [_wrapped(self._key * number * hashes[-1]) for number in hashes]
        return is_among_first(min(products) % _SEEDS, self._vocab_size, self._green, int(window[-1]))


def _wrapped(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


@functools.lru_cache(maxsize=2)
def green_lists(hashing_key: int, vocab_size: int, green: int) -> GreenLists:
    """Returns the lists of a key, those that were made before among them."""
    return GreenLists(hashing_key, vocab_size, green)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GreenListBias:
    """Raises the scores of green tokens, with a call to the host in every step.

    Attributes:
        bias: () float32.
        key: (2,) uint32, the hashing key's lower and upper half.
        green: () int32, number of tokens that are green.
        by_candidate: static, ``selfhash``.
        width: static, ``context_width``.
    """

    bias: Any
    key: Any
    green: Any
    by_candidate: bool = dataclasses.field(metadata={"static": True})
    width: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, config: WatermarkingConfig, vocab_size: int) -> "GreenListBias":
        """Makes the processor of a config.

        Raises:
            ValueError: the part of the vocabulary that should be green is less than a token.
        """
        green = green_tokens(config, vocab_size)
        key = np.asarray([config.hashing_key & 0xFFFFFFFF, config.hashing_key >> 32], np.uint32)
        by_candidate = config.seeding_scheme == "selfhash"
        return cls(np.float32(config.bias), key, np.int32(green), by_candidate, config.context_width)

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with the bias at green tokens; rows with too few tokens are left as they are."""
        history, lengths = state.history()
        size = logits.shape[1]
        count = self.width - 1 if self.by_candidate else 1
        context = last_tokens(history, lengths, count, NO_CONTEXT)  # (B, n), the last first
        context = jnp.where(lengths[:, None] >= self.width, context, NO_CONTEXT)
        marked = lengths >= self.width
        if not self.by_candidate:
            shape = jax.ShapeDtypeStruct(logits.shape, jnp.bool_)
            ask = functools.partial(_green_after, vocab_size=size)
            green = jax.pure_callback(ask, shape, self.key, self.green, context)
            return jnp.where(green, logits + self.bias, logits)
        _, candidates = jax.lax.top_k(logits, min(CANDIDATES, size))  # (B, C)
        shape = jax.ShapeDtypeStruct(candidates.shape, jnp.bool_)
        ask = functools.partial(_green_candidates, vocab_size=size)
        green = jax.pure_callback(ask, shape, self.key, self.green, context, candidates, marked)
        added = jnp.where(green, self.bias, 0.0)
        return logits.at[jnp.arange(len(logits))[:, None], candidates].add(added)


def green_tokens(config: WatermarkingConfig, vocab_size: int) -> int:
    """Returns how many tokens are green.

    Raises:
        ValueError: none is.
    """
    green = int(vocab_size * config.greenlist_ratio)
    if not green:
        raise ValueError(
            f"watermarking_config: greenlist_ratio={config.greenlist_ratio} of a vocabulary of {vocab_size} tokens is "
            "less than a token; raise greenlist_ratio."
        )
    return green


def _lists(key: Any, green: Any, vocab_size: int) -> GreenLists:
    low, high = (int(half) for half in np.asarray(key))
    return green_lists(high << 32 | low, vocab_size, int(green))


def _green_after(key: Any, green: Any, context: Any, *, vocab_size: int) -> np.ndarray:
    """Which tokens are green after the last ones (B, 1), (B, V) bool."""
    lists, last = _lists(key, green, vocab_size), np.asarray(context)[:, 0]
    none = np.zeros(vocab_size, bool)
    return np.stack([none if token == NO_CONTEXT else lists.after(int(token)) for token in last])


def _green_candidates(
    key: Any, green: Any, context: Any, candidates: Any, marked: Any, *, vocab_size: int
) -> np.ndarray:
    """Which candidates (B, C) are green after contexts (B, n), the last token first; (B, C) bool."""
    lists, found = _lists(key, green, vocab_size), np.zeros(np.shape(candidates), bool)
    for i, before in enumerate(np.asarray(context)):
        if not np.asarray(marked)[i]:
            continue
        own = [int(token) for token in before[::-1]]
        found[i] = [lists.is_green([*own, int(token)]) for token in np.asarray(candidates)[i]]
    return found
