"""Rotary position embedding (Su et al., 2021) and its scaled forms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.common.errors import ConfigError, nearest

Array = jax.Array


def _default(inverse: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    return inverse


def _linear(inverse: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    """Position interpolation (Chen et al., 2023): every position is divided by the factor."""
    return inverse / parameters["factor"]


def _llama3(inverse: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    """Llama 3.1's scaling: long wavelengths are divided by the factor, short ones kept, a ramp between."""
    factor, original = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    turns = original * inverse / (2 * np.pi)  # full turns within the original context
    ramp = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - ramp) * inverse / factor + ramp * inverse


# Frequencies of each rope type, with the keys that it needs in the config.
ROPE_TYPES: dict[str, tuple[Callable[[np.ndarray, Mapping[str, Any]], np.ndarray], tuple[str, ...]]] = {
    "default": (_default, ()),
    "linear": (_linear, ("factor",)),
    "llama3": (_llama3, ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")),
}


def rope_parameters(config: Mapping[str, Any], *, theta: float = 10_000.0) -> dict[str, Any]:
    """Reads the rope keys of a config.json in either dialect: ``rope_parameters`` (version 5), or
    ``rope_theta``, ``rope_scaling`` and ``partial_rotary_factor`` (version 4).

    Raises:
        ConfigError: the rope type is unknown, or a key that it needs is missing or not a number.
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise ConfigError(f"config.json: rope parameters must be an object, found {scaling!r}.")
    parameters = {key: value for key, value in scaling.items() if key != "type"}
    parameters["rope_type"] = scaling.get("rope_type") or scaling.get("type") or "default"
    parameters.setdefault("rope_theta", config["rope_theta"] if config.get("rope_theta") is not None else theta)
    if config.get("partial_rotary_factor") is not None:
        parameters.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    check_rope(parameters)
    return parameters


def check_rope(parameters: Mapping[str, Any]) -> None:
    """Raises ConfigError where rope parameters name an unknown type or lack a number that they need."""
    kind = parameters.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise ConfigError(
            f"config.json: rope_type={kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}."
            + nearest(str(kind), ROPE_TYPES)
        )
    for key in ("rope_theta", *ROPE_TYPES[kind][1]):
        value = parameters.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ConfigError(f"config.json: rope_type={kind!r} needs a positive number {key!r}, found {value!r}.")


@dataclass(frozen=True)
class Rope:
    """The frequencies of one kind of rotary layer.

    Attributes:
        parameters: as `rope_parameters` gives them, as a sorted tuple of pairs.
        head_dim: h; the first ``partial_rotary_factor`` of it is rotated.
    """

    parameters: tuple[tuple[str, Any], ...]
    head_dim: int

    @classmethod
    def of(cls, parameters: Mapping[str, Any], head_dim: int) -> "Rope":
        """Makes the frequencies from a config's rope parameters.

        Raises:
            ConfigError: the rotated part of a head cannot be split into pairs.
        """
        rotated = int(head_dim * (parameters.get("partial_rotary_factor") or 1.0))
        if rotated % 2 or not 0 < rotated <= head_dim:
            raise ConfigError(
                f"config.json: {rotated} of the {head_dim} dimensions of a head would be rotated; it must be an even "
                "number of them (see head_dim and partial_rotary_factor)."
            )
        hashable = {k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()}
        return cls(tuple(sorted(hashable.items())), head_dim)

    @property
    def inverse_frequencies(self) -> np.ndarray:
        """Radians per position of each rotated pair, float32 (rotated / 2,)."""
        parameters = dict(self.parameters)
        rotated = int(self.head_dim * (parameters.get("partial_rotary_factor") or 1.0))
        # In float32 throughout: models were trained with what float32 rounds these to.
        exponents = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
        inverse = np.float32(1.0) / np.float32(parameters["rope_theta"]) ** exponents
        return ROPE_TYPES[parameters["rope_type"]][0](inverse, parameters).astype(np.float32)

    def __call__(self, positions: Array) -> tuple[Array, Array]:
        """Returns cosine and sine (B, T, rotated / 2) in float32 of positions (B, T)."""
        angles = positions[..., None].astype(jnp.float32) * self.inverse_frequencies
        return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, table: tuple[Array, Array], *, interleaved: bool = False) -> Array:
    """Rotates the first dimensions of x (B, T, H, h) by the angles of `table`, in pairs.

    Args:
        x: queries or keys.
        table: cosine and sine (B, T, rotated / 2).
        interleaved: pairs are neighbours (2i, 2i + 1), else halves (i, i + rotated / 2).
    """
    cos, sin = (t[:, :, None, :] for t in table)  # (B, T, 1, rotated / 2)
    half = cos.shape[-1]
    turning = x[..., : 2 * half].astype(jnp.float32)
    first, second = (turning[..., ::2], turning[..., 1::2]) if interleaved else jnp.split(turning, 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    joined = jnp.stack(turned, axis=-1).reshape(turning.shape) if interleaved else jnp.concatenate(turned, axis=-1)
    return jnp.concatenate([joined.astype(x.dtype), x[..., 2 * half :]], axis=-1)
