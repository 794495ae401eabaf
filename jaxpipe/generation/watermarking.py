"""Settings of watermarks; names, entries and defaults are those of Transformers 5.23.

`WatermarkingConfig` raises the scores of a part of the vocabulary that the tokens before decide (Kirchenbauer et al.
2023, arXiv 2301.10226 and 2306.04634). `SynthIDTextWatermarkingConfig` draws tokens in a tournament (Dathathri et al.
2024, doi 10.1038/s41586-024-08025-4).
"""

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxpipe.generation.layers import as_int

SCHEMES = ("lefthash", "selfhash")
_LARGEST_TABLE = 2**24


class BaseWatermarkingConfig:
    """What the settings of watermarks have in common; subclasses are dataclasses."""

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Self:
        """Makes a config of a mapping of its entries; keyword arguments go over it."""
        return cls(**{**config_dict, **kwargs})

    def to_dict(self) -> dict[str, Any]:
        """The entries by name."""
        return copy.deepcopy(self.__dict__)

    def to_json_string(self) -> str:
        """The entries as JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_json_file(self, json_file_path: str | PathLike[str]) -> None:
        """Writes the entries to a JSON file."""
        Path(json_file_path).write_text(json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def update(self, **kwargs: Any) -> None:
        """Sets entries; names that are no entry are left out, as in Transformers."""
        for name, value in kwargs.items():
            if name in self.__dict__:
                setattr(self, name, value)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.to_dict().items()

    def _integer(self, name: str, low: int, high: int) -> None:
        value = as_int(getattr(self, name))
        if value is None or not low <= value <= high:
            raise self._error(name, f"an integer from {low} to {high}")

    def _error(self, name: str, expected: str) -> ValueError:
        return ValueError(f"{name}={getattr(self, name)!r} of {type(self).__name__}: expected {expected}.")


@dataclasses.dataclass
class WatermarkingConfig(BaseWatermarkingConfig):
    """Raises the scores of "green" tokens, a part of the vocabulary that is drawn anew for every token.

    Args:
        greenlist_ratio: part of the vocabulary that is green, between 0 and 1.
        bias: added to the scores of green tokens.
        hashing_key: of the draws; who has it can detect the mark.
        seeding_scheme: ``"lefthash"``: the token before decides what is green; ``"selfhash"``: the ``context_width``
            last tokens do, the candidate among them, for each of the 40 likeliest candidates.
        context_width: tokens that decide; with ``"lefthash"`` it is always the last one of them.
    """

    greenlist_ratio: float = 0.25
    bias: float = 2.0
    hashing_key: int = 15485863
    seeding_scheme: str = "lefthash"
    context_width: int = 1

    def validate(self) -> None:
        """Checks the entries.

        Raises:
            ValueError: one is out of range.
        """
        ratio, bias = (_number(value) for value in (self.greenlist_ratio, self.bias))
        if ratio is None or not 0.0 < ratio < 1.0:
            raise self._error("greenlist_ratio", "a number above 0 and below 1")
        if bias is None or not np.isfinite(bias):
            raise self._error("bias", "a finite number")
        if self.seeding_scheme not in SCHEMES:
            raise self._error("seeding_scheme", " or ".join(map(repr, SCHEMES)))
        self._integer("hashing_key", 0, 2**63 - 1)
        self._integer("context_width", 1, 2**16)


@dataclasses.dataclass
class SynthIDTextWatermarkingConfig(BaseWatermarkingConfig):
    """Chooses among likely tokens by a tournament of random values that the tokens before and the keys decide.

    Args:
        ngram_len: tokens that decide the values of one, itself among them; at least 2.
        keys: one for each round of the tournament; who has them can detect the mark.
        context_history_size: contexts that are remembered: where one comes again, nothing is marked.
        sampling_table_seed: of the table of values.
        sampling_table_size: entries of the table, at most 2 ** 24; a power of two is the quickest.
        skip_first_ngram_calls: the first ``ngram_len - 1`` tokens bear no mark.
        debug_mode: mark equal scores instead of the model's.
    """

    ngram_len: int
    keys: list[int]
    context_history_size: int = 1024
    sampling_table_seed: int = 0
    sampling_table_size: int = 2**16
    skip_first_ngram_calls: bool = False
    debug_mode: bool = False

    def validate(self) -> None:
        """Checks the entries.

        Raises:
            ValueError: one is out of range.
        """
        self._integer("ngram_len", 2, 2**16)
        keys = [as_int(key) for key in self.keys] if isinstance(self.keys, (list, tuple, np.ndarray)) else []
        if not keys or any(key is None or not -(2**63) <= key < 2**63 for key in keys):
            raise self._error("keys", "a list of integers of 64 bits, not empty")
        self._integer("context_history_size", 0, 2**31 - 1)
        self._integer("sampling_table_seed", 0, 2**63 - 1)
        self._integer("sampling_table_size", 1, _LARGEST_TABLE)
        for name in ("skip_first_ngram_calls", "debug_mode"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise self._error(name, "True or False")


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError):
        return None
