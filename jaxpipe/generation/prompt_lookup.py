"""Prompt lookup: what followed the last tokens where they stood before is proposed to come again.

After github.com/apoorvumang/prompt-lookup-decoding, whose order of search Transformers' candidate generator has too.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxpipe.generation.speculative import Rule, SpeculativeState, write

Array = jax.Array


def find(tokens: Array, lengths: Array, ngram: Array, most: int) -> tuple[Array, Array]:
    """Finds the longest n-gram before the end of each row that its last tokens repeat, the leftmost of equals.

    Args:
        tokens: (B, S) int32 from column 0 on.
        lengths: (B,) int32, tokens of each row.
        ngram: () int32, the largest n.
        most: static, at least ``ngram``.

    Returns:
        the columns (B,) int32 that follow the n-grams, and whether there are any, (B,) bool.
    """
    slots = tokens.shape[1]
    place = jnp.arange(slots, dtype=jnp.int32)
    same = jnp.ones(tokens.shape, bool)
    matched = jnp.zeros(tokens.shape, jnp.int32)  # n of the longest n-gram that ends before each column
    for back in range(1, min(most, slots) + 1):
        ends = jnp.take_along_axis(tokens, jnp.maximum(lengths - back, 0)[:, None], axis=1)  # (B, 1)
        before = jnp.pad(tokens, ((0, 0), (back, 0)), constant_values=-1)[:, :slots]
        same = same & (before == ends) & (place >= back) & (back <= ngram)
        matched = matched + same
    matched = jnp.where(place < lengths[:, None], matched, 0)
    found = jnp.argmax(matched, axis=1).astype(jnp.int32)
    return found, jnp.max(matched, axis=1) > 0


def propose(tokens: Array, lengths: Array, ngram: Array, most: int, count: int) -> tuple[Array, Array]:
    """Proposes what followed the last tokens where they stood before.

    That ends where the row does; from there on it is taken to come again, as in a cycle.

    Args:
        tokens, lengths, ngram, most: as of `find`.
        count: static, number of tokens to propose.

    Returns:
        the tokens (B, count) int32, and whether there are any, (B,) bool.
    """
    start, found = find(tokens, lengths, ngram, most)
    period = jnp.maximum(lengths - start, 1)[:, None]
    place = start[:, None] + jnp.arange(count, dtype=jnp.int32) % period
    return jnp.take_along_axis(tokens, place, axis=1), found


def look_up(state: SpeculativeState, rule: Rule) -> SpeculativeState:
    """Writes what is proposed behind each row's tokens."""
    proposed, found = propose(state.tokens, state.lengths, rule.ngram, rule.most, rule.width - 1)
    offered = jnp.clip(state.left(rule) - 1, 0, state.wanted)
    return replace(
        state,
        tokens=write(state.tokens, proposed, state.lengths),
        offered=jnp.where(found & ~state.done, offered, 0),
    )
