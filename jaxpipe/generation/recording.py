"""Hidden states and attentions of `generate`: each step's outputs, brought to the columns that the user sees.

Prompts lie in the cache without their padding and new tokens in slots of their own, so what comes from the device is
placed by position. Only calls that ask for these outputs run here: one dispatch a token, read by the host.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxpipe.generation.beam import BeamChoice, BeamState, Candidates, make_beams
from jaxpipe.generation.inputs import Prompts
from jaxpipe.generation.loop import Choice, DecodeState, make_decode, make_prefill
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.strategies import Strategy
from jaxpipe.models.config import ModelConfig
from jaxpipe.nn.functional import Functional, Leaves

Array = jax.Array
Marks = dict[str, Any]

_FIELDS = ("hidden_states", "attentions", "cross_attentions", "encoder_hidden_states", "encoder_attentions")


@dataclass(frozen=True)
class _Telling(Functional):
    """A module whose calls put out hidden states and attentions as well."""

    states: bool = False
    weights: bool = False

    def call(self, leaves: Leaves, *args: Any, **kwargs: Any) -> Any:
        switches = {"output_hidden_states": self.states, "output_attentions": self.weights}
        return super().call(leaves, *args, **kwargs, **switches)


def _telling(functional: Functional, states: bool, weights: bool) -> _Telling:
    own = {name: getattr(functional, name) for name in functional.__dataclass_fields__}
    return _Telling(**own, states=states, weights=weights)


def _marks(out: Any) -> Marks:
    """What of a model's output is kept, by the names of a decoder, and the position (B, S) of what each slot holds."""
    marks: Marks = {"positions": out.cache.positions}
    for name in _FIELDS:
        found = getattr(out, name, None)
        found = getattr(out, f"decoder_{name}", None) if found is None else found
        if found is not None:
            marks[name] = found
    return marks


def _noting(call: Callable[..., Any], kept: list[Marks]) -> Callable[..., Any]:
    """Returns a call of the model that keeps its marks."""

    def noted(*args: Any, **kwargs: Any) -> Any:
        out = call(*args, **kwargs)
        kept.append(_marks(out))
        return out

    return noted


@dataclass(frozen=True)
class Recording:
    """The jitted functions of calls that record, made by `make_recording`.

    Each takes two static arguments before those of its twin, whether hidden states and whether attentions are put out,
    and returns marks beside the twin's result.

    Attributes:
        layers: tells of the weights what each layer of the model keeps.
        prefill: twin of `loop.make_prefill`.
        decode: twin of `loop.make_decode`, for one step.
        prefill_beams, advance: twins of those of `beam.Beams`.
    """

    layers: Callable[[Leaves], Sequence[Any]]
    prefill: Callable[..., tuple[DecodeState, Marks]]
    decode: Callable[..., tuple[tuple[DecodeState, Array], Marks]]
    prefill_beams: Callable[..., tuple[tuple[BeamState, Candidates], Marks]]
    advance: Callable[..., tuple[tuple[BeamState, Candidates], Marks]]


def make_recording(functional: Functional, read: Callable[..., Any], forward: Callable[..., Any]) -> Recording:
    """Makes the functions of a model; `read` and `forward` call it, as `read_prompts` and `next_logits` do."""

    def with_marks(make: Callable[..., Callable[..., Any]], **jit: Any) -> Callable[..., Any]:
        def traced(states: bool, weights: bool, *args: Any) -> Any:
            kept: list[Marks] = []
            telling = _telling(functional, states, weights)
            plain = make(telling, _noting(read, kept), _noting(forward, kept))
            return plain(*args), kept[0]

        return jax.jit(traced, **jit)

    def unjitted(function: Any) -> Callable[..., Any]:
        return function.__wrapped__  # so that the marks belong to the trace of the twin

    prefill = {"static_argnums": (0, 1, 8, 9, 10)}
    step = {"static_argnums": (0, 1), "donate_argnums": 3}
    return Recording(
        layers=lambda leaves: functional.module(leaves).cache_layers(),
        prefill=with_marks(lambda told, read, _: unjitted(make_prefill(told, read)), **prefill),
        decode=with_marks(lambda told, _, forward: unjitted(make_decode(told, forward)), **step),
        prefill_beams=with_marks(lambda *made: unjitted(make_beams(*made).prefill), **prefill),
        advance=with_marks(lambda *made: unjitted(make_beams(*made).advance), **step),
    )


@dataclass(frozen=True)
class _Only:
    """Stands for the strategies of a model where one is set."""

    strategy: Strategy

    def of(self, settled: Settled) -> Strategy:
        return self.strategy


def recorder_of(
    recording: Recording, config: ModelConfig, settled: Settled, leaves: Leaves, *, alone: bool
) -> "Recorder | None":
    """Returns what records a call; None where it is asked for neither hidden states nor attentions.

    Args:
        recording: the model's functions.
        config: of the model.
        settled: the settings of the call.
        leaves: the model's weights.
        alone: no tokens are proposed to the model.

    Raises:
        ValueError: the strategy of the call, or the model, has no such outputs.
    """
    asked = [name for name in ("output_hidden_states", "output_attentions") if getattr(settled, name)]
    if not asked or not settled.return_dict_in_generate:
        return None
    others = {
        "assistant_model": None if alone or settled.prompt_lookup_num_tokens else "given",
        "penalty_alpha": settled.penalty_alpha if settled.candidates else None,
        "dola_layers": settled.dola_layers,
        "guidance_scale": None if settled.guidance_scale == 1.0 else settled.guidance_scale,
        "prompt_lookup_num_tokens": settled.prompt_lookup_num_tokens or None,
        "constraints": settled.constraints or None,
        "num_beam_groups": None if settled.num_beam_groups == 1 else settled.num_beam_groups,
    }
    for name, value in others.items():
        if value is not None:
            raise ValueError(
                f"{asked[0]}=True does not go with {name}={value!r}: hidden states and attentions are put out by "
                "greedy search, sampling and beam search. Leave one of them out."
            )
    if settled.output_attentions and not any(isinstance(layer, tuple) for layer in recording.layers(leaves)):
        raise ValueError(f"output_attentions=True: {config.model_type!r} has no attention; leave it out.")
    return Recorder(recording, config, settled)


class Recorder:
    """Hidden states and attentions of one call; see `recorder_of`."""

    def __init__(self, recording: Recording, config: ModelConfig, settled: Settled):
        self._recording, self._config, self._settled = recording, config, settled
        self._switches = settled.output_hidden_states, settled.output_attentions
        self._steps: list[Marks] = []

    def _note(self, result: Any, marks: Marks) -> Any:
        """Takes down on the host what a step put out, and returns its result."""
        self._steps.append(jax.tree.map(np.asarray, marks))
        return result

    def engine(self, generator: Any) -> Any:
        """Returns a copy of a `Generator` whose steps are taken down here."""
        recording, switches = self._recording, self._switches

        def dense(*args: Any) -> tuple[Any, ...]:
            *rest, layout = args
            return (*switches, *rest, replace(layout, ring=False))  # a ring keeps no positions

        def prefill(*args: Any) -> DecodeState:
            return self._note(*recording.prefill(*dense(*args)))

        def decode(leaves: Leaves, state: DecodeState, choice: Choice, steps: Any) -> tuple[DecodeState, Array]:
            return self._note(*recording.decode(*switches, leaves, state, choice, None))

        def prefill_beams(*args: Any) -> tuple[BeamState, Candidates]:
            return self._note(*recording.prefill_beams(*dense(*args)))

        def advance(leaves: Leaves, state: BeamState, choice: BeamChoice) -> tuple[BeamState, Candidates]:
            return self._note(*recording.advance(*switches, leaves, state, choice))

        plain: Strategy = generator.strategies.of(self._settled)
        assert plain.beams is not None  # of the plain strategy, which the settings are checked for
        beams = replace(plain.beams, prefill=prefill_beams, advance=advance)
        engine = copy.copy(generator)
        engine.strategies = _Only(plain._replace(prefill=prefill, decode=decode, beams=beams))
        return engine

    def fill(self, output: Any, prompts: Prompts) -> Any:
        """Returns the output of the call with what was recorded.

        Args:
            output: of `generate`, without.
            prompts: as given.
        """
        # A step may have been dispatched ahead; a beam search may go on for longer than its best sequences.
        new = output.sequences.shape[1] - prompts.ids.shape[1]
        steps = len(self._steps) if self._settled.num_beams > 1 else new
        return replace(output, **self._fields(prompts, self._settled, steps))

    def _fields(self, prompts: Prompts, settled: Settled, steps: int) -> Mapping[str, Any]:
        source = prompts.source_rows()
        beams = settled.num_beams > 1
        each = settled.num_beams if beams else settled.num_return_sequences
        placing = _Placing(prompts, each, _windows(self._config))
        found: dict[str, Any] = {}
        own = "decoder_" if source is not None else ""
        repeated = each if beams else 1  # a beam search reads each prompt once, sampling as often as it is answered
        taped = self._steps[:steps]
        if self._switches[0]:
            found[f"{own}hidden_states"] = tuple(
                placing.states(marks["hidden_states"], repeated if i == 0 else 1, i) for i, marks in enumerate(taped)
            )
        if self._switches[1]:
            found[f"{own}attentions"] = tuple(
                placing.attentions(marks["attentions"], marks["positions"], repeated if i == 0 else 1, i)
                for i, marks in enumerate(taped)
            )
        if source is not None:
            tokens = prompts.source.shape[1]  # type: ignore[attr-defined]
            every = 1 if beams else each
            if self._switches[1]:
                found["cross_attentions"] = tuple(
                    placing.cross(marks["cross_attentions"], tokens, repeated if i == 0 else 1, i)
                    for i, marks in enumerate(taped)
                )
                found["encoder_attentions"] = tuple(
                    x[: placing.rows // each * every : every, :, :tokens, :tokens]
                    for x in taped[0]["encoder_attentions"]
                )
            if self._switches[0]:
                found["encoder_hidden_states"] = tuple(
                    x[: placing.rows // each * every : every, :tokens] for x in taped[0]["encoder_hidden_states"]
                )
        return found


def _windows(config: ModelConfig) -> Callable[[int], int | None]:
    """Returns, by layer, the columns that a layer's attention is over once they are many; None for all."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)

    def of(layer: int) -> int | None:
        slides = kinds is None or kinds[layer] == "sliding_attention"
        return window if slides else None

    return of


class _Placing:
    """Brings what a call's rows put out to the columns of the sequences that the user sees.

    Args:
        prompts: as given, B of them.
        each: rows of each prompt.
        windows: see `_windows`.
    """

    def __init__(self, prompts: Prompts, each: int, windows: Callable[[int], int | None]):
        self.width = prompts.ids.shape[1]
        columns = [np.arange(self.width)] * len(prompts.ids)
        if prompts.mask is not None:
            columns = [np.flatnonzero(row) for row in prompts.mask]
        self._columns: Sequence[np.ndarray] = [own for own in columns for _ in range(each)]
        self.rows = len(self._columns)
        # A window's last columns hold all that is seen where no padding stands between.
        aligned = all(own[-1] == self.width - 1 and own[-1] - own[0] == len(own) - 1 for own in columns)
        self._windows = windows if aligned else lambda layer: None

    def states(self, layers: Sequence[np.ndarray], repeated: int, step: int) -> tuple[np.ndarray, ...]:
        """Hidden states (rows, T, D) of each layer, of the prompt's call or of one with one token a row."""
        return tuple(self._queries(x, repeated, step, axis=1) for x in layers)

    def cross(self, layers: Sequence[np.ndarray], tokens: int, repeated: int, step: int) -> tuple[np.ndarray, ...]:
        """Attentions (rows, H, T, S) over the encoder's S tokens."""
        return tuple(self._queries(x[..., :tokens], repeated, step, axis=2) for x in layers)

    def attentions(
        self, layers: Sequence[np.ndarray], positions: np.ndarray, repeated: int, step: int
    ) -> tuple[np.ndarray, ...]:
        """Attentions (rows, H, T, columns) over the tokens so far."""
        total = self.width + step
        placed = []
        for number, x in enumerate(layers):
            x = np.repeat(x, repeated, axis=0)[: self.rows]
            out = np.zeros((*x.shape[:2], self.width if step == 0 else 1, total), x.dtype)
            for row, own in enumerate(self._columns):
                if step == 0:
                    out[row][:, own[:, None], own] = x[row, :, : len(own), : len(own)]
                    continue
                held = np.flatnonzero(positions[row] >= 0)
                later = np.arange(self.width, total)
                out[row][:, 0, np.concatenate([own, later])[positions[row, held]]] = x[row, :, 0, held].T
            window = self._windows(number) if step else None
            placed.append(out if window is None else out[..., -window:])
        return tuple(placed)

    def _queries(self, x: np.ndarray, repeated: int, step: int, axis: int) -> np.ndarray:
        x = np.repeat(x, repeated, axis=0)[: self.rows]
        if step:
            return x
        out = np.zeros((*x.shape[:axis], self.width, *x.shape[axis + 1 :]), x.dtype)
        for row, own in enumerate(self._columns):
            np.moveaxis(out[row], axis - 1, 0)[own] = np.moveaxis(x[row], axis - 1, 0)[: len(own)]
        return out
