"""Where generated rows end by themselves, without what fills them up in their batch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxpipe.generation.stopping import StopStrings


class Ends:
    """Where a row of new tokens ended by itself, so that the fillers of its batch are not part of the result.

    Args:
        given: the settings of the call.
        tokenizer: for the stop strings.
    """

    def __init__(self, given: Mapping[str, Any], tokenizer: Any) -> None:
        eos = given.get("eos_token_id")
        self._eos = set() if eos is None else {int(token) for token in np.atleast_1d(eos)}
        strings = given.get("stop_strings")
        self._strings = StopStrings(tokenizer, strings) if strings else None
        self._total = total_length(given)

    def cut(self, prompt: list[int], new: list[int]) -> list[int]:
        """Returns the new tokens up to an end-of-sequence token, the end of a stop string or ``max_length``."""
        kept = len(new) if self._total is None else min(len(new), self._total - len(prompt))
        kept = next((place + 1 for place, token in enumerate(new[:kept]) if token in self._eos), kept)
        stop = self._strings.first_stop(prompt + new[:kept], len(prompt)) if self._strings else None
        return new[: kept if stop is None else stop]


def total_length(given: Mapping[str, Any]) -> int | None:
    """Returns ``max_length`` where it decides, which it does only without ``max_new_tokens``; None elsewhere."""
    return given.get("max_length") if given.get("max_new_tokens") is None else None
