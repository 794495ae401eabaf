"""A cache that holds its prompts already when the first new token is chosen."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxpipe.generation.loop import Choice, DecodeState, first_state
from jaxpipe.nn.cache import Cache

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Filled:
    """What is left of a model's call on prompts; stands in the place of the prefill's inputs.

    Attributes:
        logits: (B, 1, V) float32 of each row's last token; 0 as long as it is not read.
        cache: of the tokens so far.
    """

    logits: Array
    cache: Cache


def begin(
    filled: Filled, prompts: ArrayLike, lengths: ArrayLike, idle: ArrayLike, choice: Choice, slots: int, recorded: int
) -> DecodeState:
    """Chooses the first new token; the cache is donated.

    Args:
        filled: with all tokens of the prompts.
        prompts, lengths, idle, choice, slots, recorded: as of `loop.make_prefill`.
    """
    return _begin(filled.cache, filled.logits, prompts, lengths, idle, choice, slots, recorded)


@functools.partial(jax.jit, donate_argnums=0, static_argnums=(6, 7))
def _begin(
    cache: Cache, logits: Array, prompts: Any, lengths: Any, idle: Any, choice: Choice, slots: int, recorded: int
) -> DecodeState:
    valid = jnp.arange(prompts.shape[1], dtype=jnp.int32) < lengths[:, None]  # (B, P)
    out: Any = Filled(logits, cache)
    return first_state(out, prompts, valid, idle, choice, slots, recorded)
