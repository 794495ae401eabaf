"""Logits processors that narrow what is sampled from: temperature, top-k, top-p and their kin.

``keep`` is a number of tokens, the most likely ones, that stay whatever the rule: 1, and more in beam sampling.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe.generation.step import StepState, drop

Array = jax.Array


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
        return drop(logits, logits < kth)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopP:
    """Keeps the most likely tokens that hold a mass of ``top_p`` (nucleus; Holtzman et al. 2020, arXiv:1904.09751).

    Attributes:
        tail: () float32, 1 - top_p. Tokens whose cumulative mass, from the least likely up, is at most this go.
        candidates: a static number of tokens that a top-k before this one has left, or None.
        keep: static, see the module.
    """

    tail: Any
    candidates: int | None = dataclasses.field(default=None, metadata={"static": True})
    keep: int = dataclasses.field(default=1, metadata={"static": True})

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with -inf outside the nucleus; the most likely tokens always stay."""
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
        in_tail = (mass <= self.tail).at[:, -self.keep :].set(False)
        tail_size = jnp.sum(in_tail, axis=-1, keepdims=True)  # (B, 1)
        border = jnp.take_along_axis(ascending, tail_size, axis=-1)  # (B, 1), the least logit that stays
        ties_in_tail = tail_size - jnp.sum(ascending < border, axis=-1, keepdims=True)
        tied = logits == border  # (B, V)
        return drop(logits, (logits < border) | (tied & (jnp.cumsum(tied, axis=-1) <= ties_in_tail)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MinP:
    """Drops tokens that are much less likely than the most likely one (Nguyen et al. 2024, arXiv:2407.01082).

    Attributes:
        min_p: () float32, the smallest part of the most likely token's probability.
        keep: static, see the module.
    """

    min_p: Any
    keep: int = dataclasses.field(default=1, metadata={"static": True})

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with -inf at the unlikely tokens."""
        probabilities = jax.nn.softmax(logits, axis=-1)
        unlikely = probabilities < self.min_p * jnp.max(probabilities, axis=-1, keepdims=True)
        return drop(logits, _spared(unlikely, probabilities, self.keep))


def _spared(dropped: Array, ranks: Array, keep: int) -> Array:
    """Returns ``dropped`` (B, V) without the ``keep`` tokens of highest rank (B, V), the lower ids among equals."""
    if keep == 1:  # the rules themselves keep one
        return dropped
    _, best = lax.top_k(ranks, min(keep, ranks.shape[1]))  # (B, keep)
    return dropped.at[jnp.arange(ranks.shape[0])[:, None], best].set(False)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopH:
    """Keeps the most likely tokens up to a part of the entropy (Potraghloo et al. 2025, arXiv:2509.02510).

    Attributes:
        top_h: () float32, the part. Of the 100 most likely tokens, those are kept whose cumulative entropy, from the
            most likely down, is at most this part of the entropy of all 100.
    """

    top_h: Any

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with -inf at the tokens beyond; the most likely one always stays."""
        largest, ids = lax.top_k(logits, min(100, logits.shape[1]))  # (B, n)
        probabilities, terms = _entropy_terms(largest)
        kept = jnp.cumsum(terms, axis=-1) <= self.top_h * jnp.sum(terms, axis=-1, keepdims=True)
        kept = (kept & (probabilities > 0)).at[:, 0].set(True)
        rows = jnp.arange(logits.shape[0])[:, None]
        return drop(logits, jnp.ones(logits.shape, bool).at[rows, ids].set(~kept))


def _entropy_terms(logits: Array) -> tuple[Array, Array]:
    """Returns probabilities and each token's part of the entropy in nats, both (B, n)."""
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    probabilities = jnp.exp(log_probabilities)
    return probabilities, jnp.where(probabilities > 0, -probabilities * log_probabilities, 0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TypicalP:
    """Keeps tokens whose surprise is nearest to the entropy (Meister et al. 2022, arXiv:2202.00666).

    Attributes:
        mass: () float32, the probability that the tokens hold that are kept.
        keep: static; here the tokens nearest to the entropy stay.
    """

    mass: Any
    keep: int = dataclasses.field(default=1, metadata={"static": True})

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with -inf at the untypical tokens; those equal to the last typical one stay."""
        _, terms = _entropy_terms(logits)
        distance = jnp.abs(-jax.nn.log_softmax(logits, axis=-1) - jnp.sum(terms, axis=-1, keepdims=True))  # (B, V)
        ascending, by_distance = lax.sort((distance, logits), dimension=1, num_keys=1, is_stable=True)
        mass = jnp.cumsum(jax.nn.softmax(by_distance, axis=-1), axis=-1)
        last = jnp.minimum(jnp.sum(mass < self.mass, axis=-1, keepdims=True), logits.shape[1] - 1)  # (B, 1)
        border = jnp.take_along_axis(ascending, last, axis=-1)
        return drop(logits, _spared(distance > border, -distance, self.keep))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EpsilonCutoff:
    """Drops tokens below a probability (Hewitt et al. 2022, arXiv:2210.15191).

    Attributes:
        epsilon: () float32.
        keep: static, see the module; those equal to the last of them stay too.
    """

    epsilon: Any
    keep: int = dataclasses.field(default=1, metadata={"static": True})

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with -inf at the unlikely tokens."""
        return _cut(logits, jax.nn.softmax(logits, axis=-1), self.epsilon, self.keep)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EtaCutoff:
    """Drops tokens below a probability that falls with the entropy (Hewitt et al. 2022, arXiv:2210.15191).

    Attributes:
        epsilon: () float32; the bound is the smaller of it and ``sqrt(epsilon) * exp(-entropy)``.
        keep: static, see the module; those equal to the last of them stay too.
    """

    epsilon: Any
    keep: int = dataclasses.field(default=1, metadata={"static": True})

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with -inf at the unlikely tokens."""
        _, terms = _entropy_terms(logits)
        entropy = jnp.sum(terms, axis=-1, keepdims=True)  # (B, 1)
        bound = jnp.minimum(self.epsilon, jnp.sqrt(self.epsilon) * jnp.exp(-entropy))
        return _cut(logits, jax.nn.softmax(logits, axis=-1), bound, self.keep)


def _cut(logits: Array, probabilities: Array, bound: Array, keep: int) -> Array:
    largest, _ = lax.top_k(logits, min(keep, logits.shape[1]))
    return drop(logits, (probabilities < bound) & (logits < largest[:, -1:]))
