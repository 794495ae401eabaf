"""Logits processors: traceable functions of fp32 logits, in the order of Transformers' ``_get_logits_processor``.

Each processor is a frozen dataclass and a pytree. Values that users vary are leaves, so another temperature runs
the same compiled loop; which processors there are, and the size buckets they work in, is structure.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpipe.generation.settle import Settled
from jaxpipe.generation.stopping import eos_array

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepState:
    """What is known when a token is chosen.

    Attributes:
        tokens: (B, S) int32, prompt and new tokens.
        valid: (B, S) bool, False at padding and at slots that are not yet written.
        prompt_lengths: (B,) int32, tokens of each prompt without padding.
        step: () int32, new tokens so far.
    """

    tokens: Array
    valid: Array
    prompt_lengths: Array
    step: Array


class LogitsProcessor(Protocol):
    """A traceable change of the logits."""

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns the changed logits.

        Args:
            logits: (B, V) float32.
            state: the tokens so far.
        """
        ...


def _drop(logits: Array, dropped: Array) -> Array:
    return jnp.where(dropped, -jnp.inf, logits)  # (B, V)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RepetitionPenalty:
    """Makes tokens of the prompt and of the answer so far less likely (Keskar et al. 2019, arXiv:1909.05858).

    Attributes:
        penalty: () float32, divides positive and multiplies negative logits; padding does not count.
    """

    penalty: Any

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns the penalised logits (B, V)."""
        rows = jnp.arange(logits.shape[0])[:, None]
        ids = jnp.where(state.valid, state.tokens, logits.shape[1])  # (B, S), out of range where not valid
        seen = jnp.zeros(logits.shape, bool).at[rows, ids].set(True, mode="drop")  # (B, V)
        return jnp.where(seen, jnp.where(logits < 0, logits * self.penalty, logits / self.penalty), logits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MinNewTokens:
    """Allows no end-of-sequence token before a number of new tokens.

    Attributes:
        min_new_tokens: () int32.
        eos_ids: (n,) int32, filled up with -1.
    """

    min_new_tokens: Any
    eos_ids: Any

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with -inf at the end-of-sequence tokens while it is too early."""
        vocab_size = logits.shape[1]
        ids = jnp.where(self.eos_ids < 0, vocab_size, self.eos_ids)
        is_eos = jnp.zeros(vocab_size, bool).at[ids].set(True, mode="drop")  # (V,)
        return _drop(logits, is_eos & (state.step < self.min_new_tokens))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ForcedTokens:
    """Allows none but certain tokens at one step.

    Attributes:
        step: () int32, new tokens before it.
        ids: (n,) int32, filled up with -1.
    """

    step: Any
    ids: Any

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) that at the step are 0 at the tokens and -inf elsewhere."""
        vocab_size = logits.shape[1]
        ids = jnp.where(self.ids < 0, vocab_size, self.ids)
        forced = jnp.full(vocab_size, -jnp.inf, logits.dtype).at[ids].set(0.0, mode="drop")  # (V,)
        return jnp.where(state.step == self.step, forced, logits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Temperature:
    """Divides the logits by ``temperature``, () float32."""

    temperature: Any

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns the scaled logits (B, V)."""
        return logits / self.temperature


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopK:
    """Keeps the k largest logits, and those equal to the k-th (Fan et al. 2018, arXiv:1805.04833).

    Attributes:
        k: () int32, at least 1.
        bucket: a static size of at least min(k, V) that is searched for the k-th value.
    """

    k: Any
    bucket: int = dataclasses.field(metadata={"static": True})

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with -inf below the k-th largest."""
        largest, _ = lax.top_k(logits, min(self.bucket, logits.shape[1]))  # (B, bucket)
        index = jnp.minimum(self.k, largest.shape[1]) - 1
        kth = lax.dynamic_index_in_dim(largest, index, axis=1)  # (B, 1)
        return _drop(logits, logits < kth)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopP:
    """Keeps the most likely tokens that hold a mass of ``top_p`` (nucleus; Holtzman et al. 2020, arXiv:1904.09751).

    Attributes:
        tail: () float32, 1 - top_p. Tokens whose cumulative mass, from the least likely up, is at most this go.
        candidates: a static number of tokens that a top-k before this one has left, or None.
    """

    tail: Any
    candidates: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with -inf outside the nucleus; the most likely token always stays."""
        vocab_size = logits.shape[1]
        if self.candidates is None or self.candidates >= vocab_size:
            return self._keep_nucleus(logits, jnp.sort(logits, axis=-1))
        size = self.candidates

        left = jnp.sum(logits > -jnp.inf, axis=-1, keepdims=True)  # (B, 1)
        largest, _ = lax.top_k(logits, size)  # (B, candidates)
        kept = self._keep_nucleus(logits, largest[:, ::-1])

        def sort_all(logits: Array, kept: Array) -> Array:
            return jnp.where(left <= size, kept, self._keep_nucleus(logits, jnp.sort(logits, axis=-1)))

        # A sort of the whole vocabulary is slow, and needed only by rows where ties at the k-th value left more tokens.
        return lax.cond(jnp.all(left <= size), lambda _, kept: kept, sort_all, logits, kept)

    def _keep_nucleus(self, logits: Array, ascending: Array) -> Array:
        """Drops the tail, given the ``ascending`` (B, n) logits that hold all the mass.

        Among equal logits at the border those of lower token id go first, as a stable ascending sort has them.
        """
        mass = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1)  # (B, n)
        in_tail = (mass <= self.tail).at[:, -1].set(False)
        tail_size = jnp.sum(in_tail, axis=-1, keepdims=True)  # (B, 1)
        border = jnp.take_along_axis(ascending, tail_size, axis=-1)  # (B, 1), the least logit that stays
        ties_in_tail = tail_size - jnp.sum(ascending < border, axis=-1, keepdims=True)
        tied = logits == border  # (B, V)
        return _drop(logits, (logits < border) | (tied & (jnp.cumsum(tied, axis=-1) <= ties_in_tail)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MinP:
    """Drops tokens less likely than ``min_p``, () float32, times the most likely (Nguyen et al., arXiv:2407.01082)."""

    min_p: Any

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with -inf at the unlikely tokens."""
        probabilities = jax.nn.softmax(logits, axis=-1)
        return _drop(logits, probabilities < self.min_p * jnp.max(probabilities, axis=-1, keepdims=True))


def processors_for(settled: Settled, vocab_size: int) -> tuple[LogitsProcessor, ...]:
    """Returns the processors that the settings ask for, in the order in which they act.

    Args:
        settled: the settings of a call.
        vocab_size: V, the width of the logits.

    Raises:
        ValueError: a token that is forced is not in the vocabulary.
    """
    processors: list[LogitsProcessor] = []
    if settled.repetition_penalty != 1.0:
        processors.append(RepetitionPenalty(np.float32(settled.repetition_penalty)))
    if settled.min_new_tokens > 0 and settled.eos_token_ids:
        processors.append(MinNewTokens(np.int32(settled.min_new_tokens), eos_array(settled.eos_token_ids)))
    processors += _forced(settled, vocab_size)
    if not settled.do_sample:
        return tuple(processors)
    if settled.temperature != 1.0:
        processors.append(Temperature(np.float32(settled.temperature)))
    bucket = None
    if 0 < settled.top_k < vocab_size:
        bucket = min(1 << (settled.top_k - 1).bit_length(), vocab_size)
        processors.append(TopK(np.int32(settled.top_k), bucket))
    if settled.top_p < 1.0:
        processors.append(TopP(np.float32(1.0 - settled.top_p), bucket))
    if settled.min_p > 0.0:
        processors.append(MinP(np.float32(settled.min_p)))
    return tuple(processors)


def _forced(settled: Settled, vocab_size: int) -> list[LogitsProcessor]:
    # Forced as the first token only where the prompt is a start token alone, as in encoder-decoders.
    first = settled.forced_bos_token_id if settled.prompt_length == 1 else None
    asked = {
        "forced_bos_token_id": (0, () if first is None else (first,)),
        "forced_eos_token_id": (settled.max_new_tokens - 1, settled.forced_eos_token_ids),
    }
    for name, (_, ids) in asked.items():
        if ids and max(ids) >= vocab_size:
            raise ValueError(f"{name}={max(ids)}: expected a token id from 0 to {vocab_size - 1}.")
    return [ForcedTokens(np.int32(step), eos_array(ids)) for step, ids in asked.values() if ids]


def process(processors: Sequence[LogitsProcessor], logits: Array, state: StepState) -> Array:
    """Applies processors in order.

    Args:
        processors: from `processors_for`.
        logits: (B, V) of any float dtype.
        state: the tokens so far.

    Returns:
        (B, V) float32.
    """
    logits = logits.astype(jnp.float32)
    for processor in processors:
        logits = processor(logits, state)
    return logits
