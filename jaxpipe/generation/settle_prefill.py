"""The settings of how prompts are read."""

from typing import Any

from jaxpipe.generation.layers import Merged


def prefill_settings(merged: Merged) -> dict[str, Any]:
    """Returns ``prefill_chunk_size``, None where it is not set.

    Args:
        merged: the settings of a call.

    Raises:
        ValueError: a value is out of range.
    """
    size = merged.integer("prefill_chunk_size", 1, absent=0)
    return {"prefill_chunk_size": size or None}
