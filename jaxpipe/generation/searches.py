"""Which kind of beam search a call runs."""

import functools
from collections.abc import Callable

from jaxpipe.generation.beam_run import BeamRun
from jaxpipe.generation.constrained_run import ConstrainedRun
from jaxpipe.generation.group_run import GroupRun
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.strategies import Strategy


def search_of(strategy: Strategy, settled: Settled) -> Callable[..., BeamRun]:
    """Returns what makes the run of a search, of the other arguments of `BeamRun`.

    Args:
        strategy: the model's functions.
        settled: the settings of the call.
    """
    if settled.constraints:
        assert strategy.constrained is not None  # a strategy that searches has them all
        return functools.partial(ConstrainedRun, strategy.constrained)
    if settled.num_beam_groups > 1:
        assert strategy.groups is not None
        return functools.partial(GroupRun, strategy.groups)
    assert strategy.beams is not None
    return functools.partial(BeamRun, strategy.beams)
