"""The settings of assisted and of prompt-lookup decoding: read and checked together."""

from typing import Any

from jaxpipe.common.logging import info_once
from jaxpipe.generation.layers import Merged

SCHEDULES = ("constant", "heuristic", "heuristic_transient")
"""How the number of proposed tokens changes: not at all, or with what was accepted, kept between calls or not."""

ASSISTANT_ONLY = ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold")
"""Settings that only act with ``assistant_model``, whose own generation config may hold them too."""


def assisted_settings(merged: Merged) -> dict[str, Any]:
    """Returns the settings of speculative decoding; those of an assistant only where the user gave them in the call.

    Args:
        merged: the settings of a call.

    Raises:
        ValueError: a value is out of range.
    """
    number = merged.integer("prompt_lookup_num_tokens", 1, absent=0)
    ngram = merged.integer("max_matching_ngram_size", 1, absent=2)
    if merged.by_user("max_matching_ngram_size") and not number:
        info_once("max_matching_ngram_size has no effect: it only acts with prompt_lookup_num_tokens.")
    schedule = merged.get("num_assistant_tokens_schedule")
    if schedule is not None and schedule not in SCHEDULES:
        raise merged.error("num_assistant_tokens_schedule", f"one of {', '.join(map(repr, SCHEDULES))}, or None")
    given = {
        "num_assistant_tokens": merged.integer("num_assistant_tokens", 1, absent=0) or None,
        "num_assistant_tokens_schedule": schedule,
        "assistant_confidence_threshold": merged.real(
            "assistant_confidence_threshold", 0.0, 1.0, "a number from 0 to 1, or None"
        ),
    }
    return {
        "prompt_lookup_num_tokens": number,
        "max_matching_ngram_size": ngram,
        **{name: value for name, value in given.items() if merged.by_user(name)},
    }
