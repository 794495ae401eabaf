"""Classifier-free guidance (Sanchez et al., 2023; arXiv 2306.17806): logits pushed away from those without the prompt.

Each prompt has a second row beside its own in the batch and the cache, which begins with the negative prompt and is
given the same new tokens. Both are read in one call of the model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.common.checks import check_ids
from jaxpipe.common.logging import info_once
from jaxpipe.generation.inputs import Prompts
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.step import StepState
from jaxpipe.nn.cache import DENSE, CacheLayout
from jaxpipe.nn.functional import Functional, Leaves

Array = jax.Array

NEGATIVE_PROMPTS = ("negative_prompt_ids", "negative_prompt_attention_mask")
"""Arguments of ``generate`` that are read here."""

BRANCHES = 2
"""Rows of a prompt: its own and the one that it is contrasted with."""


@dataclass(frozen=True)
class GuidedPrompts(Prompts):
    """Prompts with what each is contrasted with.

    Attributes:
        negative: the tokens of each row's negative prompt that are not padding.
    """

    negative: list[np.ndarray]

    def repeated(self, times: int) -> "GuidedPrompts":
        """Returns every prompt `times` times, one after another."""
        own = super().repeated(times)
        return GuidedPrompts(own.ids, own.rows, [row for row in self.negative for _ in range(times)])

    def longest(self) -> int:
        """Tokens of the longest prompt, the negative ones among them."""
        return max(super().longest(), *map(len, self.negative))

    def inputs(self, rows: int, width: int) -> tuple[np.ndarray, ...]:
        """The negative prompts (rows, width) int32, padded on the right, and their lengths (rows,) int32."""
        ids = np.zeros((rows, width), np.int32)
        lengths = np.ones((rows,), np.int32)
        for i, row in enumerate(self.negative):
            ids[i, : len(row)] = row
            lengths[i] = len(row)
        return ids, lengths


def guide(prompts: Prompts, ids: Any, mask: Any, limits: Mapping[str, int], settled: Settled) -> Prompts:
    """Gives prompts their negative prompts, where the settings ask for guidance.

    Args:
        prompts: of a call, B of them.
        ids: (B, T) ints, ``negative_prompt_ids``; None takes each prompt's last token.
        mask: (B, T), ``negative_prompt_attention_mask``, 0 at padding; None infers it where padding has a token of
            its own.
        limits: first value that is out of range of each input.
        settled: the settings.

    Raises:
        ValueError: shapes or ids are wrong, or the model has an encoder.
    """
    if settled.guidance_scale == 1.0:
        if ids is not None or mask is not None:
            info_once("negative_prompt_ids have no effect: they only act with a guidance_scale other than 1.")
        return prompts
    if prompts.source_rows() is not None:
        raise ValueError(
            f"guidance_scale={settled.guidance_scale} is for decoders: a model with an encoder has no prompt in its "
            "decoder to go without. Leave it out or set it to 1.0."
        )
    if ids is None:
        if mask is not None:
            raise ValueError("negative_prompt_attention_mask is given without negative_prompt_ids.")
        return GuidedPrompts(prompts.ids, prompts.rows, [row[-1:] for row in prompts.rows])
    ids = check_ids("negative_prompt_ids", ids, limits["input_ids"])
    if len(ids) != len(prompts.rows):
        raise ValueError(
            f"negative_prompt_ids has {len(ids)} rows for {len(prompts.rows)} rows of input_ids; give one for each."
        )
    pad = settled.pad_token_id
    if mask is not None:
        mask = check_ids("negative_prompt_attention_mask", mask, None)
        if mask.shape != ids.shape:
            raise ValueError(
                f"negative_prompt_attention_mask has shape {mask.shape}, but negative_prompt_ids has {ids.shape}."
            )
    elif pad is not None and pad not in settled.eos_token_ids:
        mask = ids != pad
    negative = list(ids) if mask is None else [row[keep != 0] for row, keep in zip(ids, mask, strict=True)]
    for i, row in enumerate(negative):
        if not len(row):
            raise ValueError(
                f"negative_prompt_ids has no token in row {i} that is not padding; a negative prompt needs one."
            )
    return GuidedPrompts(prompts.ids, prompts.rows, negative)


def guided(read: Callable[..., Any], forward: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns calls of the model that put out logits of twice the rows, each prompt's own and its negative one's.

    Args:
        read: calls a decoder on prompts, as `read_prompts` does.
        forward: calls it on one more token of every row, as `next_logits` does.
    """

    def read_both(
        functional: Functional,
        leaves: Leaves,
        inputs: tuple[Array, ...],
        prompts: Array,
        lengths: Array,
        valid: Array,
        slots: int,
        layout: CacheLayout = DENSE,
    ) -> Any:
        negative, negative_lengths = inputs
        # Side by side, so that both rows of a prompt lie on one device.
        both = jnp.stack([prompts, negative], axis=1).reshape(-1, prompts.shape[1])  # (B * 2, P)
        lengths = jnp.stack([lengths, negative_lengths], axis=1).reshape(-1)
        valid = jnp.arange(both.shape[1], dtype=jnp.int32) < lengths[:, None]
        return read(functional, leaves, (), both, lengths, valid, slots, layout)

    def forward_both(functional: Functional, leaves: Leaves, tokens: Array, positions: Array, cache: Any) -> Any:
        tokens = jnp.repeat(tokens, BRANCHES, axis=0)  # (B * 2, 1)
        # A row's next position follows its last: those of the two rows differ by their prompts' lengths.
        positions = jnp.max(cache.positions, axis=1, keepdims=True) + 1
        return forward(functional, leaves, tokens, positions, cache)

    return read_both, forward_both


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guidance:
    """Makes one row of log-probabilities of a prompt's two.

    Attributes:
        scale: () float32; 1 leaves the prompt's own as they are.
    """

    scale: Any

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns (B, V) of logits (B * 2, V)."""
        scores = jax.nn.log_softmax(logits, axis=-1).reshape(-1, BRANCHES, logits.shape[-1])
        own, negative = scores[:, 0], scores[:, 1]
        return self.scale * (own - negative) + negative
