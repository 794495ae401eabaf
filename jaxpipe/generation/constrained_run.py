"""One call of `generate` with constraints: the host chooses, the device computes; see `banks`."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxpipe.common.logging import warn_once
from jaxpipe.generation.banks import BankRules, PromptSearch, Step, check_tokens
from jaxpipe.generation.beam import Candidates
from jaxpipe.generation.beam_run import BeamRun
from jaxpipe.generation.constrained_beam import ConstrainedBeams
from jaxpipe.generation.constraints import Constraint, DisjunctiveConstraint, PhrasalConstraint
from jaxpipe.generation.packing import Packed, place_rows
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.step import bucket
from jaxpipe.generation.stopping import HostStops
from jaxpipe.nn.functional import Leaves


class ConstrainedRun(BeamRun):
    """A constrained beam search, with the arguments of `BeamRun`: prefilled when made, then decoded step by step."""

    def __init__(
        self,
        beams: ConstrainedBeams,
        leaves: Leaves,
        packed: Packed,
        settled: Settled,
        *,
        vocab_size: int,
        **kwargs: Any,
    ):
        for constraint in settled.constraints:
            check_tokens(_tokens_of(constraint), vocab_size, settled.eos_token_ids)
        rules = BankRules(
            beams=settled.num_beams,
            returned=settled.num_return_sequences,
            vocab_size=vocab_size,
            eos_token_ids=settled.eos_token_ids,
            max_new_tokens=settled.max_new_tokens,
            length_penalty=settled.length_penalty,
            early_stopping=settled.early_stopping,
        )
        self._searches = [
            PromptSearch(row, settled.constraints, i * settled.num_beams, rules)
            for i, row in enumerate(packed.prompts.rows)
        ]
        for search in self._searches:
            search.wanted()  # a constraint of the user's may fail here, before anything compiles
        super().__init__(beams, leaves, packed, settled, vocab_size=vocab_size, **kwargs)  # type: ignore[arg-type]
        self._constrained, self._most = beams, 1
        self.state, self.found = beams.offer(self.found, self.state, self._wanted(), self._choice)

    def _wanted(self) -> jax.Array:
        """For each prompt and beam, the tokens that bring a constraint further, which are noted; see `_place`."""
        self._asked = [search.wanted() for search in self._searches]
        return self._place(self._asked)

    def _place(self, wanted: Sequence[Sequence[Sequence[int]]]) -> jax.Array:
        """Brings tokens to the device, (rows, N, A) int32 with -1 where there is none; A never shrinks."""
        self._most = max(self._most, *(len(tokens) for beams in wanted for tokens in beams))
        array = np.full((self.packed.rows, self._settled.num_beams, bucket(self._most)), -1, np.int32)
        for i, beams in enumerate(wanted):
            for j, tokens in enumerate(beams):
                array[i, j, : len(tokens)] = tokens
        return place_rows(array, self._mesh)

    def compile(self) -> Iterator[int]:
        """Compiles the step for every length that the cache may have, by running it; yields the lengths."""
        for slots in self._sizes:
            self._grow(slots)
            self._advance([search.staying() for search in self._searches])
            jax.block_until_ready(self.state)
            yield slots

    def to_end(self) -> None:
        """Decodes all tokens."""
        self.step_by_step(HostStops(None, ()))

    def step_by_step(self, stops: HostStops) -> None:
        """Decodes with the host choosing in every step."""
        while True:
            steps = self._choose(stops)
            if all(search.done for search in self._searches):
                return
            self._grow_for_next()
            self._advance(steps)

    def _choose(self, stops: HostStops) -> list[list[Step]]:
        """Lets every prompt choose the N steps that it goes on with; one that is done stays where it is."""
        found, wanted = jax.tree.map(np.asarray, (self.found.found, self.found.wanted))
        offers: list[tuple[list[Step], list[Step]]] = []
        for i, asked in enumerate(self._asked):
            likely = zip(found.beams[i].tolist(), found.tokens[i].tolist(), found.scores[i], strict=True)
            forced = [Step(j, t, wanted[i, j, k]) for j, own in enumerate(asked) for k, t in enumerate(own)]
            offers.append(([Step(*step) for step in likely], forced))
        stopped = self._stopped_steps(stops, [likely + forced for likely, forced in offers])
        return [
            search.staying() if search.done else search.take(*offer, ends)
            for search, offer, ends in zip(self._searches, offers, stopped, strict=True)
        ]

    def _stopped_steps(self, stops: HostStops, steps: Sequence[Sequence[Step]]) -> list[list[bool]]:
        """Which steps of each prompt end on the host; that of a prompt that is done is not asked about."""
        if not stops:
            return [[False] * len(own) for own in steps]
        prompts = self.packed.prompts
        sequences, rows = [], []
        for search, own, ids, prompt in zip(self._searches, steps, prompts.ids, prompts.rows, strict=True):
            for step in () if search.done else own:
                answer = [*search.beams[step.beam].answer, step.token]
                sequences.append(np.concatenate([ids, answer]).astype(ids.dtype))
                rows.append(np.concatenate([prompt, answer]).astype(ids.dtype))
        answers = iter(stops.stopped(np.stack(sequences), rows, len(sequences[0]) - prompts.ids.shape[1]).tolist())
        return [
            [False if search.done else next(answers) for _ in own]
            for search, own in zip(self._searches, steps, strict=True)
        ]

    def _advance(self, steps: Sequence[Sequence[Step]]) -> None:
        """Goes on with N steps of each prompt."""
        shape = (self.packed.rows, self._settled.num_beams)
        beams = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape).copy()
        tokens, scores, done = np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.ones(shape[:1], bool)
        for i, (search, own) in enumerate(zip(self._searches, steps, strict=True)):
            done[i] = search.done
            for j, step in enumerate(own):
                beams[i, j], tokens[i, j], scores[i, j] = step.beam, step.token, step.score
        chosen = Candidates(*(place_rows(x, self._mesh) for x in (tokens, beams, scores)))
        done, wanted = place_rows(done, self._mesh), self._wanted()
        self.state, self.found = self._constrained.step(self._leaves, self.state, chosen, done, wanted, self._choice)

    def _steps(self) -> int:
        """Steps that were recorded; the last is not counted by the state, as nothing follows it."""
        return int(self.state.step) + 1

    def _best(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each prompt's n returned sequences the new tokens and origins (B, n, new), and the scores (B, n)."""
        shape = (self._count, self._settled.num_return_sequences)
        tokens = np.full((*shape, self._settled.max_new_tokens), int(self._choice.pad_id), np.int32)
        origins, scores = np.full_like(tokens, -1), np.zeros(shape, np.float32)
        for i, search in enumerate(self._searches):
            best, fulfilled = search.best()
            if fulfilled < len(best):
                warn_once(
                    f"{len(best) - fulfilled} of {len(best)} sequences that a constrained beam search returns do not "
                    "fulfil the constraints: raise max_new_tokens or num_beams."
                )
            for j, ended in enumerate(best):
                tokens[i, j, : len(ended.answer)], scores[i, j] = ended.answer, ended.score
                origins[i, j, : len(ended.answer)] = ended.origins
        return tokens, origins, scores


def _tokens_of(constraint: Constraint) -> Sequence[int]:
    """All tokens of a phrase or of phrases; those of a user's own constraint are looked at as it asks for them."""
    if isinstance(constraint, PhrasalConstraint):
        return constraint.token_ids
    if isinstance(constraint, DisjunctiveConstraint):
        return [token for phrase in constraint.token_ids for token in phrase]
    return ()
