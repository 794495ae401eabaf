"""The settings of contrastive search, DoLa and classifier-free guidance: read and checked together."""

import math
from typing import Any

from jaxpipe.common.logging import info_once, warn_once
from jaxpipe.generation.layers import Merged, as_int

REPETITION_FOR_DOLA = 1.2
"""The least repetition penalty that DoLa's authors advise."""


def contrast_settings(merged: Merged, do_sample: bool) -> dict[str, Any]:
    """Returns ``penalty_alpha`` with ``candidates``, ``dola_layers`` and ``guidance_scale``.

    The rules are those of Transformers 4.49, ``GenerationConfig.get_generation_mode``.

    Args:
        merged: the settings of a call.
        do_sample: whether the call samples.

    Raises:
        ValueError: a value is out of range, or two of them, or one and another way of decoding, exclude each other.
    """
    alpha, candidates = _contrastive(merged, do_sample)
    layers = _dola_layers(merged)
    scale = _guidance_scale(merged)
    asked = {
        f"penalty_alpha={alpha} with top_k={candidates} (contrastive search)": candidates > 0,
        f"dola_layers={merged.get('dola_layers')!r} (DoLa)": layers is not None,
        f"guidance_scale={scale} (classifier-free guidance)": scale != 1.0,
    }
    names = [name for name, yes in asked.items() if yes]
    if len(names) > 1:
        raise ValueError(f"{names[0]} and {names[1]} exclude each other; leave one of them out.")
    if candidates or layers is not None:
        _check_alone(merged, names[0])
    if layers is not None and merged.positive("repetition_penalty") < REPETITION_FOR_DOLA:
        info_once(
            f"dola_layers: DoLa tends to repeat itself; a repetition_penalty of {REPETITION_FOR_DOLA} is advised."
        )
    return {"penalty_alpha": alpha, "candidates": candidates, "dola_layers": layers, "guidance_scale": scale}


def _check_alone(merged: Merged, name: str) -> None:
    """Raises ValueError where another way of decoding is asked for too; `name` is the one with its value."""
    ways = {
        "num_beams": merged.integer("num_beams", 1, absent=1) > 1,
        "prompt_lookup_num_tokens": merged.get("prompt_lookup_num_tokens") is not None,
        "constraints": merged.get("constraints") is not None,
        "force_words_ids": merged.get("force_words_ids") is not None,
    }
    for other, asked in ways.items():
        if asked:
            raise ValueError(
                f"{name} cannot be combined with {other}={merged.get(other)!r}, another way of decoding; leave one of "
                "them out."
            )


def _contrastive(merged: Merged, do_sample: bool) -> tuple[float, int]:
    """``penalty_alpha`` and the candidates of a step; zeros where they do not act."""
    alpha = merged.real("penalty_alpha", 0.0, 1.0, "a number from 0 (off) to 1, or None")
    if not alpha:
        return 0.0, 0
    candidates = merged.integer("top_k", 0, absent=0)
    if do_sample or merged.integer("num_beams", 1, absent=1) > 1:
        reason = "do_sample=False and num_beams=1"
    elif candidates < 2:
        reason = "top_k of at least 2, its number of candidates"
    else:
        return alpha, candidates
    if merged.by_user("penalty_alpha"):
        warn_once(f"penalty_alpha={alpha!r} is ignored: contrastive search needs {reason}.")
    return 0.0, 0


def _dola_layers(merged: Merged) -> str | tuple[int, ...] | None:
    value = merged.get("dola_layers")
    if value is None or value in ("low", "high"):
        return value
    layers = [as_int(entry) for entry in value] if isinstance(value, (list, tuple, range)) else []
    valid = tuple(dict.fromkeys(i for i in layers if i is not None and i >= 0))
    if not valid or None in layers or any(i is not None and i < 0 for i in layers):
        raise merged.error("dola_layers", '"low", "high", or a list of numbers of layers from 0, the embedding, on')
    return valid


def _guidance_scale(merged: Merged) -> float:
    scale = merged.real("guidance_scale", -math.inf, math.inf, "a finite number, or None")
    return 1.0 if scale is None else scale
