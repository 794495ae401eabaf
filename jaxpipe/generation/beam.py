"""Beam search and beam sampling on the device, with the rules of Transformers 5.23.

A prompt is read once; then N beams of each prompt are N rows of the cache. A step proposes the C likeliest (or drawn)
continuations of a prompt's beams, takes those that end into the prompt's finished sequences where they are among the
N best, and goes on with the N best that do not end.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe.generation.loop import next_logits, read_prompts
from jaxpipe.generation.processors import LogitsProcessor, StepState, broken_rows, process
from jaxpipe.generation.stopping import is_eos
from jaxpipe.nn.cache import Cache, KVLayer
from jaxpipe.nn.functional import Functional, Leaves

Array = jax.Array

# Far below every real score, and yet finite: what has this score gives way to anything, and fills up where there is
# nothing else. The value is Transformers'.
UNLIKELY = -1.0e9

# Slots of the cache that are moved at a time when beams are reordered: as much memory as that takes, and no more.
_CHUNK = 64


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
) -> tuple[BeamState, Candidates]:
    """Returns the state after a prefill of the prompts, each repeated for its beams, and the first candidates.

    Args:
        out: of the model, with logits (B, 1, V) of each prompt's last token, and the cache.
        prompts: (B, P) int32 that the cache holds.
        valid: (B, P) bool, False at padding, which is on the right.
        idle: (B,) bool, prompts that are only there to fill the batch.
        choice: see `BeamChoice`.
        slots: S, of the cache.
        recorded: number of new tokens to record.
    """
    batch, width = prompts.shape
    beams = choice.beams

    def repeat(x: Array) -> Array:
        return jnp.repeat(x, beams, axis=0)

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
        done=idle,
        broken=jnp.zeros((batch,), bool),
        step=jnp.zeros((), jnp.int32),
        recorded={
            name: jnp.zeros((*logits.shape[:1], recorded, logits.shape[1]), jnp.float32) for name in choice.record
        },
    )
    return propose(logits, state, choice)


def repeat_cache(cache: Cache, repeat: Callable[[Array], Array]) -> Cache:
    """Repeats the rows of everything that a cache holds, what it remembers of an encoder included."""
    parts = {name: jax.tree.map(repeat, getattr(cache, name)) for name in ("layers", "positions")}
    if getattr(cache, "memory", None) is not None:
        parts["memory"] = jax.tree.map(repeat, cache.memory)  # type: ignore[attr-defined]
    return replace(cache, **parts)


def reorder_cache(cache: Cache, parents: Array, first: Array) -> Cache:
    """Gives every row what its parent's row holds.

    Args:
        cache: of B * N rows. Its positions, and its memory of an encoder, are the same for the beams of a prompt.
        parents: (B, N) int32, beams from 0 to N - 1.
        first: () int32, the slots before it are the same for the beams of a prompt.
    """

    def pick(x: Array) -> Array:
        beams = x.reshape(*parents.shape, *x.shape[1:])  # (B, N, ...)
        return pick_beams(beams, parents).reshape(x.shape)

    slots = cache.positions.shape[1]
    chunk = math.gcd(_CHUNK, slots)
    is_sliced = [isinstance(layer, KVLayer) and layer.keys.shape[1] == slots for layer in cache.layers]
    sliced = [layer for layer, yes in zip(cache.layers, is_sliced, strict=True) if yes]

    def move(i: Array, layers: list[KVLayer]) -> list[KVLayer]:
        def turn(x: Array) -> Array:  # (B * N, S, K, h)
            part = pick(lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1))
            return lax.dynamic_update_slice_in_dim(x, part, i * chunk, axis=1)

        return jax.tree.map(turn, layers)

    if sliced:
        sliced = lax.fori_loop(first // chunk, (cache.slot + chunk - 1) // chunk, move, sliced)
    moved = iter(sliced)
    layers = [
        next(moved) if yes else jax.tree.map(pick, layer) for layer, yes in zip(cache.layers, is_sliced, strict=True)
    ]
    return replace(cache, layers=tuple(layers))


def pick_beams(x: Array, beams: Array) -> Array:
    """Returns of x (B, N, ...) the beams (B, M) of each prompt, (B, M, ...)."""
    return jax.vmap(lambda rows, index: rows.at[index].get(mode="promise_in_bounds"))(x, beams)


def propose(logits: Array, state: BeamState, choice: BeamChoice) -> tuple[BeamState, Candidates]:
    """Finds the continuations of the beams, from the logits (B * N, V) after their last tokens."""
    logits = logits.astype(jnp.float32)
    seen = StepState(state.tokens, state.valid, state.prompt_lengths, state.step)
    scores = process(choice.processors, jax.nn.log_softmax(logits, axis=-1), seen)
    values = {"scores": scores, "logits": logits}
    recorded = {
        name: lax.dynamic_update_slice(state.recorded[name], values[name][:, None], (0, state.step, 0))
        for name in choice.record
    }
    total = scores.reshape(*state.scores.shape, -1) + state.scores[:, :, None]  # (B, N, V)
    noise = None
    if choice.do_sample:
        position = state.position.reshape(state.scores.shape)[:, 0] + 1
        noise = _noise(choice.keys, position, total.shape[1:])
    broken = jnp.any(broken_rows(choice.processors, logits).reshape(state.scores.shape), axis=1) & ~state.done
    state = replace(state, broken=state.broken | broken, recorded=recorded)
    return state, _candidates(total, noise, choice.candidates)


def _noise(keys: Array, position: Array, shape: tuple[int, ...]) -> Array:
    """Gumbel noise (B, *shape), of each prompt's key and position: the largest sums with it are draws."""

    def draw(key: Array, position: Array) -> Array:
        return jax.random.gumbel(jax.random.fold_in(key, position), shape, jnp.float32)

    return jax.vmap(draw)(keys, position.astype(jnp.uint32))


def _candidates(total: Array, noise: Array | None, count: int) -> Candidates:
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
    slot, length = state.cache.slot, state.step + 1
    rows = beams * jnp.arange(batch, dtype=jnp.int32)[:, None]  # of each prompt's first beam
    tokens = state.tokens.reshape(batch, beams, -1)

    def extend(x: Array, index: Array, last: Array) -> Array:  # (B, M, S)
        return lax.dynamic_update_slice_in_dim(pick_beams(x, index), last[:, :, None], slot, axis=2)

    ends = stopped | is_eos(found.tokens, choice.eos_ids) | (length >= choice.max_new_tokens)  # (B, C)
    # Only the first N may end; the rest are there so that N can go on where all of those end.
    first = jax.tree.map(lambda x: x[:, :beams], found)
    added = Finished(
        tokens=extend(tokens, first.beams, first.tokens),
        origins=extend(state.origins, first.beams, first.beams + rows),
        scores=first.scores / choice.divisors[length],
        ended=ends[:, :beams] & ~state.done[:, None],
    )
    finished = _merge(state.finished, replace(added, scores=jnp.where(added.ended, added.scores, UNLIKELY)))

    scores, index = lax.top_k(found.scores + jnp.where(ends, UNLIKELY, 0.0), beams)  # (B, N)
    parents = jnp.take_along_axis(found.beams, index, axis=1)
    current = jnp.take_along_axis(found.tokens, index, axis=1)

    reach = jnp.where(choice.hopeful, choice.max_new_tokens, length)
    worst = jnp.where(finished.ended, jnp.min(finished.scores, axis=1, keepdims=True), UNLIKELY)
    improvable = jnp.any(scores[:, :1] / choice.divisors[reach] > worst, axis=1)
    full = choice.stop_when_full & jnp.all(finished.ended, axis=1)
    return replace(
        state,
        tokens=extend(tokens, parents, current).reshape(state.tokens.shape),
        valid=state.valid.at[:, slot].set(True),
        current=current.reshape(-1),
        parents=parents,
        position=state.position + 1,
        scores=scores,
        origins=extend(state.origins, parents, parents + rows),
        finished=finished,
        done=state.done | ~improvable | full | jnp.all(ends, axis=1),
        step=length,
    )


def _merge(finished: Finished, added: Finished) -> Finished:
    """The best N of the finished sequences and those that were just added; the earlier among equals."""
    both = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), finished, added)
    _, index = lax.top_k(both.scores, finished.scores.shape[1])
    return jax.tree.map(lambda x: pick_beams(x, index), both)


@dataclass(frozen=True)
class Beams:
    """The jitted functions of a beam search, made by `make_beams`.

    Attributes:
        prefill: as of `loop.make_prefill`, with a `BeamChoice`; returns a state and its candidates.
        decode: the leaves, the state, donated, its candidates and the choice in; the last state out.
        select: the state, donated, its candidates, those that the host ends (B, C), and the choice in; a state out.
        advance: the leaves, the state, donated, and the choice in; the state and its candidates out.
    """

    prefill: Callable[..., tuple[BeamState, Candidates]]
    decode: Callable[..., BeamState]
    select: Callable[..., BeamState]
    advance: Callable[..., tuple[BeamState, Candidates]]


def make_beams(
    functional: Functional, read: Callable[..., Any] = read_prompts, forward: Callable[..., Any] = next_logits
) -> Beams:
    """Makes the jitted functions of a model; `read` and `forward` call it, as `read_prompts` and `next_logits` do."""

    def prefill(
        leaves: Leaves,
        inputs: tuple[Array, ...],
        prompts: Array,
        lengths: Array,
        idle: Array,
        choice: BeamChoice,
        slots: int,
        recorded: int,
    ) -> tuple[BeamState, Candidates]:
        valid = jnp.arange(prompts.shape[1], dtype=jnp.int32) < lengths[:, None]  # (B, P)
        out = read(functional, leaves, inputs, prompts, lengths, valid, slots)
        return first_beams(out, prompts, valid, idle, choice, slots, recorded)

    def advance(leaves: Leaves, state: BeamState, choice: BeamChoice) -> tuple[BeamState, Candidates]:
        # The last step's tokens are not in the cache yet, so its slots that differ begin at slot - (step - 1).
        cache = reorder_cache(state.cache, state.parents, state.cache.slot - state.step + 1)
        out = forward(functional, leaves, state.current[:, None], state.position[:, None], cache)
        return propose(out.logits[:, 0], replace(state, cache=out.cache), choice)

    def decode(leaves: Leaves, state: BeamState, found: Candidates, choice: BeamChoice) -> BeamState:
        none = jnp.zeros(found.tokens.shape, bool)

        def step(state: BeamState) -> BeamState:
            return select(*advance(leaves, state, choice), none, choice)

        # At the greatest length all sequences end, and then every prompt is done.
        return lax.while_loop(lambda state: ~jnp.all(state.done), step, select(state, found, none, choice))

    return Beams(
        prefill=jax.jit(prefill, static_argnums=(6, 7)),
        decode=jax.jit(decode, donate_argnums=1),
        select=jax.jit(select, donate_argnums=0),
        advance=jax.jit(advance, donate_argnums=1),
    )
