"""`generate` of encoder-decoders: the encoder runs once, in the prefill, and the decoder continues a start token."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.common.checks import check_ids
from jaxpipe.generation.buckets import length_bucket
from jaxpipe.generation.config import GenerationConfig
from jaxpipe.generation.generate import Generator
from jaxpipe.generation.inputs import Prompts, check_source, setting
from jaxpipe.models.config import ModelConfig
from jaxpipe.nn.cache import DENSE, CacheLayout
from jaxpipe.nn.cross_attention import EncoderDecoderCache
from jaxpipe.nn.functional import Functional, Leaves

Array = jax.Array


@dataclass(frozen=True)
class Seq2SeqPrompts(Prompts):
    """What the decoder continues, `ids` and `rows`, and what the encoder reads.

    Attributes:
        source: (B, S) int32 as given: where padding stands may decide the positions.
        source_mask: (B, S) bool, False at padding.
    """

    source: np.ndarray
    source_mask: np.ndarray

    def repeated(self, times: int) -> "Seq2SeqPrompts":
        """Returns every prompt `times` times, one after another."""
        own = super().repeated(times)
        arrays = (np.repeat(x, times, axis=0) for x in (self.source, self.source_mask))
        return Seq2SeqPrompts(own.ids, own.rows, *arrays)

    def source_rows(self) -> list[np.ndarray]:
        """Each row's tokens for the encoder, without padding."""
        return [row[keep] for row, keep in zip(self.source, self.source_mask, strict=True)]


class Seq2SeqGenerator(Generator):
    """Generates with one encoder-decoder; its executables are kept between calls.

    ``generate`` takes ``decoder_input_ids`` (B, P) too: tokens that the answer begins with, before which the start
    token is put where it is missing. It returns (B, P + new), so (B, 1 + new) without them.
    """

    def __init__(self, functional: Functional, leaves: Leaves, config: ModelConfig):
        super().__init__(functional, leaves, config, _read_source, _next_logits)
        self.reader = None  # the decoder's prompts are short

    def prompts(
        self,
        input_ids: Any,
        attention_mask: Any,
        defaults: GenerationConfig,
        generation_config: GenerationConfig | None,
        kwargs: dict[str, Any],
    ) -> Seq2SeqPrompts:
        """Checks the arrays of a call, and makes the decoder's prompts.

        Raises:
            ValueError: shapes or ids are wrong, an input is too long, or there is no token to start from.
        """
        limits = self.config.limits()
        given = kwargs.pop("decoder_input_ids", None)
        if input_ids is None:
            raise ValueError("generate needs input_ids, which the encoder reads.")
        source, mask = check_source(input_ids, attention_mask, limits, defaults, generation_config, kwargs)
        longest = self.config.longest_input()
        if longest is not None and source.shape[1] > longest:
            raise ValueError(
                f"input_ids has {source.shape[1]} tokens, but {self.config.model_type!r} has positions for {longest}; "
                "truncate them (truncation=True in the tokenizer or pipeline)."
            )
        start = self._start(lambda name: setting(name, defaults, generation_config, kwargs))
        ids = np.full((len(source), 1), start, np.int32)
        if given is not None:
            ids = self._begin_with(ids, check_ids("decoder_input_ids", given, limits["input_ids"]))
        valid = np.ones_like(source, bool) if mask is None else mask != 0
        empty = np.flatnonzero(~valid.any(axis=1))
        if len(empty):
            raise ValueError(f"attention_mask is 0 for every token of row {empty[0]}; a row needs one token at least.")
        return Seq2SeqPrompts(ids, list(ids), source, valid)

    def _start(self, setting: Callable[[str], Any]) -> int:
        for name in ("decoder_start_token_id", "bos_token_id"):
            start = setting(name)
            if start is None:
                continue
            if isinstance(start, list | tuple) and len(start) == 1:
                start = start[0]
            limit = self.config.limits()["input_ids"]
            if isinstance(start, bool) or not isinstance(start, int | np.integer) or not 0 <= start < limit:
                raise ValueError(f"{name}={start!r}: expected one token id from 0 to {limit - 1}.")
            return int(start)
        raise ValueError(
            "generate needs decoder_start_token_id (or bos_token_id), the token that the decoder starts from: pass it, "
            "or set model.generation_config.decoder_start_token_id."
        )

    @staticmethod
    def _begin_with(start: np.ndarray, given: np.ndarray) -> np.ndarray:
        if len(given) != len(start):
            raise ValueError(f"decoder_input_ids has {len(given)} rows, but input_ids has {len(start)}.")
        lacking = given[:, :1] != start
        return np.concatenate([start, given], axis=1) if lacking.all() else given

    def blank_prompts(self, batch: int, length: int, defaults: GenerationConfig) -> Seq2SeqPrompts:
        """Makes prompts of a shape, to compile for."""
        ids = np.zeros((batch, 1), np.int32)
        return Seq2SeqPrompts(ids, list(ids), np.zeros((batch, length), np.int32), np.ones((batch, length), bool))

    def inputs(self, prompts: Prompts, rows: int) -> tuple[np.ndarray, ...]:
        """The encoder's ids and mask, padded on the right to a bucket."""
        assert isinstance(prompts, Seq2SeqPrompts)
        count, tokens = prompts.source.shape
        pad = ((0, rows - count), (0, length_bucket(tokens) - tokens))
        mask = np.pad(prompts.source_mask, pad)
        mask[count:, 0] = True  # rows that fill the batch
        return np.pad(prompts.source, pad), mask

    def width(self, prompts: Prompts) -> int:
        """Tokens to which the decoder's prompts are padded: a start token alone stays alone."""
        return 1 if prompts.ids.shape[1] == 1 else super().width(prompts)


def _read_source(
    functional: Functional,
    leaves: Leaves,
    inputs: tuple[Array, ...],
    prompts: Array,
    lengths: Array,
    valid: Array,
    slots: int,
    layout: CacheLayout = DENSE,
) -> Any:
    """As `read_prompts`; `inputs` are the encoder's ids (B, S) int32 and mask (B, S) bool."""
    source, mask = inputs
    columns = jnp.arange(prompts.shape[1], dtype=jnp.int32)
    layers = functional.module(leaves).cache_layers()
    return functional.call(
        leaves,
        source,
        attention_mask=mask,
        decoder_input_ids=prompts,
        decoder_attention_mask=valid,
        decoder_position_ids=jnp.minimum(columns, lengths[:, None] - 1),
        cache=EncoderDecoderCache.empty(layers, len(prompts), slots, functional.dtype, layout),
        last=lengths - 1,
    )


def _next_logits(
    functional: Functional, leaves: Leaves, tokens: Array, positions: Array, cache: EncoderDecoderCache
) -> Any:
    return functional.call(leaves, None, decoder_input_ids=tokens, decoder_position_ids=positions, cache=cache)
