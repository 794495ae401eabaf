"""The two jitted functions of generation: prefill, and decode of any number of tokens."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpipe.generation.processors import LogitsProcessor, StepState, broken_rows, process
from jaxpipe.generation.sampling import greedy, sample
from jaxpipe.generation.stopping import is_eos
from jaxpipe.kernels.compute import on_one_device, platform
from jaxpipe.nn.cache import DENSE, Cache, CacheLayout
from jaxpipe.nn.functional import Functional, Leaves

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Choice:
    """How a token is chosen, and what ends a row.

    Attributes:
        processors: applied to the logits in order.
        keys: (B,) PRNG keys of the rows, None where nothing is drawn.
        eos_ids: (n,) int32, -1 where unused.
        pad_id: () int32, what a row that ended puts out.
        do_sample: draw, else take the most likely.
        record: which of ``"scores"`` (processed logits) and ``"logits"`` are kept.
        contrast: of contrastive search; None in others.
    """

    processors: tuple[LogitsProcessor, ...]
    keys: Any
    eos_ids: Any
    pad_id: Any
    do_sample: bool = field(metadata={"static": True})
    record: tuple[str, ...] = field(default=(), metadata={"static": True})
    contrast: Any = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """Everything that a decode step reads and writes; donated, so it is updated in place.

    Attributes:
        by_slot: names of the arrays (B, S, ...) that have the slots of the cache; zeros where nothing is written.
        cache: its slots are those of `tokens`.
        tokens: (B, S) int32, each row's prompt from slot 0, its new tokens from the common slot P on.
        valid: (B, S) bool, which slots hold a token.
        current: (B,) int32, the token chosen last, not yet in the cache.
        position: (B,) int32, its position in its row.
        prompt_lengths: (B,) int32.
        done: (B,) bool, rows that ended.
        broken: (B,) bool, rows whose logits were NaN before they ended.
        step: () int32, new tokens so far.
        recorded: name -> (B, N, V) float32, of the N new tokens.
    """

    by_slot: ClassVar[tuple[str, ...]] = ("tokens", "valid")

    cache: Cache
    tokens: Array
    valid: Array
    current: Array
    position: Array
    prompt_lengths: Array
    done: Array
    broken: Array
    step: Array
    recorded: dict[str, Array]

    def seen(self) -> StepState:
        """What processors are told."""
        return StepState(self.tokens, self.valid, self.prompt_lengths, self.step)


State = TypeVar("State", bound=DecodeState)


def choose(logits: Array, state: DecodeState, choice: Choice) -> DecodeState:
    """Chooses every row's next token from logits (B, V), and writes it into the slot that the cache comes to next.

    Where the first processor makes one row of several, logits are (B * n, V), the first of each n the model's own.
    """
    scores = process(choice.processors, logits, state.seen())
    position = state.position + 1
    token = sample(choice.keys, position, scores) if choice.do_sample else greedy(scores)
    return write(token, scores, logits, state, choice)


def write(token: Array, scores: Array, logits: Array, state: State, choice: Choice) -> State:
    """Writes every row's next token (B,), chosen by scores (B, V) from logits as of `choose`, and counts the step."""
    token = jnp.where(state.done, choice.pad_id, token)  # (B,)
    position, slot = state.position + 1, state.cache.slot
    broken = broken_rows(choice.processors, logits).reshape(len(scores), -1)
    own = logits.reshape(len(scores), -1, logits.shape[-1])[:, 0]  # (B, V)
    values = {"scores": scores, "logits": own.astype(jnp.float32)}
    return replace(
        state,
        tokens=lax.dynamic_update_slice(state.tokens, token[:, None], (0, slot)),
        valid=lax.dynamic_update_slice(state.valid, ~state.done[:, None], (0, slot)),
        current=token,
        position=position,
        done=state.done | is_eos(token, choice.eos_ids),
        broken=state.broken | (jnp.any(broken, axis=1) & ~state.done),
        step=state.step + 1,
        recorded={
            name: lax.dynamic_update_slice(state.recorded[name], values[name][:, None], (0, state.step, 0))
            for name in choice.record
        },
    )


def read_prompts(
    functional: Functional,
    leaves: Leaves,
    inputs: tuple[Array, ...],
    prompts: Array,
    lengths: Array,
    valid: Array,
    slots: int,
    layout: CacheLayout = DENSE,
) -> Any:
    """Calls a decoder on prompts with an empty cache.

    Args:
        functional: the model.
        leaves: its weights.
        inputs: what the model reads beside the prompts; nothing.
        prompts: (B, P) int32, padded on the right.
        lengths: (B,) int32, without padding.
        valid: (B, P) bool, False at padding.
        slots: S, of the cache.
        layout: of the cache.

    Returns:
        The output, with logits (B, 1, V) of each row's last token, and the cache.
    """
    columns = jnp.arange(prompts.shape[1], dtype=jnp.int32)
    return functional.call(
        leaves,
        prompts,
        attention_mask=valid,
        position_ids=jnp.minimum(columns, lengths[:, None] - 1),
        cache=Cache.empty(functional.module(leaves).cache_layers(), len(prompts), slots, functional.dtype, layout),
        last=lengths - 1,
    )


def make_prefill(functional: Functional, read: Callable[..., Any] = read_prompts) -> Callable[..., DecodeState]:
    """Returns the jitted prefill of a model: prompts in, a state with the first new token out.

    `read` calls the model, as `read_prompts` does.
    Arguments of the returned function: the leaves; what the model reads beside the prompts; prompts (B, P) int32
    padded on the right; their lengths (B,); rows that are only there to fill the batch, (B,) bool; the choice; and,
    static, the number of slots S and of new tokens to record, and the layout of the cache.
    """

    def prefill(
        leaves: Leaves,
        inputs: tuple[Array, ...],
        prompts: Array,
        lengths: Array,
        idle: Array,
        choice: Choice,
        slots: int,
        recorded: int,
        layout: CacheLayout = DENSE,
    ) -> DecodeState:
        valid = jnp.arange(prompts.shape[1], dtype=jnp.int32) < lengths[:, None]  # (B, P)
        out = read(functional, leaves, inputs, prompts, lengths, valid, slots, layout)
        return first_state(out, prompts, valid, idle, choice, slots, recorded)

    return jax.jit(prefill, static_argnums=(6, 7, 8))


def first_state(
    out: Any, prompts: Array, valid: Array, idle: Array, choice: Choice, slots: int, recorded: int
) -> DecodeState:
    """Returns the state after a prefill, with the first new token chosen; see `read_state`."""
    return choose(out.logits[:, 0], read_state(out, prompts, valid, idle, choice, slots, recorded), choice)


def read_state(
    out: Any, prompts: Array, valid: Array, idle: Array, choice: Choice, slots: int, recorded: int
) -> DecodeState:
    """Returns the state after the prompts were read, without a new token.

    Args:
        out: of the model, with logits (B, 1, V) of each row's last token, and the cache.
        prompts: (B, P) int32 that the cache holds.
        valid: (B, P) bool, False at padding, which is on the right.
        idle: (B,) bool, rows that are only there to fill the batch.
        choice: see `Choice`.
        slots: S, of the cache.
        recorded: number of new tokens to record.
    """
    batch, width = prompts.shape
    lengths = jnp.sum(valid, axis=1, dtype=jnp.int32)
    pad = ((0, 0), (0, slots - width))
    return DecodeState(
        cache=out.cache,
        tokens=jnp.pad(prompts, pad),
        valid=jnp.pad(valid, pad),
        current=jnp.zeros((batch,), jnp.int32),
        position=lengths - 1,
        prompt_lengths=lengths,
        done=idle,
        broken=jnp.zeros((batch,), bool),
        step=jnp.zeros((), jnp.int32),
        recorded={name: jnp.zeros((batch, recorded, out.logits.shape[-1]), jnp.float32) for name in choice.record},
    )


def next_logits(functional: Functional, leaves: Leaves, tokens: Array, positions: Array, cache: Cache) -> Any:
    """Calls a decoder on one token (B, 1) of every row at its position (B, 1)."""
    return functional.call(leaves, tokens, position_ids=positions, cache=cache)


def make_decode(
    functional: Functional, forward: Callable[..., Any] = next_logits
) -> Callable[..., tuple[DecodeState, Array]]:
    """Returns the jitted decode of a model: up to `steps` more tokens of every row, fewer once all rows ended.

    `forward` calls the model, as `next_logits` does.
    Arguments of the returned function: the leaves; the state, donated; the choice; the number of
    steps as of `decode_steps`, which says what it returns.
    """

    def decode(leaves: Leaves, state: DecodeState, choice: Choice, steps: Array | None) -> tuple[DecodeState, Array]:
        def step(state: DecodeState) -> DecodeState:
            out = forward(functional, leaves, state.current[:, None], state.position[:, None], state.cache)
            return choose(out.logits[:, 0], replace(state, cache=out.cache), choice)

        return decode_steps(step, state, steps)

    return jax.jit(decode, donate_argnums=1)


class Answer(NamedTuple):
    """What the host reads of a state.

    Attributes:
        tokens: (B, S) int32, see `DecodeState`.
        steps: number of new ones.
        done, broken: (B,) bool.
    """

    tokens: np.ndarray
    steps: int
    done: np.ndarray
    broken: np.ndarray

    @classmethod
    def of(cls, array: Array) -> "Answer":
        """Fetches what `in_one_array` made."""
        x = np.asarray(array)
        return cls(x[:, :-3], int(x[0, -3]), x[:, -2].astype(bool), x[:, -1].astype(bool))


@jax.jit
def in_one_array(state: DecodeState) -> Array:
    """Returns an `Answer` as (B, S + 3) int32: to fetch an array takes the host a while, however small it is."""
    columns = jnp.stack([jnp.broadcast_to(state.step, state.done.shape), state.done, state.broken], axis=1)
    return jnp.concatenate([state.tokens, columns.astype(jnp.int32)], axis=1)


def decode_steps(step: Callable[[State], State], state: State, steps: Array | None) -> tuple[State, Array]:
    """Goes up to `steps` steps, fewer once all rows ended; traced, so that no number compiles anew.

    None stands for one step without a loop. A GPU's loop has the host wait for its condition; a step without one is
    only queued, and while it runs the host reads the last one's tokens and queues the next.

    Returns:
        The state, and what the host may read when that is donated to the next call: of a step without a loop the
        tokens (B,), of a loop `in_one_array`.
    """
    if steps is None:
        state = step(state)
        return state, _for_host(state.current)
    last = state.step + steps

    def unfinished(state: State) -> Array:
        return (state.step < last) & ~jnp.all(state.done)

    state = lax.while_loop(unfinished, step, state)
    return state, _for_host(in_one_array(state))


def _for_host(x: Array) -> Array:
    """Has a GPU write what the host is to read into the host's memory, which is faster than to ask for it after."""
    return jax.device_put(x, jax.memory.Space.Host) if platform() == "gpu" and on_one_device() else x
