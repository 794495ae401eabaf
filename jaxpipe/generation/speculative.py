"""Speculative decoding: several tokens are proposed, and one call of the model tells how many of them it would choose.

After Leviathan et al. 2023 (arXiv:2211.17192). What proposes is a smaller model (`assisted`) or the text so far
(`prompt_lookup`). The whole loop runs on the device; what was proposed in vain is rolled back in the cache by its
positions alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe.generation.loop import Choice, DecodeState
from jaxpipe.generation.processors import broken_rows, process
from jaxpipe.generation.processors_user import AllowedTokens
from jaxpipe.generation.sampling import greedy, sample
from jaxpipe.generation.step import StepState
from jaxpipe.generation.stopping import is_eos
from jaxpipe.nn.cache import Cache
from jaxpipe.nn.functional import Functional, Leaves
from jaxpipe.sharding.rules import constrain

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rule:
    """How tokens are proposed.

    Attributes:
        count: () int32, the most tokens to propose at first, below `width`.
        max_new_tokens: () int32.
        ngram: () int32, the longest n-gram that is looked up.
        adaptive: () bool, the number grows by 2 where all were accepted, and falls by 1 where not.
        threshold: () float32, an assistant proposes nothing after a token that it holds less probable.
        width: static, T: tokens that the model is called on, the last chosen one and those proposed.
        most: static, at least `ngram`.
    """

    count: Any
    max_new_tokens: Any
    ngram: Any
    adaptive: Any
    threshold: Any
    width: int = field(metadata={"static": True})
    most: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SpeculativeState:
    """Everything that a step reads and writes; donated, so it is updated in place.

    Rows go on at their own pace. They share the slots of the cache, so that those of a row that accepted less than
    another stay empty.

    Attributes:
        cache: of all tokens but the last.
        tokens: (B, S) int32, prompt and new tokens of each row from column 0 on, then what is proposed.
        lengths: (B,) int32, prompt and new tokens.
        prompt_lengths: (B,) int32.
        offered: (B,) int32, tokens that are proposed.
        wanted: (B,) int32, the most tokens to propose.
        done: (B,) bool, rows that ended.
        broken: (B,) bool, rows whose logits were NaN before they ended.
        step: () int32, calls of the model since the prefill.
        last: (B, T) int32, the tokens that the last step chose.
        kept: (B,) int32, how many they are.
        recorded: name -> (B, N, V) float32, of the new tokens, with room for a step's that are chosen in vain.
        draft: the assistant's cache, of all tokens but the two last; None without one.
    """

    cache: Cache
    tokens: Array
    lengths: Array
    prompt_lengths: Array
    offered: Array
    wanted: Array
    done: Array
    broken: Array
    step: Array
    last: Array
    kept: Array
    recorded: dict[str, Array]
    draft: Cache | None

    def seen(self, ahead: Array) -> StepState:
        """What is known when the token is chosen that has `ahead` (B,) of the proposed ones before it."""
        lengths = self.lengths + ahead
        valid = jnp.arange(self.tokens.shape[1]) < lengths[:, None]
        return StepState(self.tokens, valid, self.prompt_lengths, (lengths - self.prompt_lengths)[:, None])

    def left(self, rule: Rule) -> Array:
        """New tokens (B,) that each row may still get."""
        return rule.max_new_tokens - (self.lengths - self.prompt_lengths)


def columns(x: Array, start: Array, count: int) -> Array:
    """Returns `count` columns of each row of x (B, S) from `start` (B,) on; there must be as many."""
    return jax.vmap(lambda row, at: lax.dynamic_slice(row, (at,), (count,)))(x, start)


def write(x: Array, values: Array, start: Array) -> Array:
    """Writes values (B, n, ...) into x (B, S, ...), in each row from the column `start` (B,) on."""

    def row(x: Array, values: Array, at: Array) -> Array:
        return lax.dynamic_update_slice(x, values, (at, *[0] * (x.ndim - 1)))

    return jax.vmap(row)(x, values, start)


def rolled_back(cache: Cache, positions: Array, slot: Array) -> Cache:
    """Returns the cache without what it holds at `positions` (B,) or later, written next from `slot` on."""
    return replace(cache, positions=jnp.where(cache.positions < positions[:, None], cache.positions, -1), slot=slot)


def first_state(state: DecodeState, draft: Cache | None, rule: Rule) -> SpeculativeState:
    """Returns the state after a prefill, which has chosen one token of every row."""
    batch, slots = state.tokens.shape
    at = state.prompt_lengths[:, None]
    if draft is not None:
        # The assistant reads the two last tokens again in every step, the first time the last one of the prompt.
        draft = rolled_back(draft, state.prompt_lengths - 1, draft.slot - 1)
    return SpeculativeState(
        cache=state.cache,
        tokens=jnp.where(jnp.arange(slots) == at, state.current[:, None], state.tokens),
        lengths=state.prompt_lengths + 1,
        prompt_lengths=state.prompt_lengths,
        offered=constrain(jnp.zeros((batch,), jnp.int32), "batch"),
        wanted=constrain(jnp.full((batch,), rule.count, jnp.int32), "batch"),
        done=state.done | (rule.max_new_tokens <= 1),
        broken=state.broken,
        step=jnp.zeros((), jnp.int32),
        last=constrain(jnp.zeros((batch, rule.width), jnp.int32), "batch", None),
        kept=constrain(jnp.zeros((batch,), jnp.int32), "batch"),
        recorded=state.recorded,
        draft=draft,
    )


class Verdict(NamedTuple):
    """What the model makes of proposed tokens: how many (B,) it accepts, and all tokens (B, T), one more, it chose."""

    accepted: Array
    tokens: Array


def agreed(window: Array, offered: Array, scores: Array, lengths: Array, choice: Choice) -> Verdict:
    """Chooses a token at every place as plain decoding does, and accepts while that is the one proposed.

    In sampling, a proposed token is so accepted with the probability that the model gives it, and what is drawn
    instead has the model's distribution.

    Args:
        window: (B, T) int32, the last chosen token and those proposed.
        offered: (B,) int32, how many are.
        scores: (B, T, V) float32.
        lengths: (B,) int32, tokens up to the last chosen one.
        choice: see `Choice`.
    """
    batch, width, vocabulary = scores.shape
    places = jnp.arange(width)
    if choice.do_sample:
        at = (lengths[:, None] + places).reshape(-1)
        chosen = sample(jnp.repeat(choice.keys, width), at, scores.reshape(-1, vocabulary)).reshape(batch, width)
    else:
        chosen = greedy(scores)  # (B, T)
    same = (chosen[:, :-1] == window[:, 1:]) & (places[:-1] < offered[:, None])
    return Verdict(leading(same), chosen)


def leading(accepted: Array) -> Array:
    """Returns how many of the columns of (B, n) bool come before the first False, (B,) int32."""
    return jnp.sum(jnp.cumprod(accepted.astype(jnp.int32), axis=1), axis=1)


# Folded into a row's key for draws beside those of plain sampling, which folds in positions: far above them.
DRAFT, _ACCEPT = 2**31, 2**31 + 1


def branch(keys: Array, number: int) -> Array:
    """Returns keys (B,) of other draws."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _uniform(keys: Array, positions: Array) -> Array:
    """Draws a number from 0 to 1 at every position, (B, n) float32 of keys (B,) and positions (B, n)."""

    def draw(key: Array, position: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, position))

    return jax.vmap(jax.vmap(draw, (None, 0)))(keys, positions.astype(jnp.uint32))


def weighed(window: Array, offered: Array, scores: Array, drafts: Array, lengths: Array, choice: Choice) -> Verdict:
    """Accepts a token that was drawn from q with probability min(1, p / q), else draws from max(p - q, 0).

    Algorithm 1 of Leviathan et al. 2023. Draws are bound to positions. What is drawn at positions after a refused
    token decides nothing, so that they are drawn again by the same keys.

    Args:
        window, offered, scores, lengths, choice: as of `agreed`; p is the softmax of the scores.
        drafts: (B, T - 1, V) float32, scores whose softmax is q.
    """
    width = window.shape[1]
    places = jnp.arange(width)
    p, q = jax.nn.softmax(scores, axis=-1), jax.nn.softmax(drafts, axis=-1)
    proposed = window[:, 1:, None]
    p_of, q_of = (jnp.take_along_axis(x, proposed, axis=2)[..., 0] for x in (p[:, :-1], q))  # (B, T - 1)
    draw = _uniform(branch(choice.keys, _ACCEPT), lengths[:, None] + places[:-1])
    accepted = leading((draw * q_of < p_of) & (places[:-1] < offered[:, None]))
    target = jnp.take_along_axis(p, accepted[:, None, None], axis=1)[:, 0]  # (B, V)
    draft = jnp.take_along_axis(q, jnp.minimum(accepted, width - 2)[:, None, None], axis=1)[:, 0]
    rest = jnp.maximum(target - draft, 0.0)
    # Where rounding leaves no difference, or q is NaN, p is as good; where all were accepted one more is drawn from p.
    whole = (accepted == offered) | ~(jnp.sum(rest, axis=-1) > 0.0)
    drawn = sample(choice.keys, lengths + accepted, jnp.log(jnp.where(whole[:, None], target, rest)))
    shifted = jnp.pad(window[:, 1:], ((0, 0), (0, 1)))
    return Verdict(accepted, jnp.where(places == accepted[:, None], drawn[:, None], shifted))


def _scores(logits: Array, state: SpeculativeState, choice: Choice) -> Array:
    """Processes the logits (B, T, V) of every place as if the tokens before it had come one by one."""
    batch, width, vocabulary = logits.shape
    if width > 1 and any(isinstance(processor, AllowedTokens) for processor in choice.processors):
        return _scores_in_turn(logits, state, choice)
    ahead = jnp.tile(jnp.arange(width), batch)

    def repeated(x: Array) -> Array:
        return jnp.repeat(x, width, axis=0)

    rows = replace(
        state,
        tokens=repeated(state.tokens),
        lengths=repeated(state.lengths),
        prompt_lengths=repeated(state.prompt_lengths),
    )
    flat = logits.reshape(batch * width, vocabulary)
    return process(choice.processors, flat, rows.seen(ahead)).reshape(logits.shape)


def _scores_in_turn(logits: Array, state: SpeculativeState, choice: Choice) -> Array:
    """As `_scores`, place by place, so that a rule of the user's is asked only after tokens that it has allowed."""
    width = logits.shape[1]
    proposed = columns(state.tokens, state.lengths, width)  # (B, T), the last column unused

    def place(allowed: Array, i: Array) -> tuple[Array, Array]:
        ahead = jnp.minimum(allowed, i)
        own = jnp.take_along_axis(logits, ahead[:, None, None], axis=1)[:, 0]
        scores = process(choice.processors, own, state.seen(ahead))  # (B, V)
        token = lax.dynamic_index_in_dim(proposed, i, axis=1)
        may = ~jnp.isneginf(jnp.take_along_axis(scores, token, axis=1)[:, 0])
        return allowed + ((allowed == i) & (i < state.offered) & may), scores

    _, scores = lax.scan(place, jnp.zeros_like(state.lengths), jnp.arange(width))
    return jnp.moveaxis(scores, 0, 1)


def verify(
    functional: Functional,
    forward: Callable[..., Any],
    leaves: Leaves,
    state: SpeculativeState,
    choice: Choice,
    rule: Rule,
    width: int,
    drafts: Array | None = None,
) -> SpeculativeState:
    """Calls the model once on the last token and those proposed, keeps what it accepts and one token more.

    Args:
        functional: the model.
        forward: calls it, as `loop.next_logits` does.
        leaves: its weights.
        state: with what is proposed.
        choice: see `Choice`.
        rule: see `Rule`.
        width: static, ``rule.width``, or 1 where nothing is proposed.
        drafts: scores (B, width - 1, V) that what is proposed was drawn from; None where it was not drawn.
    """
    start = state.lengths - 1
    window = columns(state.tokens, start, width)  # (B, T)
    out = forward(functional, leaves, window, start[:, None] + jnp.arange(width), state.cache)
    scores = _scores(out.logits, state, choice)
    if drafts is None:
        accepted, tokens = agreed(window, state.offered, scores, state.lengths, choice)
    else:
        accepted, tokens = weighed(window, state.offered, scores, drafts, state.lengths, choice)
    places = jnp.arange(width)
    ends = is_eos(tokens, choice.eos_ids) & (places <= accepted[:, None])
    ended = jnp.any(ends, axis=1)
    kept = jnp.where(ended, jnp.argmax(ends, axis=1).astype(jnp.int32), accepted) + 1
    kept = jnp.where(state.done, 0, kept)  # (B,)
    broken = broken_rows(choice.processors, out.logits.reshape(-1, out.logits.shape[-1])).reshape(tokens.shape)
    values = {"scores": scores, "logits": out.logits.astype(jnp.float32)}
    lengths, farthest = state.lengths + kept, jnp.max(kept)
    draft = state.draft
    if draft is not None:
        draft = rolled_back(draft, lengths - 2, draft.slot + farthest)
    moved = jnp.where(accepted == state.offered, state.wanted + 2, jnp.maximum(state.wanted - 1, 1))
    return replace(
        state,
        cache=rolled_back(out.cache, lengths - 1, state.cache.slot + farthest),
        tokens=write(state.tokens, tokens, state.lengths),
        lengths=lengths,
        wanted=jnp.where(rule.adaptive, jnp.minimum(moved, rule.width - 1), state.wanted),
        done=state.done | ended | (lengths - state.prompt_lengths >= rule.max_new_tokens),
        broken=state.broken | jnp.any(broken & (places < kept[:, None]), axis=1),
        step=state.step + 1,
        last=jnp.pad(tokens, ((0, 0), (0, rule.width - width))),
        kept=kept,
        recorded={
            name: write(state.recorded[name], values[name], state.lengths - state.prompt_lengths)
            for name in choice.record
        },
        draft=draft,
    )


def compact(state: SpeculativeState) -> SpeculativeState:
    """Moves what the caches hold to the left, and drops what ended rows left there."""

    def moved(cache: Cache) -> Cache:
        held = (cache.positions >= 0) & ~state.done[:, None]
        order = jnp.argsort(~held, axis=1, stable=True)  # (B, S)

        def gather(x: Array) -> Array:
            moved = jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)
            # As the caches are laid out elsewhere, lest what comes next is compiled anew.
            return constrain(moved, *("batch", None, "kv_heads", None)[: x.ndim])

        positions = gather(jnp.where(held, cache.positions, -1))
        slot = jnp.max(jnp.sum(held, axis=1, dtype=jnp.int32))
        return replace(cache, layers=jax.tree.map(gather, cache.layers), positions=positions, slot=slot)

    return replace(state, cache=moved(state.cache), draft=None if state.draft is None else moved(state.draft))
