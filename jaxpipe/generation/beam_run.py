"""One call of `generate` with beams: the host's side around the jitted functions of `beam`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpipe.generation.beam import BeamChoice, Beams, BeamState
from jaxpipe.generation.buckets import length_bucket
from jaxpipe.generation.growth import cache_sizes, grow_beams
from jaxpipe.generation.outputs import GenerateBeamOutput, output_class
from jaxpipe.generation.packing import Packed, place_rows
from jaxpipe.generation.processors import LogitsProcessor, check_logits
from jaxpipe.generation.sampling import row_keys
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.stopping import HostStops, eos_array
from jaxpipe.nn.functional import Leaves


def beam_choice(settled: Settled, vocab_size: int, slots: int, processors: tuple[LogitsProcessor, ...]) -> BeamChoice:
    """Makes the choice of a search, without keys.

    Args:
        settled: the settings of the call.
        vocab_size: V, the width of the logits.
        slots: S, of the cache.
        processors: applied to the log-probabilities in order.

    Raises:
        ValueError: the length penalty leaves float32, or there are fewer tokens than a beam needs continuations.
    """
    each = max(2, 1 + len(settled.eos_token_ids))
    if each > vocab_size:
        raise ValueError(
            f"num_beams={settled.num_beams} with {len(settled.eos_token_ids)} tokens in eos_token_id needs {each} "
            f"continuations of a beam, but the vocabulary has {vocab_size} tokens."
        )
    longest = settled.max_new_tokens
    divisors = np.ones((slots + 1,), np.float32)
    with np.errstate(over="ignore", under="ignore"):
        divisors[1 : longest + 1] = np.arange(1, longest + 1, dtype=np.float64) ** settled.length_penalty
    if not (np.isfinite(divisors).all() and (divisors > 0).all()):
        raise ValueError(
            f"length_penalty={settled.length_penalty} with max_new_tokens={longest}: {longest} to that power is beyond "
            "float32; bring length_penalty closer to 0."
        )
    returned = settled.return_dict_in_generate
    return BeamChoice(
        processors=processors,
        keys=None,
        eos_ids=eos_array(settled.eos_token_ids),
        pad_id=np.int32(settled.pad_token_id or 0),
        max_new_tokens=np.int32(longest),
        divisors=divisors,
        stop_when_full=np.bool_(settled.early_stopping is True),
        hopeful=np.bool_(settled.early_stopping == "never" and settled.length_penalty > 0),
        do_sample=settled.do_sample,
        beams=settled.group_beams,
        candidates=each * settled.group_beams,
        groups=settled.num_beam_groups,
        record=tuple(name for name in ("scores", "logits") if returned and getattr(settled, f"output_{name}")),
    )


class BeamRun:
    """A search: prefilled when made, then decoded to the end or step by step.

    Args:
        beams: the model's jitted functions.
        leaves: its weights.
        packed: the prompts.
        settled: the settings of the call.
        vocab_size: V, the width of the logits.
        processors: applied to the log-probabilities in order.
        items: (B,) indices of the prompts in the user's input.
        seed: of the draws.
        mesh: of the model.
    """

    def __init__(
        self,
        beams: Beams,
        leaves: Leaves,
        packed: Packed,
        settled: Settled,
        *,
        vocab_size: int,
        processors: tuple[LogitsProcessor, ...],
        items: Sequence[int],
        seed: int,
        mesh: Mesh,
    ):
        self._beams, self._leaves, self.packed, self._settled, self._mesh = beams, leaves, packed, settled, mesh
        self._count = len(packed.prompts.rows)
        self._choice = beam_choice(settled, vocab_size, packed.slots, processors)
        if settled.do_sample:
            item = np.pad(np.asarray(items), (0, packed.rows - self._count))
            keys = row_keys(seed, item, np.zeros_like(item))
            self._choice = replace(self._choice, keys=place_rows(keys, mesh))
        recorded = length_bucket(settled.max_new_tokens) if self._choice.record else 0
        self.state: BeamState
        self.found: Any  # `Candidates`, or what a run of another kind chooses from
        self._sizes, layout = cache_sizes(packed, settled)
        self.state, self.found = beams.prefill(leaves, *packed.arrays, self._choice, self._sizes[0], recorded, layout)

    def compile(self) -> Iterator[int]:
        """Compiles the decode for every length that the cache may have, by running it with the first token as the last;
        yields the lengths.
        """
        self._choice = replace(self._choice, max_new_tokens=np.int32(1))
        for slots in self._sizes:
            self._advance_to_end(slots)
            jax.block_until_ready(self.state)
            yield slots

    def to_end(self) -> None:
        """Decodes all tokens in one dispatch, or in one for each length of a growing cache."""
        for slots in self._sizes:
            if slots > self._sizes[0] and np.asarray(self.state.done).all():
                return
            self._advance_to_end(slots)

    def _advance_to_end(self, slots: int) -> None:
        """Decodes in a cache of that length until all prompts are done or it is full."""
        if slots == self._sizes[0]:
            self.state = self._beams.decode(self._leaves, self.state, self.found, self._choice)
        else:
            self._grow(slots)
            self.state = self._beams.resume(self._leaves, self.state, self._choice)

    def _grow(self, slots: int) -> None:
        if self.state.tokens.shape[1] < slots:
            self.state = grow_beams(self.state, slots, int(self._choice.pad_id))

    def _grow_for_next(self) -> None:
        needed = self.packed.width + int(self.state.step) + 1
        self._grow(next(slots for slots in self._sizes if slots >= needed))

    def step_by_step(self, stops: HostStops) -> None:
        """Decodes with the host reading every candidate."""
        while True:
            self.state = self._beams.select(self.state, self.found, self._stopped(stops), self._choice)
            if np.asarray(self.state.done).all():
                return
            self._grow_for_next()
            self.state, self.found = self._beams.advance(self._leaves, self.state, self._choice)

    def _stopped(self, stops: HostStops) -> np.ndarray:
        """Which candidates end on the host, (rows, C) bool."""
        tokens, parents = (np.asarray(x)[: self._count] for x in (self.found.tokens, self.found.beams))  # (B, C)
        stopped = np.zeros((self.packed.rows, tokens.shape[1]), bool)
        stopped[: self._count] = stopped_candidates(stops, self.packed, self._answers(), tokens, parents)
        return stopped

    def _answers(self) -> np.ndarray:
        """The new tokens of each prompt's beams, (B, N, new)."""
        new = slice(self.packed.width, self.packed.width + int(self.state.step))
        tokens = np.asarray(self.state.tokens)[:, new]
        return tokens.reshape(self.packed.rows, self._settled.num_beams, tokens.shape[1])[: self._count]

    def output(self) -> jax.Array | GenerateBeamOutput:
        """Joins prompts and the best finished sequences into what `generate` returns.

        Raises:
            ValueError: the logits of a prompt were NaN.
        """
        settled, count, number = self._settled, self._count, self._settled.num_return_sequences
        broken = np.asarray(self.state.broken).reshape(self.packed.rows, -1)[:count]
        check_logits(np.logical_or.reduce(broken, axis=1))
        tokens, origins, all_scores = self._best()
        longest = int((origins >= 0).sum(axis=2).max())
        tokens, origins = (x[:, :, :longest].reshape(count * number, longest) for x in (tokens, origins))
        ids = np.concatenate([np.repeat(self.packed.prompts.ids, number, axis=0), tokens], axis=1)
        sequences = jax.device_put(ids, self._mesh.devices.flat[0])
        if not settled.return_dict_in_generate:
            return sequences
        steps, rows = self._steps(), count * settled.num_beams
        recorded = {
            name: tuple(np.asarray(values)[:rows, i] for i in range(steps))
            for name, values in self.state.recorded.items()
        }
        scores = all_scores.reshape(-1) if settled.output_scores else None
        made = output_class(beams=True, encoder_decoder=self.packed.prompts.source_rows() is not None)
        return made(sequences=sequences, sequences_scores=scores, beam_indices=origins, **recorded)

    def _steps(self) -> int:
        """Steps that were recorded."""
        return int(self.state.step)

    def _best(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each prompt's n returned sequences the new tokens and origins (B, n, new), and the scores (B, n)."""
        settled, finished = self._settled, self.state.finished
        new = slice(self.packed.width, self.packed.width + settled.max_new_tokens)
        parts = (np.asarray(finished.tokens)[:, :, new], np.asarray(finished.origins)[:, :, new], finished.scores)
        tokens, origins, scores = (
            np.asarray(x).reshape(self.packed.rows, settled.num_beams, *x.shape[2:])[: self._count] for x in parts
        )
        best = np.broadcast_to(np.arange(settled.num_beams), scores.shape)
        if settled.num_beam_groups > 1:
            # Each group's come the best first; among equals of different groups, that of the later group.
            best = np.argsort(scores, axis=1, kind="stable")[:, ::-1]
        rows, best = np.arange(self._count)[:, None], best[:, : settled.num_return_sequences]
        return tokens[rows, best], origins[rows, best], scores[rows, best]


def stopped_candidates(
    stops: HostStops, packed: Packed, answers: np.ndarray, tokens: np.ndarray, parents: np.ndarray
) -> np.ndarray:
    """Asks the host which candidates end, with one sequence for each.

    Args:
        stops: what ends sequences on the host.
        packed: the prompts, B of them.
        answers: (B, N, new) int, the new tokens of the beams.
        tokens: (B, C) int, of the candidates.
        parents: (B, C) int, the beams that they continue.

    Returns:
        (B, C) bool.
    """
    prompts, (count, candidates) = packed.prompts, tokens.shape
    before = answers[np.arange(count)[:, None], parents]
    ids = np.concatenate([before, tokens[:, :, None]], axis=2)  # (B, C, new + 1)
    new = ids.shape[2]
    sequences = np.concatenate([np.repeat(prompts.ids, candidates, axis=0), ids.reshape(-1, new)], axis=1)
    rows = [np.concatenate([row, answer]) for row, own in zip(prompts.rows, ids, strict=True) for answer in own]
    return stops.stopped(sequences, rows, new).reshape(count, candidates)
