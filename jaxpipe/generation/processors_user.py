"""Logits processors that the user of ``generate`` gives: traced functions, and a rule of which tokens may come next."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.generation.buckets import length_bucket
from jaxpipe.generation.packing import Packed, place_rows
from jaxpipe.generation.processors import processors_for
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.step import NO_TOKEN, LogitsProcessor, StepState

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UserProcessor:
    """A user's function of ``(input_ids, scores)``.

    Attributes:
        function: a pytree that can be called; a plain function is wrapped in `jax.tree_util.Partial`.
    """

    function: Any

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns what the function makes of the logits (B, V).

        The tokens so far end at the last column, as prompts that are padded on the left do; before them stands V,
        which is no token: gathers and scatters that go there change nothing.
        """
        history, lengths = state.history()
        columns = jnp.arange(history.shape[1]) - (history.shape[1] - lengths[:, None])  # (B, S)
        ids = jnp.take_along_axis(history, jnp.maximum(columns, 0), axis=1)
        return self.function(jnp.where(columns >= 0, ids, logits.shape[1]), logits).astype(jnp.float32)


def user_processors(given: Any, shape: tuple[int, int], vocab_size: int) -> tuple[UserProcessor, ...]:
    """Checks the functions of ``logits_processor``, and traces each once without running it.

    Args:
        given: a function or a sequence of functions ``(input_ids (B, S) int32, scores (B, V) float32) -> (B, V)``.
        shape: (B, S), of the ids that they will be given.
        vocab_size: V.

    Raises:
        ValueError: a function cannot be traced, or returns something else than scores.
    """
    functions = [given] if callable(given) else given
    if not isinstance(functions, Sequence) or isinstance(functions, str):
        raise ValueError(f"logits_processor={given!r}: expected a function of (input_ids, scores), or a list of them.")
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    scores = jax.ShapeDtypeStruct((shape[0], vocab_size), jnp.float32)
    processors = []
    for i, function in enumerate(functions):
        where = f"logits_processor[{i}], {function!r},"
        if not callable(function):
            raise ValueError(f"{where} is no function of (input_ids, scores).")
        # What holds arrays may be a pytree itself; then other arrays run the same compiled code.
        tree = jax.tree_util.Partial(function) if jax.tree_util.all_leaves([function]) else function
        try:
            hash(jax.tree.structure(tree))
            made: Any = jax.eval_shape(tree, ids, scores)
        except Exception as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise ValueError(
                f"{where} cannot be traced by jax: {type(error).__name__}: {reason} It is given jax arrays once, to "
                "compile; it must be made of jax.numpy functions, with no branch on values and nothing of torch or "
                "numpy. stopping_criteria and prefix_allowed_tokens_fn run on the host."
            ) from error
        is_scores = isinstance(made, jax.ShapeDtypeStruct) and made.shape == scores.shape
        if not is_scores or not jnp.issubdtype(made.dtype, jnp.floating):
            raise ValueError(f"{where} returns {made}, but scores are floats of shape {scores.shape}.")
        processors.append(UserProcessor(tree))
    return tuple(processors)


class HostRule:
    """A user's ``prefix_allowed_tokens_fn``, asked on the host for every row and step.

    Args:
        function: of the prompt's index and the tokens so far, (n,) int32 numpy without padding; returns token ids.
    """

    def __init__(self, function: Callable[[int, np.ndarray], Any]):
        if not callable(function):
            raise ValueError(f"prefix_allowed_tokens_fn={function!r}: expected a function of (batch_id, input_ids).")
        self._function = function
        self._eos_token_ids: frozenset[int] = frozenset()
        self._prompts = self._rows = 0
        self.error: Exception | None = None

    def bind(self, settled: Settled, prompts: int, rows: int) -> None:
        """Sets what a run needs: how many of the rows of a batch are prompts, and which tokens end one."""
        self._eos_token_ids, self._prompts, self._rows = frozenset(settled.eos_token_ids), prompts, rows

    def mask(self, history: np.ndarray, new: int, vocab_size: int) -> np.ndarray:
        """Returns (B, V) bool, True at tokens that may come next; an error is kept, as none gets out of a callback."""
        allowed = np.ones((len(history), vocab_size), bool)
        beams = len(history) // max(self._rows, 1)
        for i, ids in enumerate(history[: self._prompts * beams] if self.error is None else ()):
            row = ids[ids != NO_TOKEN]
            if new and int(row[-1]) in self._eos_token_ids:
                continue
            try:
                allowed[i] = self._allowed(i // beams, row, vocab_size)
            except Exception as error:
                error.add_note(f"In prefix_allowed_tokens_fn, prompt {i // beams}, after {len(row)} tokens.")
                self.error = error
                break
        return allowed

    def _allowed(self, prompt: int, row: np.ndarray, vocab_size: int) -> np.ndarray:
        ids = np.asarray(self._function(prompt, row))
        if not ids.size:
            raise ValueError(
                f"prefix_allowed_tokens_fn allows no token for prompt {prompt}; return the end-of-sequence token where "
                "nothing else may come."
            )
        if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= vocab_size:
            raise ValueError(
                f"prefix_allowed_tokens_fn returned {ids.tolist()!r} for prompt {prompt}; expected token ids from 0 to "
                f"{vocab_size - 1}."
            )
        return np.isin(np.arange(vocab_size), ids)


_RULES: dict[int, HostRule] = {}  # those of the calls that run
_NUMBERS = itertools.count()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AllowedTokens:
    """Allows the tokens that a `HostRule` allows, with a call to the host in every step.

    Attributes:
        number: () int32, of the rule, so that another function runs the same compiled code.
        rows: static, prompts in the batch, each with the same number of beams.
    """

    number: Any
    rows: int = dataclasses.field(metadata={"static": True})

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns logits (B, V) with -inf at other tokens; 0 at the allowed ones where all of a prompt's are -inf."""
        history, _ = state.history()
        vocab_size = logits.shape[1]

        def ask(number: Any, history: Any, step: Any) -> np.ndarray:
            rule = _RULES.get(int(number))
            if rule is None:  # a step that was dispatched ahead, after the call had its answer
                return np.ones((len(history), vocab_size), bool)
            return rule.mask(np.asarray(history), int(np.asarray(step).max()), vocab_size)

        shape = jax.ShapeDtypeStruct(logits.shape, jnp.bool_)
        mask = jnp.where(jax.pure_callback(ask, shape, self.number, history, state.step), 0.0, -jnp.inf)
        masked = logits + mask
        lost = jnp.all(jnp.isneginf(masked).reshape(self.rows, -1), axis=1)  # (prompts,)
        return jnp.where(jnp.repeat(lost, len(logits) // self.rows)[:, None], mask, masked)


@dataclasses.dataclass(frozen=True)
class Given:
    """What the user gives a call to change the logits, beside settings.

    Attributes:
        functions: ``logits_processor`` as given.
        rule: of ``prefix_allowed_tokens_fn``, or None.
        number: of the rule.
    """

    functions: Any = ()
    rule: HostRule | None = None
    number: int = 0


NOTHING = Given()


@contextlib.contextmanager
def given_processors(functions: Any, allowed: Callable[[int, np.ndarray], Any] | None) -> Iterator[Given]:
    """Makes ready what the user gives a call; after it, raises what ``allowed`` raised in a callback.

    Args:
        functions: ``logits_processor``.
        allowed: ``prefix_allowed_tokens_fn``.
    """
    functions = () if functions is None else functions
    if allowed is None:
        yield Given(functions)
        return
    rule, number = HostRule(allowed), next(_NUMBERS) % 2**31
    _RULES[number] = rule
    try:
        yield Given(functions, rule, number)
    finally:
        del _RULES[number]
    if rule.error is not None:
        raise rule.error


def processors_of_call(
    settled: Settled, packed: Packed, vocab_size: int, mesh: jax.sharding.Mesh, given: Given
) -> tuple[LogitsProcessor, ...]:
    """Returns the processors of a call, as `processors_for` orders them.

    Args:
        settled: the settings.
        packed: the prompts.
        vocab_size: V, the width of the logits.
        mesh: of the model.
        given: what the user gives beside settings.

    Raises:
        ValueError: a token is not in the vocabulary, or a function cannot be traced.
    """
    source = allowed = None
    rows = packed.prompts.source_rows()
    if rows is not None and (settled.encoder_repetition_penalty != 1.0 or settled.encoder_no_repeat_ngram_size):
        ids = np.full((packed.rows, length_bucket(max(map(len, rows)))), NO_TOKEN, np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        source = place_rows(ids, mesh)
    if given.rule is not None:
        given.rule.bind(settled, len(packed.prompts.rows), packed.rows)
        allowed = AllowedTokens(np.int32(given.number), packed.rows)
    shape = (packed.rows * settled.group_beams, packed.slots)
    user = user_processors(given.functions, shape, vocab_size)
    return processors_for(settled, vocab_size, source=source, allowed=allowed, user=user)
