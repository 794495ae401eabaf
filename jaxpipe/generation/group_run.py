"""One call of `generate` with groups of beams: the host's side around the jitted functions of `group_beam`."""

from typing import Any

import numpy as np

from jaxpipe.generation.beam_run import BeamRun, stopped_candidates
from jaxpipe.generation.group_beam import GroupBeams
from jaxpipe.generation.stopping import HostStops


class GroupRun(BeamRun):
    """A diverse beam search: prefilled when made, then decoded to the end or step by step; arguments of `BeamRun`.

    What `BeamRun` keeps as candidates are the logits that the groups choose from, one after another.
    """

    def __init__(self, beams: GroupBeams, *args: Any, **kwargs: Any):
        super().__init__(beams, *args, **kwargs)  # type: ignore[arg-type]  # prefill, decode, resume and advance agree
        self._groups = beams

    def step_by_step(self, stops: HostStops) -> None:
        """Decodes with the host reading every group's candidates."""
        while True:
            self._step(stops)
            if np.asarray(self.state.done).all():
                return
            self._grow_for_next()
            self.state, self.found = self._groups.advance(self._leaves, self.state, self._choice)

    def _step(self, stops: HostStops) -> None:
        # All groups' beams as they were before the step.
        before = self._answers().reshape(self._count, self._choice.groups, self._choice.beams, -1)
        done = np.asarray(self.state.done)
        turns = self._groups.begin(self.found, self.state, self._choice)
        for number in range(self._choice.groups):
            group = np.int32(number)
            turns, found = self._groups.propose(turns, group, self._choice)
            tokens, parents = (np.asarray(x)[: self._count] for x in (found.tokens, found.beams))
            stopped = np.zeros(found.tokens.shape, bool)
            stopped[: self._count] = stopped_candidates(stops, self.packed, before[:, number], tokens, parents)
            turns = self._groups.select(turns, group, found, stopped, self._choice)
        self.state = self._groups.close(turns.state, turns.logits, turns.scores, done, self._choice)
