"""Constrained beam search, the part on the device: one dispatch a step.

Which beams go on is decided on the host, as constraints are objects of Python; see `banks`. A step takes the host's
choice, calls the model, and hands back the best candidates and the scores of the tokens that constraints ask for.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxpipe.generation.beam import (
    BeamChoice,
    BeamState,
    Candidates,
    accumulated,
    advance_beams,
    best_candidates,
    extend_beams,
    next_step,
    reading,
    score,
)
from jaxpipe.generation.loop import next_logits, read_prompts
from jaxpipe.nn.functional import Functional, Leaves

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Offer:
    """What the host chooses from.

    Attributes:
        found: the best candidates, (B, C).
        wanted: (B, N, A) float32, accumulated scores of the tokens that were asked for.
    """

    found: Candidates
    wanted: Array


def offer(logits: Array, state: BeamState, wanted: Array, choice: BeamChoice) -> tuple[BeamState, Offer]:
    """Finds the continuations of the beams, from the logits (B * N, V) after their last tokens.

    Args:
        logits: see above.
        state: of the beams.
        wanted: (B, N, A) int32, tokens of each beam whose scores are asked for; -1 where there is none.
        choice: see `BeamChoice`.
    """
    state, scores = score(logits, state, choice)
    total = accumulated(scores, state)  # (B, N, V)
    found = best_candidates(total, None, choice.candidates)
    return state, Offer(found, jnp.take_along_axis(total, jnp.maximum(wanted, 0), axis=2))


@dataclass(frozen=True)
class ConstrainedBeams:
    """The jitted functions of a constrained beam search, made by `make_constrained_beams`.

    Attributes:
        prefill: as of `loop.make_prefill`, with a `BeamChoice`; returns a state and the logits (B * N, V).
        offer: the logits, the state, donated, the wanted tokens and the choice in; the state and an `Offer` out.
        step: the leaves, the state, donated, the beams that go on, (B, N) `Candidates`, the prompts that are done,
            (B,) bool, the tokens wanted next and the choice in; the state and an `Offer` out.
    """

    prefill: Callable[..., tuple[BeamState, Array]]
    offer: Callable[..., tuple[BeamState, Offer]]
    step: Callable[..., tuple[BeamState, Offer]]


def make_constrained_beams(
    functional: Functional, read: Callable[..., Any] = read_prompts, forward: Callable[..., Any] = next_logits
) -> ConstrainedBeams:
    """Makes the jitted functions of a model; `read` and `forward` call it, as `read_prompts` and `next_logits` do."""

    def step(
        leaves: Leaves, state: BeamState, chosen: Candidates, done: Array, wanted: Array, choice: BeamChoice
    ) -> tuple[BeamState, Offer]:
        rows = choice.beams * jnp.arange(len(done), dtype=jnp.int32)[:, None]
        state = next_step(replace(extend_beams(state, chosen, rows), done=done))
        state, logits = advance_beams(functional, forward, leaves, state)
        return offer(logits, state, wanted, choice)

    return ConstrainedBeams(
        prefill=jax.jit(reading(functional, read), static_argnums=(6, 7, 8)),
        offer=jax.jit(offer, donate_argnums=1),
        step=jax.jit(step, donate_argnums=1),
    )
