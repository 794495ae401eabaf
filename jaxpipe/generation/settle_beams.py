"""The settings of beam search: read and checked together."""

import math
from types import NoneType
from typing import Any

from jaxpipe.generation.fields import BEAMS_ONLY
from jaxpipe.generation.layers import Merged
from jaxpipe.generation.settle_groups import check_single_beam, constraint_settings, group_settings, note_unused


def beam_settings(merged: Merged, do_sample: bool) -> dict[str, Any]:
    """Returns ``num_beams``, ``num_return_sequences``, and what else a search with more than one beam follows.

    Args:
        merged: the settings of a call.
        do_sample: whether the call samples.

    Raises:
        ValueError: a value is out of range, or more sequences are asked for than there are different ones.
    """
    num_beams = merged.integer("num_beams", 1, absent=1)
    number = merged.integer("num_return_sequences", 1, absent=1)
    if num_beams == 1:
        if number > 1 and not do_sample:
            raise ValueError(
                f"num_return_sequences={number} with greedy decoding (num_beams=1, do_sample=False) would give the "
                f"same sequence each time; set do_sample=True, num_beams={number} or num_return_sequences=1."
            )
        check_single_beam(merged)
        note_unused(merged, BEAMS_ONLY)
        return {"num_beams": 1, "num_return_sequences": number}
    if number > num_beams:
        raise ValueError(
            f"num_return_sequences={number} is more than num_beams={num_beams}, and a search returns at most its "
            "beams; raise num_beams, or lower num_return_sequences."
        )
    early_stopping = merged.get("early_stopping")
    if early_stopping != "never" and not isinstance(early_stopping, (bool, NoneType)):
        raise merged.error("early_stopping", 'True, False or "never"')
    length_penalty = merged.real("length_penalty", -math.inf, math.inf, "a finite number, or None")
    groups = group_settings(merged, num_beams, do_sample)
    others = {"do_sample": do_sample or None, "num_beam_groups": groups.get("num_beam_groups")}
    return {
        **groups,
        **constraint_settings(merged, **others),
        "num_beams": num_beams,
        "num_return_sequences": number,
        "early_stopping": early_stopping or False,
        "length_penalty": 1.0 if length_penalty is None else length_penalty,
    }
