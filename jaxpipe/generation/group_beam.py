"""Diverse beam search on the device (Vijayakumar et al., arXiv:1610.02424), with the rules of Transformers 4.49.

The beams of a prompt are divided into G groups, and each is a beam search of its own. In a step the groups take turns:
a token costs what beams of earlier groups have chosen it in this step. `beam` holds what is the same in all searches;
here its B counts groups, those of a prompt one after another.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe.generation.beam import (
    BeamChoice,
    BeamState,
    Candidates,
    Finished,
    accumulated,
    advance_beams,
    best_candidates,
    go_on,
    merge,
    next_step,
    reading,
    record,
    seen,
    take_ended,
)
from jaxpipe.generation.loop import next_logits, read_prompts
from jaxpipe.generation.processors import process
from jaxpipe.generation.processors_groups import HammingDiversity
from jaxpipe.generation.stopping import is_eos
from jaxpipe.nn.functional import Functional, Leaves

Array = jax.Array

# What of a state belongs to a group, and what of that a turn changes.
_CHANGED = ("tokens", "current", "parents", "scores", "origins", "finished", "done")
_OF_GROUP = (*_CHANGED, "valid", "position", "prompt_lengths")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Turns:
    """A step whose groups take turns.

    Attributes:
        state: of all groups; those that had their turn are ahead by a token, but for what all of them share.
        logits: (B * N, V) float32, after the last tokens of the step before.
        scores: (B * N, V) float32, processed log-probabilities of the groups that had their turn.
        chosen: (prompts, G * N) int32, tokens of the groups that had their turn, -1 of the others.
        groups: G.
    """

    state: BeamState
    logits: Array
    scores: Array
    chosen: Array
    groups: int = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """Prompts, and groups of each."""
        return self.chosen.shape[0], self.groups


def begin(logits: Array, state: BeamState, choice: BeamChoice) -> Turns:
    """Begins a step, from the logits (B * N, V) after the beams' last tokens."""
    logits = logits.astype(jnp.float32)
    scores = jnp.zeros((len(state.tokens), logits.shape[1]), jnp.float32)
    chosen = jnp.full((len(state.done) // choice.groups, choice.groups * choice.beams), -1, jnp.int32)
    return Turns(state, logits, scores, chosen, choice.groups)


def propose_group(turns: Turns, group: Array, choice: BeamChoice) -> tuple[Turns, Candidates]:
    """Finds the continuations of the beams of a group, () int32; candidates are (prompts, C)."""
    own = _of_group(turns, group)
    logits = _take(turns.logits, group, turns.shape)
    # A group is told what earlier ones have chosen.
    processors = tuple(
        replace(processor, chosen=turns.chosen) if isinstance(processor, HammingDiversity) else processor
        for processor in choice.processors
    )
    scores = process(processors, jax.nn.log_softmax(logits, axis=-1), seen(own))
    found = best_candidates(accumulated(scores, own), None, choice.candidates)
    return replace(turns, scores=_put(turns.scores, scores, group, turns.shape)), found


def select_group(turns: Turns, group: Array, found: Candidates, stopped: Array, choice: BeamChoice) -> Turns:
    """Takes those candidates of a group that end to its finished sequences, and goes on with the best others.

    Args:
        turns: of the step.
        group: () int32.
        found: of `propose_group`.
        stopped: (prompts, C) bool, candidates that end for a reason of the host's.
        choice: see `BeamChoice`.
    """
    own = _of_group(turns, group)
    prompts, beams, length = len(own.done), choice.beams, own.step + 1
    rows = beams * (group + choice.groups * jnp.arange(prompts, dtype=jnp.int32))[:, None]
    ends = stopped | is_eos(found.tokens, choice.eos_ids)
    finished = _merge(own.finished, take_ended(own, found, ends, rows, choice))
    following = go_on(own, found, ends, rows)

    reach = jnp.where(choice.hopeful, choice.max_new_tokens, length)
    hopeless = jnp.min(finished.scores, axis=1) >= found.scores[:, 0] / choice.divisors[reach]
    done = jnp.all(finished.ended, axis=1) & (choice.stop_when_full | hopeless)
    done |= own.done | jnp.all(ends, axis=1)
    # What goes on at the greatest length ends there.
    open_ = Candidates(following.current.reshape(prompts, beams), following.parents, following.scores)
    is_last = (length >= choice.max_new_tokens) & ~done
    last = take_ended(own, open_, jnp.broadcast_to(is_last[:, None], following.scores.shape), rows, choice)
    following = replace(following, finished=_merge(finished, last), done=done | is_last)

    state = turns.state
    changed = {
        name: jax.tree.map(
            lambda x, part: _put(x, part, group, turns.shape), getattr(state, name), getattr(following, name)
        )
        for name in _CHANGED
    }
    tokens = jnp.where(own.done[:, None], choice.pad_id, following.current.reshape(prompts, beams))
    chosen = lax.dynamic_update_slice(turns.chosen, tokens.astype(jnp.int32), (0, group * beams))
    return replace(turns, state=replace(state, **changed), chosen=chosen)


def close(state: BeamState, logits: Array, scores: Array, done: Array, choice: BeamChoice) -> BeamState:
    """Ends a step in which every group had its turn.

    Args:
        state, logits, scores: as in `Turns`.
        done: (B,) bool, groups that were done before the step.
        choice: see `BeamChoice`.
    """
    return next_step(replace(record(replace(state, done=done), logits, scores, choice), done=state.done))


def take_turns(logits: Array, state: BeamState, choice: BeamChoice) -> BeamState:
    """Chooses the next token of all beams, from the logits (B * N, V) after their last."""

    def turn(group: Array, turns: Turns) -> Turns:
        turns, found = propose_group(turns, group, choice)
        return select_group(turns, group, found, jnp.zeros(found.tokens.shape, bool), choice)

    turns = lax.fori_loop(0, choice.groups, turn, begin(logits, state, choice))
    return close(turns.state, turns.logits, turns.scores, state.done, choice)


def _merge(finished: Finished, added: Finished) -> Finished:
    """The best N of both, where what has ended comes before what has not, however low it scores."""

    def key(both: Finished) -> Array:
        return jnp.where(both.ended, jnp.maximum(both.scores, jnp.finfo(jnp.float32).min), -jnp.inf)

    return merge(finished, added, key)


def _of_group(turns: Turns, group: Array) -> BeamState:
    """The state of one group of every prompt; cache, step and what is recorded are those of all."""
    state = turns.state
    parts = {name: jax.tree.map(lambda x: _take(x, group, turns.shape), getattr(state, name)) for name in _OF_GROUP}
    return replace(state, **parts)


def _take(x: Array, group: Array, shape: tuple[int, int]) -> Array:
    """Of x (prompts * G * n, ...) the part of a group, (prompts * n, ...); `shape` are prompts and G."""
    parts = x.reshape(*shape, -1, *x.shape[1:])
    return lax.dynamic_index_in_dim(parts, group, axis=1, keepdims=False).reshape(-1, *x.shape[1:])


def _put(x: Array, part: Array, group: Array, shape: tuple[int, int]) -> Array:
    """Returns x (prompts * G * n, ...) with the part of a group, (prompts * n, ...), in it."""
    parts = x.reshape(*shape, -1, *x.shape[1:])
    own = part.reshape(shape[0], 1, *parts.shape[2:])
    return lax.dynamic_update_slice_in_dim(parts, own, group, axis=1).reshape(x.shape)


@dataclass(frozen=True)
class GroupBeams:
    """The jitted functions of a diverse beam search, made by `make_group_beams`.

    Attributes:
        prefill: as of `loop.make_prefill`, with a `BeamChoice`; returns a state and the logits (B * N, V).
        decode: the leaves, the state, donated, its logits and the choice in; out the last state, or that in which the
            slots are used up.
        resume: goes on from there after the cache has grown: the leaves, the state, donated, and the choice in; a
            state out as of `decode`.
        advance: the leaves, the state, donated, and the choice in; the state and its logits out.
        begin: the logits, the state, donated, and the choice in; a step out.
        propose: the step, donated, a group and the choice in; the step and the group's candidates out.
        select: the step, donated, the group, its candidates, those that the host ends (prompts, C), and the choice in;
            the step out.
        close: the step's state, donated, its logits and scores, which groups were done before it, (B,) bool, and the
            choice in; a state out.
    """

    prefill: Callable[..., tuple[BeamState, Array]]
    decode: Callable[..., BeamState]
    resume: Callable[..., BeamState]
    advance: Callable[..., tuple[BeamState, Array]]
    begin: Callable[..., Turns]
    propose: Callable[..., tuple[Turns, Candidates]]
    select: Callable[..., Turns]
    close: Callable[..., BeamState]


def make_group_beams(
    functional: Functional, read: Callable[..., Any] = read_prompts, forward: Callable[..., Any] = next_logits
) -> GroupBeams:
    """Makes the jitted functions of a model; `read` and `forward` call it, as `read_prompts` and `next_logits` do."""

    def advance(leaves: Leaves, state: BeamState, choice: BeamChoice) -> tuple[BeamState, Array]:
        return advance_beams(functional, forward, leaves, state)

    def resume(leaves: Leaves, state: BeamState, choice: BeamChoice) -> BeamState:
        def goes_on(state: BeamState) -> Array:
            # At the greatest length every group is done.
            return ~jnp.all(state.done) & (state.cache.slot + 1 < state.tokens.shape[1])

        def step(state: BeamState) -> BeamState:
            state, logits = advance(leaves, state, choice)
            return take_turns(logits, state, choice)

        return lax.while_loop(goes_on, step, state)

    def decode(leaves: Leaves, state: BeamState, logits: Array, choice: BeamChoice) -> BeamState:
        return resume(leaves, take_turns(logits, state, choice), choice)

    return GroupBeams(
        prefill=jax.jit(reading(functional, read), static_argnums=(6, 7, 8)),
        decode=jax.jit(decode, donate_argnums=1),
        resume=jax.jit(resume, donate_argnums=1),
        advance=jax.jit(advance, donate_argnums=1),
        begin=jax.jit(begin, donate_argnums=1),
        propose=jax.jit(propose_group, donate_argnums=0),
        select=jax.jit(select_group, donate_argnums=0),
        close=jax.jit(close, donate_argnums=0),
    )
