"""Layers of generation settings, and typed reading of the values that they hold together."""

import math
import operator
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from jaxpipe.common.logging import warn_once
from jaxpipe.generation.fields import DEFAULTS


class Layer(NamedTuple):
    """Settings from one origin.

    Attributes:
        values: the settings that the origin sets; None is a value and means off.
        origin: the origin in words, for messages.
        by_user: whether the user set them in this call; the others come with the model or are defaults.
    """

    values: Mapping[str, Any]
    origin: str
    by_user: bool


class Merged:
    """The layers as one mapping: the first layer that holds a name decides, then `DEFAULTS`."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = (*layers, Layer(DEFAULTS, "the default", by_user=False))
        self._deciding = {name: layer for layer in reversed(self.layers) for name in layer.values}

    def layer(self, name: str) -> Layer | None:
        """The layer that decides, or None."""
        return self._deciding.get(name)

    def get(self, name: str) -> Any:
        """The value, None where nothing sets it."""
        layer = self.layer(name)
        return None if layer is None else layer.values[name]

    def is_given(self, name: str) -> bool:
        """Whether a layer other than the defaults decides, and not by None."""
        layer = self.layer(name)
        return layer is not None and layer is not self.layers[-1] and layer.values[name] is not None

    def by_user(self, name: str) -> bool:
        """Whether the user set the value in this call."""
        layer = self.layer(name)
        return layer is not None and layer.by_user

    def error(self, name: str, expected: str) -> ValueError:
        """Makes the error that names the value, where it comes from and what was expected."""
        layer = self.layer(name)
        origin = "" if layer is None else f" ({layer.origin})"
        return ValueError(f"{name}={self.get(name)!r}{origin}: expected {expected}.")

    def integer(self, name: str, minimum: int, absent: int) -> int:
        """The value as an int of at least ``minimum``; ``absent`` where it is None."""
        value = self.get(name)
        if value is None:
            return absent
        number = as_int(value)
        if number is None or number < minimum:
            raise self.error(name, f"an integer of at least {minimum}, or None")
        return number

    def real(self, name: str, low: float, high: float, expected: str) -> float | None:
        """The value as a finite float from ``low`` to ``high``, or None."""
        value = self.get(name)
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, (bool, str)) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (low <= number <= high and math.isfinite(number)):
            raise self.error(name, expected)
        return number

    def positive(self, name: str, hint: str = "") -> float:
        """The value as a finite float above 0; 1.0 where it is None."""
        expected = f"a number above 0{hint}"
        value = self.real(name, 0.0, math.inf, expected)
        if value == 0.0:
            raise self.error(name, expected)
        return 1.0 if value is None else value

    def flag(self, name: str) -> bool:
        """The value as a bool; False where it is None."""
        value = self.get(name)
        if not isinstance(value, (bool, np.bool_, NoneType)):
            raise self.error(name, "True or False")
        return bool(value)

    def ids(self, name: str) -> list[int]:
        """The value, a token id or several, as a list; negative ids are left out with a warning."""
        ids = self._ids(name)
        negative = [i for i in ids if i < 0]
        if negative:
            warn_once(f"{name}={self.get(name)!r}: token ids are not negative; {negative} is ignored.")
        return [i for i in ids if i >= 0]

    def strict_ids(self, name: str) -> tuple[int, ...]:
        """The value, a list of token ids, each once; a negative one is an error."""
        ids = self._ids(name)
        if any(i < 0 for i in ids):
            raise self.error(name, "token ids of at least 0")
        return tuple(dict.fromkeys(ids))

    def _ids(self, name: str) -> list[int]:
        value = self.get(name)
        if value is None:
            return []
        try:
            entries = list(value)
        except TypeError:
            entries = [value]
        ids = [i for i in map(as_int, entries) if i is not None]
        if isinstance(value, (str, Mapping)) or len(ids) < len(entries):
            raise self.error(name, "a token id or a list of token ids")
        return ids


def as_int(value: Any) -> int | None:
    """Returns the value as an int if it is an integer of any kind, but no bool."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
