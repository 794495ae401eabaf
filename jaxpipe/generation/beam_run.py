"""One call of `generate` with beams: the host's side around the jitted functions of `beam`."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpipe.common.outputs import ModelOutput
from jaxpipe.generation.beam import BeamChoice, Beams, BeamState, Candidates
from jaxpipe.generation.buckets import length_bucket
from jaxpipe.generation.packing import Packed, place_rows
from jaxpipe.generation.processors import LogitsProcessor, check_logits
from jaxpipe.generation.sampling import row_keys
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.stopping import HostStops, eos_array
from jaxpipe.nn.functional import Leaves


class GenerateBeamOutput(ModelOutput):
    """Of `generate` with beams and ``return_dict_in_generate``. B prompts have N beams and n returned sequences.

    ``sequences`` (B * n, prompt + new) int32, the best of each prompt first; ``sequences_scores`` (B * n,) float32,
    sums of log-probabilities divided by the length's power (with ``output_scores``); one (B * N, V) float32 array for
    each step of ``scores`` (processed log-probabilities) and ``logits`` (as the model gave them); ``beam_indices``
    (B * n, new) int32, for each new token the row of ``scores`` that it was chosen from, -1 after the end.
    """

    sequences: jax.Array
    sequences_scores: np.ndarray | None = None
    scores: tuple[np.ndarray, ...] | None = None
    logits: tuple[np.ndarray, ...] | None = None
    beam_indices: np.ndarray | None = None


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
        beams=settled.num_beams,
        candidates=each * settled.num_beams,
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
        self.found: Candidates
        self.state, self.found = beams.prefill(leaves, *packed.arrays, self._choice, packed.slots, recorded)

    def compile(self) -> None:
        """Compiles the decode by running it with the first token as the last."""
        self._choice = replace(self._choice, max_new_tokens=np.int32(1))
        self.to_end()
        jax.block_until_ready(self.state)

    def to_end(self) -> None:
        """Decodes all tokens in one dispatch."""
        self.state = self._beams.decode(self._leaves, self.state, self.found, self._choice)

    def step_by_step(self, stops: HostStops) -> None:
        """Decodes with the host reading every candidate."""
        while True:
            self.state = self._beams.select(self.state, self.found, self._stopped(stops), self._choice)
            if np.asarray(self.state.done).all():
                return
            self.state, self.found = self._beams.advance(self._leaves, self.state, self._choice)

    def _stopped(self, stops: HostStops) -> np.ndarray:
        """Which candidates end on the host, (rows, C) bool; asked with one sequence for each candidate."""
        prompts, width, count = self.packed.prompts, self.packed.width, self._count
        new = int(self.state.step) + 1
        tokens, parents = (np.asarray(x)[:count] for x in (self.found.tokens, self.found.beams))  # (B, C)
        before = np.asarray(self.state.tokens)[:, width : width + new - 1].reshape(
            self.packed.rows, self._settled.num_beams, new - 1
        )
        ids = np.concatenate([before[np.arange(count)[:, None], parents], tokens[:, :, None]], axis=2)  # (B, C, new)
        candidates = tokens.shape[1]
        answers = ids.reshape(count * candidates, new)
        sequences = np.concatenate([np.repeat(prompts.ids, candidates, axis=0), answers], axis=1)
        rows = [np.concatenate([row, answer]) for row, own in zip(prompts.rows, ids, strict=True) for answer in own]
        stopped = np.zeros((self.packed.rows, candidates), bool)
        stopped[:count] = stops.stopped(sequences, rows, new).reshape(count, candidates)
        return stopped

    def output(self) -> jax.Array | GenerateBeamOutput:
        """Joins prompts and the best finished sequences into what `generate` returns.

        Raises:
            ValueError: the logits of a prompt were NaN.
        """
        settled, width, count = self._settled, self.packed.width, self._count
        number = settled.num_return_sequences
        check_logits(np.asarray(self.state.broken)[:count])
        finished = self.state.finished
        new = slice(width, width + settled.max_new_tokens)
        tokens, origins = (np.asarray(x)[:count, :number, new] for x in (finished.tokens, finished.origins))
        longest = int((origins >= 0).sum(axis=2).max())
        tokens, origins = (x[:, :, :longest].reshape(count * number, longest) for x in (tokens, origins))
        ids = np.concatenate([np.repeat(self.packed.prompts.ids, number, axis=0), tokens], axis=1)
        sequences = jax.device_put(ids, self._mesh.devices.flat[0])
        if not settled.return_dict_in_generate:
            return sequences
        steps, rows = int(self.state.step), count * settled.num_beams
        recorded = {
            name: tuple(np.asarray(values)[:rows, i] for i in range(steps))
            for name, values in self.state.recorded.items()
        }
        scores = np.asarray(finished.scores)[:count, :number].reshape(-1) if settled.output_scores else None
        return GenerateBeamOutput(sequences=sequences, sequences_scores=scores, beam_indices=origins, **recorded)
