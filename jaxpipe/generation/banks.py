"""Constrained beam search, the part on the host: which beams of a prompt go on, by the rules of Transformers 4.49.

Beside the likeliest candidates stand those that bring a constraint further. They are sorted into banks by the steps
that they have made towards fulfilling all constraints, and the best of each bank go on in turn, so that neither
likely text nor progress is lost (Post & Vilar 2018, arXiv:1804.06609; Hu et al. 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpipe.generation.beam import UNLIKELY
from jaxpipe.generation.constraints import Constraint, ConstraintListState

# What a step towards fulfilment is worth in the order of the banks, in units of log-probability.
_STEP = 100


@dataclass(frozen=True)
class BankRules:
    """What a search follows.

    Attributes:
        beams: N.
        returned: sequences that are asked for, at most N.
        vocab_size: V.
        eos_token_ids: tokens that end a sequence.
        max_new_tokens: at which every sequence ends.
        length_penalty: power of the length by which a sequence's score is divided.
        early_stopping: True, False or ``"never"``.
    """

    beams: int
    returned: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_new_tokens: int
    length_penalty: float
    early_stopping: bool | str


@dataclass(frozen=True)
class Beam:
    """A sequence that may go on.

    Attributes:
        answer: its new tokens.
        origins: for each of them the row that it continued.
        score: float32, accumulated log-probability.
        progress: how far it has come with the constraints.
    """

    answer: tuple[int, ...]
    origins: tuple[int, ...]
    score: Any
    progress: ConstraintListState


@dataclass(frozen=True)
class Ended:
    """A sequence that ended: as `Beam`, its score divided by the power of its length."""

    answer: tuple[int, ...]
    origins: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class Step:
    """A continuation of a beam: the beam's number, the token, and the accumulated score, float32."""

    beam: int
    token: int
    score: Any


class PromptSearch:
    """The beams of one prompt, and the sequences that ended.

    Args:
        prompt: (T,) int, its tokens without padding; what they fulfil is fulfilled.
        constraints: that the sequences have to fulfil.
        first_row: row of the prompt's first beam.
        rules: of the search.
    """

    def __init__(self, prompt: np.ndarray, constraints: Sequence[Constraint], first_row: int, rules: BankRules):
        progress = ConstraintListState(constraints)
        progress.reset(prompt.tolist())
        scores = np.where(np.arange(rules.beams) == 0, 0.0, UNLIKELY).astype(np.float32)
        self.beams = [Beam((), (), score, progress) for score in scores]
        self.done = False
        self._first_row, self._rules = first_row, rules
        self._ended: list[Ended] = []  # of sequences that fulfil the constraints
        self._lacking: list[Ended] = []  # of others

    def staying(self) -> list[Step]:
        """Returns steps by which every beam goes on by itself, of a search that is done."""
        return [Step(i, 0, beam.score) for i, beam in enumerate(self.beams)]

    def wanted(self) -> list[list[int]]:
        """Returns, for each beam, the tokens that bring a constraint further.

        Raises:
            ValueError: a constraint asks for what can be no token of a sequence.
        """
        if self.done:
            return [[] for _ in self.beams]
        return [self._tokens(beam.progress) for beam in self.beams]

    def _tokens(self, progress: ConstraintListState) -> list[int]:
        tokens = [] if progress.completed else list(dict.fromkeys(progress.advance() or []))
        check_tokens(tokens, self._rules.vocab_size, self._rules.eos_token_ids)
        return tokens

    def take(self, candidates: Sequence[Step], forced: Sequence[Step], stopped: Sequence[bool]) -> list[Step]:
        """Ends what ends, and goes on with the best others.

        Args:
            candidates: the likeliest continuations, the best first, enough for N of them to go on.
            forced: those with the tokens of `wanted`.
            stopped: which of both, one after the other, end for a reason of the host's.

        Returns:
            The N continuations that go on; they are `beams` now.
        """
        rules, length = self._rules, len(self.beams[0].answer) + 1
        ends = [stop or step.token in rules.eos_token_ids for step, stop in zip(candidates, stopped, strict=False)]
        if all(ends):  # which only the host can ask for
            self._close([self._followed(step) for step in candidates[: rules.beams]])
            return list(candidates[: rules.beams])
        going: list[tuple[Step, Beam]] = []
        for rank, (step, end) in enumerate(zip(candidates, ends, strict=True)):
            if len(going) == rules.beams:
                break
            beam = self._followed(step)
            if not end:
                going.append((step, beam))
            elif rank < rules.beams and beam.progress.completed:
                self._keep(self._ended, beam)
        for step in [step for step, end in zip(candidates, ends, strict=True) if end][: rules.beams - len(going)]:
            step = Step(step.beam, step.token, step.score + np.float32(UNLIKELY))
            going.append((step, self._followed(step)))
        going = self._ranked(going, self._advancing(going, forced, stopped[len(candidates) :]))
        self.beams = [beam for _, beam in going]
        if self._is_hopeless(float(candidates[0].score), length):
            self.done = True
        elif length == rules.max_new_tokens:
            self._close(self.beams)
        return [step for step, _ in going]

    def _followed(self, step: Step) -> Beam:
        """The beam after a step; an end token is no part of what fulfils constraints."""
        beam = self.beams[step.beam]
        progress = beam.progress
        if not progress.completed and step.token not in self._rules.eos_token_ids:
            progress = progress.copy(stateful=True)
            progress.add(step.token)
        origin = self._first_row + step.beam
        return Beam((*beam.answer, step.token), (*beam.origins, origin), step.score, progress)

    def _advancing(
        self, going: Sequence[tuple[Step, Beam]], forced: Sequence[Step], stopped: Sequence[bool]
    ) -> list[tuple[Step, Beam]]:
        """Those of the forced steps that are not there yet; one that the host ends is kept if it fulfils all."""
        known = {beam.answer for _, beam in going}
        added = []
        for step, stops in zip(forced, stopped, strict=True):
            beam = self._followed(step)
            if beam.answer in known:
                continue
            known.add(beam.answer)
            if not stops:
                added.append((step, beam))
            elif beam.progress.completed:
                self._keep(self._ended, beam)
        return added

    def _ranked(self, going: list[tuple[Step, Beam]], added: list[tuple[Step, Beam]]) -> list[tuple[Step, Beam]]:
        """The N that go on: the best of each bank, then the second of each, and so on, from the furthest bank down."""
        if not added:
            return going
        both = going + added
        banks = np.asarray([beam.progress.get_bank() for _, beam in both])
        scores = np.asarray([step.score for step, _ in both], np.float32)
        order = np.argsort(-((_STEP * banks).astype(np.float32) + scores), kind="stable")
        sorted_banks = banks[order]
        # A bank may be split where a score outweighs a step; each part then has a first of its own.
        starts = np.flatnonzero(np.diff(sorted_banks, prepend=sorted_banks[0] - 1))
        rank = np.arange(len(both)) - np.repeat(starts, np.diff(starts, append=len(both)))
        return [both[order[i]] for i in np.argsort(rank, kind="stable")[: self._rules.beams]]

    def _is_hopeless(self, best: float, length: int) -> bool:
        """Whether no running beam is thought to get better than those that ended."""
        rules = self._rules
        if len(self._ended) < rules.beams or rules.early_stopping is True:
            return len(self._ended) >= rules.beams
        if rules.early_stopping == "never" and rules.length_penalty > 0:
            length = rules.max_new_tokens
        return min(ended.score for ended in self._ended) >= best / length**rules.length_penalty

    def _close(self, beams: Sequence[Beam]) -> None:
        """Ends the search with these beams."""
        for beam in beams:
            self._keep(self._ended if beam.progress.completed else self._lacking, beam)
        self.done = True

    def _keep(self, kept: list[Ended], beam: Beam) -> None:
        """Takes a sequence into the best N."""
        score = float(beam.score) / len(beam.answer) ** self._rules.length_penalty
        if len(kept) < self._rules.beams or score > min(ended.score for ended in kept):
            kept.append(Ended(beam.answer, beam.origins, score))
        if len(kept) > self._rules.beams:
            kept.remove(min(kept, key=lambda ended: ended.score))

    def best(self) -> tuple[list[Ended], int]:
        """Returns the sequences that were asked for, the best first, and how many of them fulfil the constraints.

        Those that do not come last, and only where there are not enough others.
        """
        fulfilled, lacking = (sorted(x, key=lambda ended: ended.score)[::-1] for x in (self._ended, self._lacking))
        number = self._rules.returned
        return (fulfilled + lacking)[:number], min(len(fulfilled), number)


def check_tokens(tokens: Sequence[int], vocab_size: int, eos_token_ids: Sequence[int]) -> None:
    """Checks tokens that constraints ask for.

    Raises:
        ValueError: one is outside the vocabulary, or ends a sequence.
    """
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"constraints or force_words_ids ask for token {token}: expected token ids from 0 to {vocab_size - 1}."
            )
        if token in eos_token_ids:
            raise ValueError(
                f"constraints or force_words_ids ask for token {token}, which is an eos_token_id and ends a sequence; "
                "take it out of the phrase."
            )
