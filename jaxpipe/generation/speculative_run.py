"""The host's side of speculative decoding: its jitted functions, and the tokens of its steps."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpipe.generation.assisted import Assistant, draft
from jaxpipe.generation.loop import Choice, DecodeState
from jaxpipe.generation.packing import Packed
from jaxpipe.generation.prompt_lookup import look_up
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.settle_assisted import SCHEDULES
from jaxpipe.generation.speculative import Rule, SpeculativeState, compact, first_state, verify
from jaxpipe.generation.speculative_checks import rule_for, schedule_of
from jaxpipe.nn.cache import Cache
from jaxpipe.nn.functional import Functional, Leaves

Array = jax.Array

# Steps that a batch may take between two times that its cache is compacted.
_SPARE_STEPS = 8
_TO_END = np.int32(2**30)


class Speculation(NamedTuple):
    """The jitted functions of speculative decoding.

    Attributes:
        begin: ``(state of a prefill, donated; the assistant's cache or None; rule) -> SpeculativeState``.
        read: ``(leaves of the assistant, inputs, prompts, lengths, slots) -> its cache``; None without assistant.
        decode: ``(leaves, leaves of the assistant, state, donated; choice, rule, steps) -> (state, tokens (B, T) of
            the last step, their number (B,))``; steps are traced. It ends early where all rows did, or where the
            cache has no room for a step.
        compact: ``(state, donated) -> state`` with room.
    """

    begin: Callable[..., SpeculativeState]
    read: Callable[..., Cache] | None
    decode: Callable[..., tuple[SpeculativeState, Array, Array]]
    compact: Callable[[SpeculativeState], SpeculativeState]


def make_speculation(
    functional: Functional, forward: Callable[..., Any], assistant: Assistant | None, vocab_size: int
) -> Speculation:
    """Returns the jitted functions of a model with an assistant, or with prompt lookup where that is None.

    Args:
        functional: the model.
        forward: calls it, as `loop.next_logits` does.
        assistant: what proposes; its weights are given to the functions anew.
        vocab_size: V, of the model.
    """

    def begin(state: DecodeState, cache: Cache | None, rule: Rule) -> SpeculativeState:
        first = first_state(state, cache, rule)
        return look_up(first, rule) if cache is None else first

    def decode(
        leaves: Leaves,
        draft_leaves: Leaves,
        state: SpeculativeState,
        choice: Choice,
        rule: Rule,
        steps: Array,
    ) -> tuple[SpeculativeState, Array, Array]:
        last = state.step + steps
        slots = state.cache.positions.shape[1]

        def unfinished(state: SpeculativeState) -> Array:
            return (state.step < last) & ~jnp.all(state.done) & (state.cache.slot + rule.width <= slots)

        def check(state: SpeculativeState, width: int, drafts: Array | None = None) -> SpeculativeState:
            return verify(functional, forward, leaves, state, choice, rule, width, drafts)

        def assisted(state: SpeculativeState) -> SpeculativeState:
            assert assistant is not None
            state, drafts = draft(
                assistant.functional, assistant.forward, draft_leaves, state, choice, rule, vocab_size
            )
            return check(state, rule.width, drafts)

        def looking(width: int) -> Callable[[SpeculativeState], SpeculativeState]:
            # A step on one token alone is cheaper where nothing was found. Two loops, as a branch may copy the cache.
            def more(state: SpeculativeState) -> Array:
                return unfinished(state) & (jnp.any(state.offered > 0) == (width > 1))

            return lambda state: lax.while_loop(more, lambda state: look_up(check(state, width), rule), state)

        state = replace(state, kept=jnp.zeros_like(state.kept))
        if assistant is None:
            one, several = looking(1), looking(rule.width)
            state = lax.while_loop(unfinished, lambda state: several(one(state)), state)
        else:
            state = lax.while_loop(unfinished, assisted, state)
        return state, state.last, state.kept

    read = None
    if assistant is not None:

        def read_draft(leaves: Leaves, inputs: tuple[Array, ...], prompts: Array, lengths: Array, slots: int) -> Cache:
            valid = jnp.arange(prompts.shape[1], dtype=jnp.int32) < lengths[:, None]
            return assistant.read(assistant.functional, leaves, inputs, prompts, lengths, valid, slots).cache

        read = jax.jit(read_draft, static_argnums=4)
    return Speculation(
        jax.jit(begin, donate_argnums=(0, 1)),
        read,
        jax.jit(decode, donate_argnums=2),
        jax.jit(compact, donate_argnums=0),
    )


class Speculator:
    """Speculative decoding of one call: begins where a prefill ended, and decodes to the end or step by step.

    Args:
        speculation: the jitted functions.
        leaves: weights of the model.
        assistant: what proposes; None is prompt lookup.
        settled: the settings of the call.
    """

    def __init__(self, speculation: Speculation, leaves: Leaves, assistant: Assistant | None, settled: Settled):
        self._functions, self._leaves, self._assistant, self._settled = speculation, leaves, assistant, settled
        self.rule = rule_for(settled, assistant)
        self.state: Any = None

    def spare(self, rows: int) -> int:
        """Slots that the cache needs beside those of prompts and new tokens, in a batch of that many rows."""
        return self.rule.width * (1 if rows == 1 else 1 + _SPARE_STEPS)

    def begin(self, state: DecodeState, packed: Packed, choice: Choice) -> None:
        """Goes on from a prefill, whose state is donated."""
        self._packed, self._choice = packed, choice
        self._first = np.asarray(state.current)  # read before it is donated
        cache = None
        if self._assistant is not None:
            assert self._functions.read is not None
            inputs, prompts, lengths, _ = packed.arrays
            slots = state.cache.positions.shape[1]
            cache = self._functions.read(self._assistant.leaves, inputs, prompts, lengths, slots)
        self.state = self._functions.begin(state, cache, self.rule)

    def advance(self, steps: int | np.integer) -> tuple[Array, Array]:
        """Takes up to that many steps; returns the tokens (B, T) of the last one, and their number (B,)."""
        draft_leaves = [] if self._assistant is None else self._assistant.leaves
        self.state, last, kept = self._functions.decode(
            self._leaves, draft_leaves, self.state, self._choice, self.rule, np.int32(steps)
        )
        return last, kept

    def _make_room(self) -> None:
        """Makes room for a step, where there is none: empty slots go first, in a batch; one row leaves none."""
        if int(self.state.cache.slot) + self.rule.width > self.state.cache.positions.shape[1]:
            self.state = self._functions.compact(self.state)

    def to_end(self, count: int) -> np.ndarray:
        """Decodes all tokens of the first `count` rows, in one dispatch where there is one; returns them (B, new)."""
        self.advance(_TO_END)
        while self._packed.rows > 1 and not np.asarray(self.state.done).all():
            self._make_room()
            self.advance(_TO_END)
        tokens, lengths, begin = (
            np.asarray(x) for x in (self.state.tokens, self.state.lengths, self.state.prompt_lengths)
        )
        new = [tokens[i, begin[i] : lengths[i]] for i in range(count)]
        pad = int(self._choice.pad_id)
        self._keep_schedule(count)
        return np.stack([np.pad(row, (0, max(map(len, new)) - len(row)), constant_values=pad) for row in new])

    def tokens(self, count: int) -> Iterator[np.ndarray]:
        """Yields tokens (B,) of the first `count` rows, one after another though they come several at a time.

        The next step runs while the host works on those of this one. A row that lags holds the others up.
        """
        settled = self._settled
        pad, eos = int(self._choice.pad_id), set(settled.eos_token_ids)
        rows = [[int(token)] for token in self._first[:count]]
        pending = self._step()
        for column in range(settled.max_new_tokens):
            while any(len(row) <= column and row[-1] not in eos for row in rows):
                following = self._step()
                last, kept = (np.asarray(x) for x in pending)
                for i, row in enumerate(rows):
                    row.extend(last[i, : kept[i]].tolist())
                pending = following
            yield np.asarray([row[column] if column < len(row) else pad for row in rows], np.int32)
        self._keep_schedule(count)

    def _step(self) -> tuple[Array, Array]:
        if self._packed.rows > 1:
            self._make_room()
        return self.advance(1)

    def _keep_schedule(self, count: int) -> None:
        """Leaves the number of proposed tokens in the assistant's settings, where its schedule keeps it."""
        if self._assistant is None or schedule_of(self._settled, self._assistant) != SCHEDULES[1]:
            return
        wanted = np.asarray(self.state.wanted)[:count]
        self._assistant.defaults.num_assistant_tokens = max(1, round(float(wanted.mean())))
