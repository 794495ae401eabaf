"""Beam search and beam sampling on the device, with the rules of Transformers 5.23.

A prompt is read once; then N beams of each prompt are N rows of the cache. A step proposes the C likeliest (or drawn)
continuations of a prompt's beams, takes those that end into the prompt's finished sequences where they are among the
N best, and goes on with the N best that do not end.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe.generation.beam_cache import common_slots, pick_beams, reorder_cache, repeat_cache
from jaxpipe.generation.filled import Filled
from jaxpipe.generation.loop import next_logits, read_prompts
from jaxpipe.generation.processors import LogitsProcessor, StepState, broken_rows, process
from jaxpipe.generation.stopping import is_eos
from jaxpipe.nn.cache import DENSE, Cache, CacheLayout
from jaxpipe.nn.functional import Functional, Leaves

Array = jax.Array

# Far below every real score, and yet finite: what has this score gives way to anything, and fills up where there is
# nothing else. The value is Transformers'.
UNLIKELY = -1.0e9


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BeamChoice:
    """How beams are continued, and what ends them.

    Attributes:
        processors: applied to the log-probabilities in order.
        keys: (B,) PRNG keys of the prompts, None where nothing is drawn.
        eos_ids: (n,) int32, -1 where unused.
        pad_id: () int32, what follows the end of a sequence.
        max_new_tokens: () int32, at which every sequence ends.
        divisors: (S + 1,) float32, by which the score of a sequence with 0, 1, ... new tokens is divided.
        stop_when_full: () bool, a prompt is done once it has N finished sequences (``early_stopping=True``).
        hopeful: () bool, running beams are compared with finished ones as if they had the greatest length
            (``early_stopping="never"`` where length is rewarded), not their present one.
        do_sample: draw, else take the likeliest.
        beams: N.
        candidates: C, at least 2 N.
        groups: searches of each prompt, each with N beams of its own; B counts searches, prompt by prompt.
        record: which of ``"scores"`` (processed log-probabilities) and ``"logits"`` are kept.
    """

    processors: tuple[LogitsProcessor, ...]
    keys: Any
    eos_ids: Any
    pad_id: Any
    max_new_tokens: Any
    divisors: Any
    stop_when_full: Any
    hopeful: Any
    do_sample: bool = field(metadata={"static": True})
    beams: int = field(metadata={"static": True})
    candidates: int = field(metadata={"static": True})
    groups: int = field(default=1, metadata={"static": True})
    record: tuple[str, ...] = field(default=(), metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Finished:
    """The best finished sequences of each prompt, the best first; not yet found ones score `UNLIKELY`.

    Attributes:
        tokens: (B, N, S) int32, in the slots that they had in the cache.
        origins: (B, N, S) int32, for each new token the row of (B * N) that it continued; -1 elsewhere.
        scores: (B, N) float32, divided by the length's divisor.
        ended: (B, N) bool, found.
    """

    tokens: Array
    origins: Array
    scores: Array
    ended: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Candidates:
    """Continuations of the beams of each prompt: tokens, the beams they continue, accumulated scores, all (B, C).

    In order of score, or in the order in which they were drawn.
    """

    tokens: Array
    beams: Array
    scores: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BeamState:
    """Everything that a step reads and writes; donated, so it is updated in place. Rows are B prompts times N beams.

    Attributes:
        cache: of the rows, its slots those of `tokens`.
        tokens: (B * N, S) int32, each row's prompt from slot 0, its new tokens from the common slot P on.
        valid: (B * N, S) bool, which slots hold a token.
        current: (B * N,) int32, the token chosen last, not yet in the cache.
        parents: (B, N) int32, the beam whose cache the row has to take over.
        common: () int32, the slots of the cache before it are the same for all beams of a prompt.
        position: (B * N,) int32, of the current token in its row.
        prompt_lengths: (B * N,) int32.
        scores: (B, N) float32, sums of processed log-probabilities, the greatest first.
        origins: (B, N, S) int32, as in `Finished`.
        finished: the sequences that ended.
        done: (B,) bool, prompts whose finished sequences stay as they are.
        broken: (B,) bool, prompts with a beam whose logits were NaN before they were done.
        step: () int32, new tokens so far.
        recorded: name -> (B * N, n, V) float32, of the n new tokens.
    """

    cache: Cache
    tokens: Array
    valid: Array
    current: Array
    parents: Array
    common: Array
    position: Array
    prompt_lengths: Array
    scores: Array
    origins: Array
    finished: Finished
    done: Array
    broken: Array
    step: Array
    recorded: dict[str, Array]


def first_beams(
    out: Any, prompts: Array, valid: Array, idle: Array, choice: BeamChoice, slots: int, recorded: int
) -> tuple[BeamState, Array]:
    """Returns the state after a prefill of the prompts, each repeated for its beams, and the logits (B * N, V).

    Args:
        out: of the model, with logits (prompts, 1, V) of each prompt's last token, and the cache; of several rows for
            each prompt where the first processor makes one row of logits of them.
        prompts: (prompts, P) int32 that the cache holds.
        valid: (prompts, P) bool, False at padding, which is on the right.
        idle: (prompts,) bool, those that are only there to fill the batch.
        choice: see `BeamChoice`.
        slots: S, of the cache.
        recorded: number of new tokens to record.
    """
    batch, width, beams = prompts.shape[0] * choice.groups, prompts.shape[1], choice.beams

    def repeat(x: Array) -> Array:
        rows = jnp.repeat(x.reshape(len(prompts), -1, *x.shape[1:]), choice.groups * beams, axis=0)
        return rows.reshape(-1, *x.shape[1:])

    logits = repeat(out.logits[:, 0])  # (B * N, V)
    lengths = jnp.sum(valid, axis=1, dtype=jnp.int32)
    pad = ((0, 0), (0, slots - width))
    # All beams are alike as yet: the first one alone competes, or the others would find the same continuations.
    scores = jnp.full((batch, beams), UNLIKELY, jnp.float32).at[:, 0].set(0.0)
    origins = jnp.full((batch, beams, slots), -1, jnp.int32)
    state = BeamState(
        cache=repeat_cache(out.cache, repeat),
        tokens=repeat(jnp.pad(prompts, pad, constant_values=choice.pad_id)),
        valid=repeat(jnp.pad(valid, pad)),
        current=jnp.zeros((batch * beams,), jnp.int32),
        parents=jnp.broadcast_to(jnp.arange(beams, dtype=jnp.int32), (batch, beams)),
        common=out.cache.slot,
        position=repeat(lengths - 1),
        prompt_lengths=repeat(lengths),
        scores=scores,
        origins=origins,
        finished=Finished(
            tokens=jnp.full((batch, beams, slots), choice.pad_id, jnp.int32),
            origins=origins,
            scores=jnp.full((batch, beams), UNLIKELY, jnp.float32),
            ended=jnp.zeros((batch, beams), bool),
        ),
        done=jnp.repeat(idle, choice.groups),
        broken=jnp.zeros((batch,), bool),
        step=jnp.zeros((), jnp.int32),
        recorded={name: jnp.zeros((batch * beams, recorded, logits.shape[1]), jnp.float32) for name in choice.record},
    )
    return state, logits


def propose(logits: Array, state: BeamState, choice: BeamChoice) -> tuple[BeamState, Candidates]:
    """Finds the continuations of the beams, from the logits (B * N, V) after their last tokens."""
    state, scores = score(logits, state, choice)
    noise = None
    if choice.do_sample:
        position = state.position.reshape(state.scores.shape)[:, 0] + 1
        noise = _noise(choice.keys, position, (choice.beams, scores.shape[1]))
    return state, best_candidates(accumulated(scores, state), noise, choice.candidates)


def score(logits: Array, state: BeamState, choice: BeamChoice) -> tuple[BeamState, Array]:
    """Returns the processed log-probabilities (B * N, V) of logits, taken down in the state.

    Where the first processor makes one row of several, logits are (B * N * n, V), the first of each n the model's own.
    """
    logits = logits.astype(jnp.float32)
    scores = process(choice.processors, jax.nn.log_softmax(logits, axis=-1), seen(state))
    return record(state, logits, scores, choice), scores


def seen(state: BeamState) -> StepState:
    """Returns what processors are told."""
    return StepState(state.tokens, state.valid, state.prompt_lengths, state.step)


def record(state: BeamState, logits: Array, scores: Array, choice: BeamChoice) -> BeamState:
    """Takes down logits and processed log-probabilities, as far as they are asked for, and NaN; see `score`."""
    own = logits.reshape(len(scores), -1, logits.shape[-1])[:, 0]
    values = {"scores": scores, "logits": own}
    recorded = {
        name: lax.dynamic_update_slice(state.recorded[name], values[name][:, None], (0, state.step, 0))
        for name in choice.record
    }
    broken = jnp.any(broken_rows(choice.processors, logits).reshape(len(state.done), -1), axis=1) & ~state.done
    return replace(state, broken=state.broken | broken, recorded=recorded)


def accumulated(scores: Array, state: BeamState) -> Array:
    """Returns the scores (B, N, V) of the beams with each token, from processed log-probabilities (B * N, V)."""
    return scores.reshape(*state.scores.shape, -1) + state.scores[:, :, None]


def _noise(keys: Array, position: Array, shape: tuple[int, ...]) -> Array:
    """Gumbel noise (B, *shape), of each prompt's key and position: the largest sums with it are draws."""

    def draw(key: Array, position: Array) -> Array:
        return jax.random.gumbel(jax.random.fold_in(key, position), shape, jnp.float32)

    return jax.vmap(draw)(keys, position.astype(jnp.uint32))


def best_candidates(total: Array, noise: Array | None, count: int) -> Candidates:
    """The `count` greatest of total (B, N, V), or as many draws without replacement from its softmax over N and V.

    The greatest of each beam come first, then the greatest of those: a search through V is done in parallel, and the
    order is the same.
    """
    batch, _, vocabulary = total.shape
    best, tokens = lax.top_k(total if noise is None else total + noise, min(count, vocabulary))  # (B, N, c)
    scores = best if noise is None else jnp.take_along_axis(total, tokens, axis=2)
    _, index = lax.top_k(best.reshape(batch, -1), count)  # (B, C)
    return Candidates(
        tokens=jnp.take_along_axis(tokens.reshape(batch, -1), index, axis=1).astype(jnp.int32),
        beams=(index // best.shape[2]).astype(jnp.int32),
        scores=jnp.take_along_axis(scores.reshape(batch, -1), index, axis=1),
    )


def select(state: BeamState, found: Candidates, stopped: Array, choice: BeamChoice) -> BeamState:
    """Takes the candidates that end to the finished sequences, and goes on with the best others.

    Args:
        state: the beams that the candidates continue.
        found: the candidates.
        stopped: (B, C) bool, candidates that end for a reason of the host's.
        choice: see `BeamChoice`.
    """
    batch, beams = state.scores.shape
    length = state.step + 1
    rows = beams * jnp.arange(batch, dtype=jnp.int32)[:, None]  # of each prompt's first beam
    ends = stopped | is_eos(found.tokens, choice.eos_ids) | (length >= choice.max_new_tokens)  # (B, C)
    added = take_ended(state, found, ends, rows, choice)
    scores = jnp.where(added.ended, added.scores, UNLIKELY)
    finished = merge(state.finished, replace(added, scores=scores), lambda both: both.scores)
    following = go_on(state, found, ends, rows)

    reach = jnp.where(choice.hopeful, choice.max_new_tokens, length)
    worst = jnp.where(finished.ended, jnp.min(finished.scores, axis=1, keepdims=True), UNLIKELY)
    improvable = jnp.any(following.scores[:, :1] / choice.divisors[reach] > worst, axis=1)
    full = choice.stop_when_full & jnp.all(finished.ended, axis=1)
    done = state.done | ~improvable | full | jnp.all(ends, axis=1)
    return next_step(replace(following, finished=finished, done=done))


def take_ended(state: BeamState, found: Candidates, ends: Array, rows: Array, choice: BeamChoice) -> Finished:
    """Returns the first N candidates as sequences, ended where they end and their prompt is not done.

    Only the first N may end; the other candidates are there so that N can go on where all of those end.

    Args:
        state: the beams that the candidates continue.
        found: the candidates.
        ends: (B, C) bool, those that end.
        rows: (B, 1) int32, the row of each prompt's first beam.
        choice: see `BeamChoice`.
    """
    beams = state.scores.shape[1]
    first = jax.tree.map(lambda x: x[:, :beams], found)
    return Finished(
        tokens=_extended(state, _by_beam(state), first.beams, first.tokens),
        origins=_extended(state, state.origins, first.beams, first.beams + rows),
        scores=first.scores / choice.divisors[state.step + 1],
        ended=ends[:, :beams] & ~state.done[:, None],
    )


def go_on(state: BeamState, found: Candidates, ends: Array, rows: Array) -> BeamState:
    """Continues the beams with the N best candidates that do not end; see `take_ended`."""
    scores, index = lax.top_k(found.scores + jnp.where(ends, UNLIKELY, 0.0), state.scores.shape[1])  # (B, N)
    tokens, beams = (jnp.take_along_axis(x, index, axis=1) for x in (found.tokens, found.beams))
    return extend_beams(state, Candidates(tokens, beams, scores), rows)


def extend_beams(state: BeamState, chosen: Candidates, rows: Array) -> BeamState:
    """Continues the beams with N candidates, (B, N) each, in their order; see `take_ended`."""
    return replace(
        state,
        tokens=_extended(state, _by_beam(state), chosen.beams, chosen.tokens).reshape(state.tokens.shape),
        current=chosen.tokens.reshape(-1),
        parents=chosen.beams,
        scores=chosen.scores,
        origins=_extended(state, state.origins, chosen.beams, chosen.beams + rows),
    )


def next_step(state: BeamState) -> BeamState:
    """Counts the token that all beams were continued with."""
    valid = state.valid.at[:, state.cache.slot].set(True)
    return replace(state, valid=valid, position=state.position + 1, step=state.step + 1)


def _by_beam(state: BeamState) -> Array:
    return state.tokens.reshape(*state.scores.shape, -1)  # (B, N, S)


def _extended(state: BeamState, x: Array, index: Array, last: Array) -> Array:
    """Of x (B, N, S) the beams (B, M), with last (B, M) in the slot that comes next."""
    return lax.dynamic_update_slice_in_dim(pick_beams(x, index), last[:, :, None], state.cache.slot, axis=2)


def merge(finished: Finished, added: Finished, key: Callable[[Finished], Array]) -> Finished:
    """The best N by a key (B, M) of the finished sequences and those that were just added; the earlier among equals."""
    both = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), finished, added)
    _, index = lax.top_k(key(both), finished.scores.shape[1])
    return jax.tree.map(lambda x: pick_beams(x, index), both)


@dataclass(frozen=True)
class Beams:
    """The jitted functions of a beam search, made by `make_beams`.

    Attributes:
        prefill: as of `loop.make_prefill`, with a `BeamChoice`; returns a state and its candidates.
        decode: the leaves, the state, donated, its candidates and the choice in; out the last state, or that in
            which the slots are used up.
        resume: goes on from there after the cache has grown: the leaves, the state, donated, and the choice in; a
            state out as of `decode`.
        select: the state, donated, its candidates, those that the host ends (B, C), and the choice in; a state out.
        advance: the leaves, the state, donated, and the choice in; the state and its candidates out.
    """

    prefill: Callable[..., tuple[BeamState, Candidates]]
    decode: Callable[..., BeamState]
    select: Callable[..., BeamState]
    advance: Callable[..., tuple[BeamState, Candidates]]
    resume: Callable[..., BeamState]


def make_beams(
    functional: Functional, read: Callable[..., Any] = read_prompts, forward: Callable[..., Any] = next_logits
) -> Beams:
    """Makes the jitted functions of a model; `read` and `forward` call it, as `read_prompts` and `next_logits` do."""

    first = reading(functional, read)

    def prefill(leaves: Leaves, inputs: Any, prompts: Array, *rest: Any) -> tuple[BeamState, Candidates]:
        state, logits = first(leaves, inputs, prompts, *rest)
        choice: BeamChoice = rest[2]
        return propose(logits, state, choice)

    def advance(leaves: Leaves, state: BeamState, choice: BeamChoice) -> tuple[BeamState, Candidates]:
        state, logits = advance_beams(functional, forward, leaves, state)
        return propose(logits, state, choice)

    def none(choice: BeamChoice, state: BeamState) -> Array:
        return jnp.zeros((len(state.scores), choice.candidates), bool)

    def resume(leaves: Leaves, state: BeamState, choice: BeamChoice) -> BeamState:
        def goes_on(state: BeamState) -> Array:
            # At the greatest length all sequences end, and then every prompt is done.
            return ~jnp.all(state.done) & (state.cache.slot + 1 < state.tokens.shape[1])

        def step(state: BeamState) -> BeamState:
            return select(*advance(leaves, state, choice), none(choice, state), choice)

        return lax.while_loop(goes_on, step, state)

    def decode(leaves: Leaves, state: BeamState, found: Candidates, choice: BeamChoice) -> BeamState:
        return resume(leaves, select(state, found, none(choice, state), choice), choice)

    return Beams(
        prefill=jax.jit(prefill, static_argnums=(6, 7, 8)),
        decode=jax.jit(decode, donate_argnums=1),
        select=jax.jit(select, donate_argnums=0),
        advance=jax.jit(advance, donate_argnums=1),
        resume=jax.jit(resume, donate_argnums=1),
    )


def reading(functional: Functional, read: Callable[..., Any]) -> Callable[..., tuple[BeamState, Array]]:
    """Returns a prefill with the arguments of `loop.make_prefill`, to be jitted, that returns as `first_beams`."""

    def prefill(
        leaves: Leaves,
        inputs: tuple[Array, ...] | Filled,
        prompts: Array,
        lengths: Array,
        idle: Array,
        choice: BeamChoice,
        slots: int,
        recorded: int,
        layout: CacheLayout = DENSE,
    ) -> tuple[BeamState, Array]:
        valid = jnp.arange(prompts.shape[1], dtype=jnp.int32) < lengths[:, None]  # (B, P)
        out: Any = inputs
        if not isinstance(inputs, Filled):
            out = read(functional, leaves, inputs, prompts, lengths, valid, slots, layout)
        return first_beams(out, prompts, valid, idle, choice, slots, recorded)

    return prefill


def advance_beams(
    functional: Functional, forward: Callable[..., Any], leaves: Leaves, state: BeamState
) -> tuple[BeamState, Array]:
    """Calls the model on the beams' last tokens; returns the state and the logits (B * N, V)."""
    cache = reorder_cache(state.cache, state.parents, state.common)
    common = common_slots(state.origins, state.cache.slot)
    out = forward(functional, leaves, state.current[:, None], state.position[:, None], cache)
    return replace(state, cache=out.cache, common=common), out.logits[:, 0]
