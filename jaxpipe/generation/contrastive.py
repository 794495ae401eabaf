"""Contrastive search on the device (Su et al., 2022; arXiv 2202.06417), with the rules of Transformers 4.49.

A step reads the k likeliest tokens of each prompt as k rows of the cache. It takes the one whose probability, less the
greatest cosine similarity of its state to those of the tokens so far, is the greatest. The logits for the next step
are known then, so a step is one call of the model.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpipe.generation.beam_cache import pick_beams, repeat_cache
from jaxpipe.generation.loop import Choice, DecodeState, decode_steps, read_state, write
from jaxpipe.generation.processors import process
from jaxpipe.nn.cache import DENSE, Cache, CacheLayout, slots_of
from jaxpipe.nn.functional import Functional, Leaves

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Contrast:
    """What a search weighs.

    Attributes:
        alpha: () float32, of the similarity; 1 - alpha of the probability.
        candidates: k.
    """

    alpha: Any
    candidates: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ContrastiveState(DecodeState):
    """As `DecodeState`, but the cache has B * k rows, alike for the k of a prompt, and holds the current token too.

    Attributes:
        logits: (B, V) after the current token.
        units: (B, S, D), states of the tokens before the head, of length 1.
    """

    by_slot: ClassVar[tuple[str, ...]] = (*DecodeState.by_slot, "units")

    logits: Array
    units: Array


@dataclass(frozen=True)
class WithStates(Functional):
    """A model whose calls put out hidden states too."""

    @classmethod
    def of(cls, functional: Functional) -> "WithStates":
        """Makes it of a model."""
        return cls(**vars(functional))

    def call(self, leaves: Leaves, *args: Any, **kwargs: Any) -> Any:
        """Calls the module; for use inside a jitted function."""
        return super().call(leaves, *args, output_hidden_states=True, **kwargs)


def final_units(out: Any) -> Array:
    """Returns the states (B, T, D) of an output that the head read, brought to length 1."""
    states = getattr(out, "decoder_hidden_states", None) or out.hidden_states
    x = states[-1].astype(jnp.float32)
    norms = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return (x / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)).astype(states[-1].dtype)


def rank(scores: Array, units: Array, context: Array, valid: Array, alpha: Array) -> Array:
    """Returns the best candidate of each prompt, (B,) int32.

    Args:
        scores: (B, k) float32, log-probabilities; -inf is never chosen.
        units: (B, k, D), states of the candidates, of length 1.
        context: (B, S, D), those of the tokens so far.
        valid: (B, S) bool, which of them there are.
        alpha: () float32, weight of the similarity.
    """
    x, y = units.astype(jnp.float32), context.astype(jnp.float32)
    similarity = jnp.einsum("bkd,bsd->bks", x, y, precision=lax.Precision.HIGHEST)
    penalty = jnp.max(jnp.where(valid[:, None], similarity, -jnp.inf), axis=2)  # (B, k)
    value = (1.0 - alpha) * jnp.exp(scores) - alpha * penalty
    return jnp.argmax(jnp.where(jnp.isneginf(scores), -jnp.inf, value), axis=1).astype(jnp.int32)


def share_slot(cache: Cache, index: Array, candidates: int, slot: Array) -> Cache:
    """Gives all rows of a prompt what the chosen one has in the only slot in which they differ.

    Args:
        cache: of B * k rows.
        index: (B, 1) int32, the chosen rows, from 0 to k - 1.
        candidates: k.
        slot: () int32.
    """

    def share(x: Array) -> Array:
        rows = x.reshape(-1, candidates, *x.shape[1:])  # (B, k, ...)
        return jnp.broadcast_to(pick_beams(rows, index), rows.shape).reshape(x.shape)

    def share_part(x: Array, at: Array) -> Array:
        part = share(lax.dynamic_slice_in_dim(x, at, 1, axis=1))
        return lax.dynamic_update_slice_in_dim(x, part, at, axis=1)

    layers = []
    for layer in cache.layers:
        size = slots_of(layer)
        # What has no slots, such as a recurrent state, differs as a whole; slot s of a ring is s mod its size.
        layers.append(jax.tree.map(share if size is None else partial(share_part, at=slot % size), layer))
    return replace(cache, layers=tuple(layers))


def make_contrastive(
    functional: Functional, read: Callable[..., Any], forward: Callable[..., Any]
) -> tuple[Callable[..., ContrastiveState], Callable[..., tuple[ContrastiveState, Array]]]:
    """Returns prefill and decode, with the arguments and results of those of `make_prefill` and `make_decode`.

    Args:
        functional: the model.
        read, forward: call it, as `read_prompts` and `next_logits` do.
    """
    functional = WithStates.of(functional)

    def start(
        leaves: Leaves,
        inputs: tuple[Array, ...],
        prompts: Array,
        lengths: Array,
        idle: Array,
        choice: Choice,
        slots: int,
        recorded: int,
        layout: CacheLayout = DENSE,
    ) -> ContrastiveState:
        valid = jnp.arange(prompts.shape[1], dtype=jnp.int32) < lengths[:, None]  # (B, P)
        out = read(functional, leaves, inputs, prompts, lengths, valid, slots, layout)
        units = final_units(out)
        state = read_state(out, prompts, valid, idle, choice, slots, recorded)
        cache = repeat_cache(out.cache, lambda x: jnp.repeat(x, choice.contrast.candidates, axis=0))
        return ContrastiveState(
            **{**vars(state), "cache": cache},
            logits=out.logits[:, 0],
            units=jnp.pad(units, ((0, 0), (0, slots - units.shape[1]), (0, 0))),
        )

    def step(leaves: Leaves, state: ContrastiveState, choice: Choice) -> ContrastiveState:
        batch, candidates = len(state.tokens), choice.contrast.candidates
        scores = process(choice.processors, state.logits, state.seen())  # (B, V)
        best, tokens = lax.top_k(jax.nn.log_softmax(scores, axis=-1), candidates)  # (B, k)
        positions = jnp.repeat(state.position + 1, candidates)
        out = forward(functional, leaves, tokens.reshape(-1, 1), positions[:, None], state.cache)
        units = final_units(out).reshape(batch, candidates, -1)  # (B, k, D)
        index = rank(best, units, state.units, state.valid, choice.contrast.alpha)[:, None]  # (B, 1)
        slot = state.cache.slot
        state = write(jnp.take_along_axis(tokens, index, axis=1)[:, 0], scores, state.logits, state, choice)
        return replace(
            state,
            cache=share_slot(out.cache, index, candidates, slot),
            logits=pick_beams(out.logits[:, 0].reshape(batch, candidates, -1), index)[:, 0],
            units=lax.dynamic_update_slice(state.units, pick_beams(units, index), (0, slot, 0)),
        )

    def decode(
        leaves: Leaves, state: ContrastiveState, choice: Choice, steps: Array | None
    ) -> tuple[ContrastiveState, Array]:
        return decode_steps(lambda state: step(leaves, state, choice), state, steps)

    start_jit, decode_jit = jax.jit(start, static_argnums=(6, 7, 8)), jax.jit(decode, donate_argnums=1)

    def prefill(leaves: Leaves, *arguments: Any) -> ContrastiveState:
        choice = arguments[4]
        state, _ = decode_jit(leaves, start_jit(leaves, *arguments), choice, np.int32(1))
        return state

    return prefill, decode_jit
