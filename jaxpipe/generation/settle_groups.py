"""The settings of diverse and of constrained beam search: read and checked together."""

import math
from typing import Any

from jaxpipe.common.logging import info_once
from jaxpipe.generation.constraints import Constraint, DisjunctiveConstraint, PhrasalConstraint
from jaxpipe.generation.layers import Merged, as_int

CONSTRAINTS = ("constraints", "force_words_ids")


def group_settings(merged: Merged, num_beams: int, do_sample: bool) -> dict[str, Any]:
    """Returns ``num_beam_groups`` and ``diversity_penalty`` of a search with more than one beam.

    Args:
        merged: the settings of a call.
        num_beams: of the call.
        do_sample: whether the call samples.

    Raises:
        ValueError: a value is out of range, or does not go with others.
    """
    # 1.0 is no group either, as it is for any setting that is left at its neutral value.
    groups = 1 if merged.get("num_beam_groups") == 1.0 else merged.integer("num_beam_groups", 1, absent=1)
    penalty = merged.real("diversity_penalty", 0.0, math.inf, "a number of at least 0, or None") or 0.0
    if groups == 1:
        if penalty and merged.by_user("diversity_penalty"):
            raise ValueError(
                f"diversity_penalty={penalty} keeps groups of beams apart, but num_beam_groups is 1: set "
                "num_beam_groups, or leave diversity_penalty out."
            )
        return {}
    named = f"num_beam_groups={groups}"
    if do_sample:
        raise ValueError(f"{named} with do_sample=True: diverse beam search does not sample; set do_sample=False.")
    if num_beams % groups:
        raise ValueError(
            f"{named} does not divide num_beams={num_beams}: every group has the same number of beams; set num_beams "
            f"to a multiple of {groups}."
        )
    if not penalty:
        raise ValueError(
            f"{named} with diversity_penalty={merged.get('diversity_penalty')!r}: all groups would find the same; set "
            "diversity_penalty above 0."
        )
    return {"num_beam_groups": groups, "diversity_penalty": penalty}


def check_single_beam(merged: Merged) -> None:
    """Checks the settings that need beams where there is one beam.

    Raises:
        ValueError: the call asks for groups or constraints.
    """
    for name in CONSTRAINTS:
        if merged.get(name) is not None:
            raise ValueError(f"{name} needs beams to choose among: set num_beams above 1, or leave {name} out.")
    groups = merged.get("num_beam_groups")
    if groups is not None and groups != 1 and merged.by_user("num_beam_groups"):
        raise merged.error("num_beam_groups", "at most num_beams=1; raise num_beams, or leave num_beam_groups out")


def constraint_settings(merged: Merged, **others: Any) -> dict[str, Any]:
    """Returns ``constraints``, those of ``force_words_ids`` among them, of a search with more than one beam.

    Args:
        merged: the settings of a call.
        others: settings of the call that do not go with constraints, by name, and None where they are off.

    Raises:
        ValueError: a value has another form, or does not go with others.
    """
    constraints = (*_constraints(merged), *_forced_words(merged))
    for name, value in others.items() if constraints else ():
        if value is not None:
            raise ValueError(
                f"constraints or force_words_ids with {name}={value!r}: constrained beam search does not go with it; "
                "leave one of them out."
            )
    return {"constraints": constraints}


def _constraints(merged: Merged) -> tuple[Constraint, ...]:
    value = merged.get("constraints")
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(c, Constraint) for c in value):
        raise merged.error("constraints", "a non-empty list of jaxpipe.Constraint objects")
    for constraint in value:
        if (as_int(getattr(constraint, "seqlen", None)) or 0) < 1:
            raise ValueError(
                f"The constraint {constraint!r} has no seqlen: a subclass of Constraint sets self.seqlen to the number "
                "of steps that it takes, at least 1."
            )
    return tuple(value)


def _forced_words(merged: Merged) -> list[Constraint]:
    value = merged.get("force_words_ids")
    if value is None:
        return []
    expected = (
        "a list of words, each a list of token ids of at least 0, or a list of such lists of which one has to come; "
        "none of them empty"
    )
    if not isinstance(value, (list, tuple)) or not value:
        raise merged.error("force_words_ids", expected)
    found: list[Constraint] = []
    for word in value:
        if not isinstance(word, (list, tuple)) or not word:
            raise merged.error("force_words_ids", expected)
        one_of = isinstance(word[0], (list, tuple))
        for ids in word if one_of else [word]:
            tokens = [as_int(i) for i in ids] if isinstance(ids, (list, tuple)) else []
            if not tokens or any(i is None or i < 0 for i in tokens):
                raise merged.error("force_words_ids", expected)
        found.append(DisjunctiveConstraint(word) if one_of else PhrasalConstraint(word))
    return found


def note_unused(merged: Merged, names: tuple[str, ...]) -> None:
    """Logs which settings the user gave in vain, as there is one beam only."""
    for name in names:
        if merged.by_user(name) and merged.get(name) is not None:
            info_once(f"{name} is accepted and has no effect: it only acts with num_beams above 1.")
