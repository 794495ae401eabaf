"""Assisted decoding: a smaller model of the same vocabulary proposes tokens, by steps of its own with its own cache."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe.generation.loop import Choice
from jaxpipe.generation.processors import process
from jaxpipe.generation.sampling import greedy, sample
from jaxpipe.generation.speculative import DRAFT, Rule, SpeculativeState, branch, columns, write
from jaxpipe.generation.stopping import is_eos
from jaxpipe.models.config import ModelConfig
from jaxpipe.nn.cache import Cache
from jaxpipe.nn.functional import Functional, Leaves

Array = jax.Array


class Assistant(NamedTuple):
    """A model that proposes tokens.

    Attributes:
        functional: the model taken apart.
        leaves: its weights.
        config: its configuration.
        read: calls it on prompts, as `read_prompts` does.
        forward: calls it on more tokens of every row, as `next_logits` does.
        defaults: its generation settings, in which how much it proposes may stand.
        name: of the model, for messages.
    """

    functional: Functional
    leaves: Leaves
    config: ModelConfig
    read: Callable[..., Any]
    forward: Callable[..., Any]
    defaults: Any
    name: str


class _Drafting(NamedTuple):
    """The state of the inner loop: the state, the row's last token, which rows go on, and scores (B, T - 1, V)."""

    state: SpeculativeState
    cache: Cache
    token: Array
    going: Array
    made: Array
    scores: Array | None


def _to_vocabulary(logits: Array, size: int) -> Array:
    """Brings logits (B, V') to another number of entries; those that are added cannot be drawn.

    Models of one vocabulary are padded to different sizes.
    """
    own = logits.shape[-1]
    if own >= size:
        return logits[:, :size]
    return jnp.pad(logits, ((0, 0), (0, size - own)), constant_values=-jnp.inf)


def draft(
    functional: Functional,
    forward: Callable[..., Any],
    leaves: Leaves,
    state: SpeculativeState,
    choice: Choice,
    rule: Rule,
    vocab_size: int,
) -> tuple[SpeculativeState, Array | None]:
    """Writes what the assistant proposes behind each row's tokens.

    Args:
        functional: the assistant.
        forward: calls it, as `loop.next_logits` does.
        leaves: its weights.
        state: before the proposal.
        choice: of the model; the assistant's logits go through the same processors.
        rule: see `Rule`.
        vocab_size: V, of the model.

    Returns:
        the state, and the scores (B, T - 1, V) that tokens were drawn from, None where they were not drawn.
    """
    assert state.draft is not None
    batch, most = len(state.lengths), rule.width - 1
    limit = jnp.minimum(state.wanted, state.left(rule) - 1)  # (B,)
    keys = branch(choice.keys, DRAFT) if choice.do_sample else None

    def propose(now: _Drafting, logits: Array) -> _Drafting:
        """Chooses the next token of every row from logits (B, V'); what a row does not go on with is not offered."""
        own, made = now.state, now.made
        scores = process(choice.processors, _to_vocabulary(logits, vocab_size), own.seen(own.offered))
        token = greedy(scores) if keys is None else sample(keys, own.lengths + made, scores)
        chance = jnp.take_along_axis(jax.nn.softmax(scores, axis=-1), token[:, None], axis=1)[:, 0]
        offered = own.offered + now.going
        sure = (chance >= rule.threshold) & ~is_eos(token, choice.eos_ids)
        kept = now.scores
        if kept is not None:
            kept = lax.dynamic_update_slice(kept, scores[:, None], (0, made, 0))
        own = replace(own, tokens=write(own.tokens, token[:, None], own.lengths + own.offered), offered=offered)
        return _Drafting(own, now.cache, token, now.going & sure & (offered < limit), made + 1, kept)

    def call(cache: Cache, tokens: Array, positions: Array) -> tuple[Array, Cache]:
        out = forward(functional, leaves, tokens, positions, cache)
        return out.logits[:, -1], out.cache

    def step(now: _Drafting) -> _Drafting:
        positions = now.state.lengths[:, None] + now.made - 1
        logits, cache = call(now.cache, now.token[:, None], positions)
        return propose(now._replace(cache=cache), logits)

    # The two last tokens: the cache may lack the one before the last, if all that was proposed was accepted.
    start = state.lengths - 2
    logits, cache = call(state.draft, columns(state.tokens, start, 2), start[:, None] + jnp.arange(2))
    going = ~state.done & (limit > 0)
    kept = jnp.zeros((batch, most, vocab_size), jnp.float32) if choice.do_sample else None
    fresh = replace(state, offered=jnp.zeros_like(state.offered), draft=None)
    now = _Drafting(fresh, cache, jnp.zeros((batch,), jnp.int32), going, jnp.zeros((), jnp.int32), kept)
    now = lax.while_loop(lambda now: jnp.any(now.going) & (now.made < most), step, propose(now, logits))
    return replace(now.state, draft=replace(now.cache, slot=state.draft.slot)), now.scores
