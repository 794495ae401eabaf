"""The scaling of rotary positions that a GGUF file holds: as metadata, or as one factor for each frequency."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxpipe.common.errors import CheckpointError

# What llama.cpp's converter assumes of every llama3 scaling whose configuration does not say otherwise.
LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_CONTEXT = 1.0, 4.0, 8192
TOLERANCE = 1e-3


def metadata_scaling(path: Path, values: dict[str, Any]) -> dict[str, Any] | None:
    """Returns ``rope_scaling`` of config.json from the keys after ``<architecture>.rope.``, or None for no scaling.

    Raises:
        CheckpointError: the factor is missing or no number, or llama.cpp's meaning of a key has no Hub counterpart.
    """
    factor = values.get("scaling.factor", values.get("scale_linear"))
    kind = values.get("scaling.type", "linear" if factor is not None else "none")
    if kind == "none" or (kind == "linear" and factor in (None, 0.0, 1.0)):
        return None
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not isinstance(kind, str):
        raise CheckpointError(f"{path}: rope.scaling.type={kind!r:.80} needs a number as rope.scaling.factor.")
    # llama.cpp multiplies its own attention factor with it, the Hub's configurations replace theirs.
    if values.get("scaling.attn_factor", 1.0) != 1.0:
        raise CheckpointError(f"{path}: rope.scaling.attn_factor other than 1 is not supported.")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    renamed = {
        "scaling.original_context_length": "original_max_position_embeddings",
        "scaling.yarn_beta_fast": "beta_fast",
        "scaling.yarn_beta_slow": "beta_slow",
    }
    scaling.update({ours: values[theirs] for theirs, ours in renamed.items() if theirs in values})
    return scaling


def llama3_factors(theta: float, dimensions: int, scaling: dict[str, Any]) -> np.ndarray:
    """Returns by how much a llama3 scaling divides each of the ``dimensions / 2`` frequencies."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    rotations = scaling["original_max_position_embeddings"] / _wavelengths(theta, dimensions)
    smooth = np.clip((rotations - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / scaling["factor"] + smooth)


def llama3_scaling(path: Path, factors: np.ndarray, theta: float) -> dict[str, Any] | None:
    """Recovers the llama3 ``rope_scaling`` whose factors a file holds as ``rope_freqs.weight``.

    Args:
        path: the file, for messages.
        factors: what each frequency is divided by; rising from 1 to the factor of the scaling.
        theta: base of the frequencies.

    Raises:
        CheckpointError: no llama3 scaling gives these factors.
    """
    factors = np.asarray(factors, np.float64).reshape(-1)
    if not factors.size or not np.all(np.isfinite(factors)) or factors.min() <= 0:
        raise CheckpointError(f"{path}: rope_freqs.weight must hold positive factors.")
    if np.allclose(factors, 1.0, atol=1e-6):
        return None
    dimensions = 2 * factors.size
    largest = float(str(np.float32(factors.max())))
    candidates = [(LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_CONTEXT), _fit(factors, largest, _wavelengths(theta, dimensions))]
    for candidate in candidates:
        if candidate is None:
            continue
        low, high, context = candidate
        scaling = {
            "rope_type": "llama3",
            "factor": largest,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": context,
        }
        if np.allclose(llama3_factors(theta, dimensions, scaling), factors, rtol=TOLERANCE):
            return scaling
    raise CheckpointError(
        f"{path}: rope_freqs.weight holds factors of rotary frequencies that no llama3 scaling gives; "
        "files with other scalings are not supported."
    )


def _wavelengths(theta: float, dimensions: int) -> np.ndarray:
    return 2 * math.pi * theta ** (np.arange(0, dimensions, 2) / dimensions)


def _fit(factors: np.ndarray, largest: float, wavelengths: np.ndarray) -> tuple[float, float, int] | None:
    """Solves for the scaling's bounds, from the frequencies between them.

    There smooth = (context / wavelength - low) / (high - low) is a line in 1 / wavelength; only its two coefficients
    can be known, so ``low`` is taken to be 1, as in every published configuration.
    """
    smooth = (1.0 / factors - 1.0 / largest) / (1.0 - 1.0 / largest)
    between = (smooth > TOLERANCE) & (smooth < 1.0 - TOLERANCE)
    if between.sum() < 2:
        return None
    slope, offset = np.polyfit(1.0 / wavelengths[between], smooth[between], 1)
    if slope <= 0 or offset >= 0:
        return None
    return 1.0, round(1.0 - 1.0 / offset, 3), round(-slope / offset)
