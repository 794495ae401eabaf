"""Rotary position embedding (Su et al., 2021) and its scaled forms."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.common.errors import ConfigError, nearest

Array = jax.Array
Table = tuple[Array, Array]


@dataclass(frozen=True)
class _Spec:
    """What the frequencies of a rope type are made from: parameters, rotated dimensions, the config's positions."""

    parameters: Mapping[str, Any]
    head_dim: int
    max_positions: int

    @property
    def width(self) -> int:
        """Dimensions of a head that turn; an odd number turns one more (see `pairs`)."""
        return int(self.head_dim * (self.parameters.get("partial_rotary_factor") or 1.0))

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a parameter, `default` where it is missing or null."""
        value = self.parameters.get(key)
        if value is None and default is None:
            raise ConfigError(f"config.json: rope_type={self.parameters.get('rope_type')!r} needs {key!r}.")
        return default if value is None else value  # type: ignore[return-value]

    @property
    def original(self) -> float:
        """Positions that the model was first trained on."""
        return self.number("original_max_position_embeddings", self.max_positions or None)

    @property
    def factor(self) -> float:
        """How far the positions are stretched; where it is not given, as far as the config's lengths say."""
        if self.parameters.get("factor") is not None:
            return self.parameters["factor"]
        return self.max_positions / self.original if self.max_positions else self.number("factor")

    def exponents(self, over: int | None = None, width: int | None = None) -> np.ndarray:
        """Exponents of theta of every pair, in float32: models were trained with what float32 rounds these to."""
        return np.arange(0, width or self.width, 2, dtype=np.float32) / np.float32(over or self.width)

    def powers(self) -> np.ndarray:
        """Theta to the exponents, float32."""
        return np.float32(self.parameters["rope_theta"]) ** self.exponents()

    def plain(self) -> np.ndarray:
        """Inverse frequencies without any scaling."""
        return np.float32(1.0) / self.powers()


def _linear(spec: _Spec) -> np.ndarray:
    """Position interpolation (Chen et al., 2023): every position is divided by the factor."""
    return spec.plain() / np.float32(spec.factor)


def _llama3(spec: _Spec) -> np.ndarray:
    """Llama 3.1's scaling: long wavelengths are divided by the factor, short ones kept, a ramp between."""
    inverse, factor = spec.plain(), spec.factor
    low, high = spec.number("low_freq_factor"), spec.number("high_freq_factor")
    turns = spec.original * inverse / (2 * np.pi)  # full turns within the original context
    ramp = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - ramp) * inverse / factor + ramp * inverse


def _yarn(spec: _Spec) -> np.ndarray:
    """YaRN (Peng et al., 2023): pairs that turn seldom are interpolated, those that turn often kept, a ramp between."""
    width, theta = spec.width, spec.parameters["rope_theta"]

    def pair(turns: float) -> float:
        """Pair that makes so many turns within the original context."""
        return width * math.log(spec.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    # Zero stands for the default here too.
    low, high = pair(spec.parameters.get("beta_fast") or 32), pair(spec.parameters.get("beta_slow") or 1)
    if spec.parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high = high + 0.001 if high == low else high
    powers = spec.powers()
    ramp = np.clip((np.arange(len(powers), dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    return ramp / (np.float32(spec.factor) * powers) + (1 - ramp) / powers


def _longrope(spec: _Spec, kind: str = "short_factor") -> np.ndarray:
    """LongRoPE (Ding et al., 2024): every pair has a factor of its own, one set for short and one for long inputs."""
    factors = np.asarray(spec.parameters[kind], np.float32)
    if factors.shape != spec.exponents().shape:
        raise ConfigError(
            f"config.json: {kind} of the rope parameters must hold {len(spec.exponents())} numbers, one for each "
            f"rotated pair of a head, found {len(factors)}."
        )
    return np.float32(1.0) / (factors * spec.powers())


def _proportional(spec: _Spec) -> np.ndarray:
    """The first pairs turn as if the whole head did, at a slowed pace; the others stand still."""
    turning = int((spec.parameters.get("partial_rotary_factor") or 1.0) * spec.head_dim // 2)
    exponents = spec.exponents(over=spec.head_dim, width=2 * turning)
    inverse = np.float32(1.0) / np.float32(spec.parameters["rope_theta"]) ** exponents
    still = np.zeros(spec.head_dim // 2 - turning, np.float32)
    return np.concatenate([inverse, still]) / np.float32(spec.number("factor", 1.0))


def _yarn_attention(spec: _Spec) -> float:
    """YaRN's temperature, brought to the scores by way of cosine and sine."""

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(spec.factor) + 1.0 if spec.factor > 1 else 1.0

    over, under = spec.parameters.get("mscale"), spec.parameters.get("mscale_all_dim")
    return temperature(over) / temperature(under) if over and under else temperature(1.0)


def _longrope_attention(spec: _Spec) -> float:
    return math.sqrt(1 + math.log(spec.factor) / math.log(spec.original)) if spec.factor > 1 else 1.0


@dataclass(frozen=True)
class _RopeType:
    """A rope type.

    Attributes:
        frequencies: radians per position of each pair, float32, for short inputs.
        needs: keys of positive numbers that it cannot do without.
        attention: what cosine and sine are multiplied by, unless ``attention_factor`` says.
        lists: keys of lists of numbers that it cannot do without.
    """

    frequencies: Callable[[_Spec], np.ndarray]
    needs: tuple[str, ...] = ()
    attention: Callable[[_Spec], float] | None = None
    lists: tuple[str, ...] = ()


ROPE_TYPES: dict[str, _RopeType] = {
    "default": _RopeType(_Spec.plain),
    "linear": _RopeType(_linear, ("factor",)),
    "dynamic": _RopeType(_Spec.plain, ("factor",)),
    "yarn": _RopeType(_yarn, (), _yarn_attention),
    "longrope": _RopeType(_longrope, (), _longrope_attention, ("short_factor", "long_factor")),
    "llama3": _RopeType(_llama3, ("factor", "low_freq_factor", "high_freq_factor")),
    "proportional": _RopeType(_proportional),
}
# Older names of rope types.
_ALIASES = {"su": "longrope", "ntk": "dynamic"}
# Types that know the length that a model was first trained on.
_WITH_ORIGINAL = ("llama3", "yarn", "longrope")


def rope_parameters(
    config: Mapping[str, Any],
    *,
    theta: float | Mapping[str, float] = 10_000.0,
    partial: float | None = None,
    scaled: Iterable[str] = ("full_attention",),
) -> dict[str, Any]:
    """Reads the rope keys of a config.json in either dialect: ``rope_parameters`` (version 5), or
    ``rope_theta``, ``rope_scaling`` and ``partial_rotary_factor`` (version 4).

    A ``max_position_embeddings`` among the keys stands in for a missing ``original_max_position_embeddings``,
    and that key beside the rope parameters goes before the one within.

    Args:
        config: keys of config.json.
        theta: of a config that names none; one for each layer type gives parameters by layer type.
        partial: ``partial_rotary_factor`` of a config that names none.
        scaled: the layer types that ``rope_scaling`` is about where the parameters are by layer type.

    Raises:
        ConfigError: the rope type is unknown, or a key that it needs is missing or not a number.
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise ConfigError(f"config.json: rope parameters must be an object, found {scaling!r}.")
    if isinstance(theta, Mapping):
        common = {key: value for key, value in scaling.items() if key not in theta}
        given = {kind: scaling.get(kind) or (common if kind in scaled else {}) for kind in theta}
        shared = {key: value for key, value in config.items() if key not in ("rope_parameters", "rope_scaling")}
        return {
            kind: rope_parameters({**shared, "rope_parameters": given[kind]}, theta=theta[kind], partial=partial)
            for kind in theta
        }
    parameters = {key: value for key, value in scaling.items() if key != "type"}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    kind = parameters["rope_type"] = _ALIASES.get(kind, kind)
    parameters.setdefault("rope_theta", config["rope_theta"] if config.get("rope_theta") is not None else theta)
    if config.get("partial_rotary_factor") is not None or partial is not None:
        given = config.get("partial_rotary_factor")
        parameters.setdefault("partial_rotary_factor", partial if given is None else given)
    if kind in _WITH_ORIGINAL:
        if config.get("original_max_position_embeddings") is not None:
            parameters["original_max_position_embeddings"] = config["original_max_position_embeddings"]
        elif config.get("max_position_embeddings") is not None:
            parameters.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
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
    for key in ("rope_theta", *ROPE_TYPES[kind].needs):
        if not _positive(parameters.get(key)):
            raise ConfigError(
                f"config.json: rope_type={kind!r} needs a positive number {key!r}, found {parameters.get(key)!r}."
            )
    for key in ("factor", "partial_rotary_factor", "original_max_position_embeddings", "attention_factor"):
        if parameters.get(key) is not None and not _positive(parameters[key]):
            raise ConfigError(f"config.json: {key} of the rope parameters must be positive, found {parameters[key]!r}.")
    for key in ROPE_TYPES[kind].lists:
        values = parameters.get(key)
        if not isinstance(values, list | tuple) or not all(_positive(value) for value in values):
            raise ConfigError(f"config.json: rope_type={kind!r} needs a list of positive numbers {key!r}.")


def _positive(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and value > 0


_input_length: ContextVar[Array | None] = ContextVar("input_length", default=None)


@contextlib.contextmanager
def input_length(length: Array) -> Iterator[None]:
    """Entered inside a jitted function that calls a model on a part of an input of `length` () tokens."""
    token = _input_length.set(length)
    try:
        yield
    finally:
        _input_length.reset(token)


@dataclass(frozen=True)
class Rope:
    """The frequencies of one kind of rotary layer.

    Attributes:
        parameters: as `rope_parameters` gives them, as a sorted tuple of pairs.
        head_dim: h; the first ``partial_rotary_factor`` of it is rotated.
        max_positions: the config's ``max_position_embeddings``, which some types scale by; 0 where it is not known.
    """

    parameters: tuple[tuple[str, Any], ...]
    head_dim: int
    max_positions: int = 0

    @classmethod
    def of(cls, parameters: Mapping[str, Any], head_dim: int, max_positions: int = 0) -> "Rope":
        """Makes the frequencies from a config's rope parameters.

        Raises:
            ConfigError: the rotated part of a head cannot be split into pairs, or a parameter is missing.
        """
        hashable = {k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()}
        rope = cls(tuple(sorted(hashable.items())), head_dim, max_positions)
        width = rope._spec.width
        if not 0 < width + width % 2 <= head_dim:
            raise ConfigError(
                f"config.json: {width} of the {head_dim} dimensions of a head would be rotated; it must be an even "
                "number of them (see head_dim and partial_rotary_factor)."
            )
        if rope._kind == "dynamic" and (not max_positions or width < 4):
            raise ConfigError(
                "config.json: rope_type='dynamic' needs max_position_embeddings and 4 rotated dimensions."
            )
        rope.check()
        return rope

    def check(self) -> None:
        """Raises ConfigError where a parameter that the type needs is missing, or a list has a wrong length."""
        kind = ROPE_TYPES[self._kind]
        kind.frequencies(self._spec)
        if kind.attention is not None:
            kind.attention(self._spec)
        if self._kind == "longrope":
            _longrope(self._spec, "long_factor")

    @property
    def _spec(self) -> _Spec:
        return _Spec(dict(self.parameters), self.head_dim, self.max_positions)

    @property
    def _kind(self) -> str:
        return self._spec.parameters.get("rope_type", "default")

    @property
    def inverse_frequencies(self) -> np.ndarray:
        """Radians per position of each rotated pair, float32 (rotated / 2,), of inputs to `longest_unscaled`."""
        return ROPE_TYPES[self._kind].frequencies(self._spec).astype(np.float32)

    @property
    def attention_factor(self) -> float:
        """What cosine and sine are multiplied by."""
        attention = ROPE_TYPES[self._kind].attention
        if attention is None:
            return 1.0
        given = self._spec.parameters.get("attention_factor")
        return attention(self._spec) if given is None else float(given)

    @property
    def longest_unscaled(self) -> int | None:
        """Tokens of the longest input whose frequencies are `inverse_frequencies`; None if they are those of all."""
        if self._kind == "dynamic":
            return self.max_positions
        return int(self._spec.original) if self._kind == "longrope" else None

    def frequencies_at(self, length: Array) -> Array:
        """Radians per position (rotated / 2,) of an input of `length` () tokens, where they depend on it."""
        spec = self._spec
        if self._kind == "longrope":
            return jnp.where(length > spec.original, _longrope(spec, "long_factor"), _longrope(spec))
        # NTK-aware scaling: theta grows with the input, so that the slowest pair still makes less than a turn.
        factor, longest = spec.factor, self.max_positions
        growth = factor * jnp.maximum(length, longest).astype(jnp.float32) / longest - (factor - 1)
        theta = spec.parameters["rope_theta"] * growth ** (spec.width / (spec.width - 2))
        return 1.0 / theta ** spec.exponents()

    def __call__(self, positions: Array, valid: Array | None = None) -> Table:
        """Returns cosine and sine (B, T, rotated / 2) in float32 of positions (B, T).

        Args:
            positions: (1 or B, T) int32.
            valid: (B, T), False at padding. Types that depend on the length of the input take it from the
                batch's last valid position, as the cached keys were rotated when their turn came; a part of an input
                takes that of the whole, see `input_length`.
        """
        inverse: Any = self.inverse_frequencies
        if self.longest_unscaled is not None:
            last = positions if valid is None else jnp.where(valid.astype(bool), positions, 0)
            whole = _input_length.get()
            inverse = self.frequencies_at(jnp.max(last) + 1 if whole is None else whole)
        angles = positions[..., None].astype(jnp.float32) * inverse
        factor = self.attention_factor
        if factor == 1.0:
            return jnp.cos(angles), jnp.sin(angles)
        return jnp.cos(angles) * factor, jnp.sin(angles) * factor


@dataclass(frozen=True)
class LayerRopes:
    """The frequencies of a model whose layer types have rope parameters of their own.

    Attributes:
        ropes: pairs of a layer type and its frequencies.
    """

    ropes: tuple[tuple[str, Rope], ...]

    @classmethod
    def of(
        cls, parameters: Mapping[str, Mapping[str, Any]], head_dim: int | Mapping[str, int], max_positions: int = 0
    ) -> "LayerRopes":
        """Makes the frequencies from a config's rope parameters by layer type; see `Rope.of`."""
        widths = head_dim if isinstance(head_dim, Mapping) else dict.fromkeys(parameters, head_dim)
        return cls(tuple((kind, Rope.of(given, widths[kind], max_positions)) for kind, given in parameters.items()))

    def __call__(self, positions: Array, valid: Array | None = None) -> dict[str, Table]:
        """Returns each layer type's cosine and sine; see `Rope.__call__`."""
        return {kind: rope(positions, valid) for kind, rope in self.ropes}


def rotate(x: Array, table: Table, *, interleaved: bool = False) -> Array:
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
