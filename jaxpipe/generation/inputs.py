"""Prompts of a call: checked, and each row's tokens without its padding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxpipe.common.checks import check_ids
from jaxpipe.common.logging import warn_once
from jaxpipe.generation.config import GenerationConfig


@dataclass(frozen=True)
class Prompts:
    """The prompts of a call.

    Attributes:
        ids: (B, T) int32 as given.
        rows: the tokens of each row that are not padding.
        mask: (B, T) bool, False at padding; None where there is none.
        reading: a `chunked.Reading`, how the prompts are read; None as one whole.
    """

    ids: np.ndarray
    rows: list[np.ndarray]
    mask: np.ndarray | None = field(default=None, kw_only=True)
    reading: Any = field(default=None, kw_only=True)

    @classmethod
    def of(cls, ids: np.ndarray, mask: np.ndarray | None) -> "Prompts":
        """Takes the tokens of ids (B, T) where mask (B, T) is not 0.

        Raises:
            ValueError: a row has no token.
        """
        rows = list(ids) if mask is None else [row[keep != 0] for row, keep in zip(ids, mask, strict=True)]
        for i, row in enumerate(rows):
            if not len(row):
                raise ValueError(f"attention_mask is 0 for every token of row {i}; a prompt needs one token at least.")
        return cls(ids, rows, mask=None if mask is None else mask != 0)

    def repeated(self, times: int) -> "Prompts":
        """Returns every prompt `times` times, one after another."""
        if times == 1:
            return self
        mask = None if self.mask is None else np.repeat(self.mask, times, axis=0)
        rows = [row for row in self.rows for _ in range(times)]
        return Prompts(np.repeat(self.ids, times, axis=0), rows, mask=mask, reading=self.reading)

    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.rows))

    def inputs(self, rows: int, width: int) -> tuple[np.ndarray, ...]:
        """What is read beside the prompts, padded to a number of rows and of tokens; nothing."""
        return ()

    def source_rows(self) -> list[np.ndarray] | None:
        """Each row's tokens for an encoder, without padding; None where there is no encoder."""
        return None

    def check_room(self, max_new_tokens: int, limit: int | None, model_type: str) -> None:
        """Raises ValueError where a prompt and its new tokens need more learned positions than there are."""
        longest = self.longest()
        # The last new token is never read, so it needs no position.
        if limit is not None and longest + max_new_tokens - 1 > limit:
            raise ValueError(
                f"A prompt of {longest} tokens and max_new_tokens={max_new_tokens} need "
                f"{longest + max_new_tokens - 1} positions, but {model_type!r} has learned {limit}; shorten the prompt "
                f"or set max_new_tokens to at most {max(limit + 1 - longest, 0)}."
            )

    def item_indices(self, given: Sequence[int] | None) -> Sequence[int]:
        """Returns the rows' indices in the user's input, `given` if there are any.

        Raises:
            ValueError: there are not as many as rows.
        """
        if given is None:
            return range(len(self.rows))
        if len(given) != len(self.rows):
            raise ValueError(f"item_indices has {len(given)} entries for {len(self.rows)} rows of input_ids.")
        return given


def check_prompts(
    input_ids: Any,
    attention_mask: Any,
    limits: Mapping[str, int],
    defaults: GenerationConfig,
    generation_config: GenerationConfig | None,
    kwargs: Mapping[str, Any],
) -> Prompts:
    """Checks the arrays of a call of `generate`, and fills in what is left out.

    Raises:
        ValueError: shapes or ids are wrong, or there is neither a prompt nor a BOS token.
    """
    if input_ids is None:
        bos = setting("bos_token_id", defaults, generation_config, kwargs)
        if bos is None:
            raise ValueError("generate needs input_ids, or a bos_token_id to start from.")
        input_ids = [[bos]]
    return Prompts.of(*check_source(input_ids, attention_mask, limits, defaults, generation_config, kwargs))


def setting(
    name: str, defaults: GenerationConfig, generation_config: GenerationConfig | None, kwargs: Mapping[str, Any]
) -> Any:
    """Returns a setting of a call: an argument's, else the call's config's, else the model's."""
    if name in kwargs:
        return kwargs[name]
    own = getattr(generation_config, name, None)
    return own if own is not None else getattr(defaults, name, None)


def check_source(
    input_ids: Any,
    attention_mask: Any,
    limits: Mapping[str, int],
    defaults: GenerationConfig,
    generation_config: GenerationConfig | None,
    kwargs: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray | None]:
    """Checks ids and mask (B, T), and infers a mask where padding has a token of its own; None is all ones.

    Raises:
        ValueError: shapes or ids are wrong.
    """
    ids = check_ids("input_ids", input_ids, limits["input_ids"])
    mask = None if attention_mask is None else check_ids("attention_mask", attention_mask, None)
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(f"attention_mask has shape {mask.shape}, but input_ids has {ids.shape}.")
    pad, eos = (setting(name, defaults, generation_config, kwargs) for name in ("pad_token_id", "eos_token_id"))
    if mask is None and pad is not None and (ids == pad).any():
        if pad in np.atleast_1d(eos if eos is not None else []):
            warn_once(
                "input_ids hold the pad token, which also ends sequences: pass attention_mask to tell them apart."
            )
        else:
            mask = (ids != pad).astype(np.int32)
    return ids, mask
