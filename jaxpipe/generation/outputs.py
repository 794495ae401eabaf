"""What `generate` returns with ``return_dict_in_generate``, and the scores of the tokens that were chosen.

Names and order of the fields are those of Transformers 5.23. Arrays lie on the host as numpy, ``sequences`` and
``past_key_values`` on the device. Steps are the new tokens: the first of a tuple over steps belongs to the prompt's
call, which has all T columns of the prompt; those after it have one. Attentions are over the columns of
``sequences`` up to the step's token; a layer with a sliding window has no more than the window's last ones after the
first step. Where the prompt has padding, hidden states and attentions are 0.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxpipe.common.outputs import ModelOutput

Steps = tuple[np.ndarray, ...]
Layers = tuple[np.ndarray, ...]


class GenerateDecoderOnlyOutput(ModelOutput):
    """Of a decoder without beams.

    ``sequences`` (B, T + new) int32; for each new token ``scores`` (processed) and ``logits`` (as the model gave
    them), (B, V) float32; for each new token ``attentions``, L of (B, H, T or 1, S), and ``hidden_states``, L + 1 of
    (B, T or 1, D); ``past_key_values``.
    """

    sequences: jax.Array
    scores: Steps | None = None
    logits: Steps | None = None
    attentions: tuple[Layers, ...] | None = None
    hidden_states: tuple[Layers, ...] | None = None
    past_key_values: Any = None


class GenerateEncoderDecoderOutput(ModelOutput):
    """Of an encoder-decoder without beams.

    ``sequences``, ``scores`` and ``logits`` as in `GenerateDecoderOnlyOutput`; of the encoder, once for each input,
    ``encoder_attentions``, L of (B, H, S, S), and ``encoder_hidden_states``, L + 1 of (B, S, D); for each new token
    ``decoder_attentions``, L of (B, H, T or 1, columns), ``cross_attentions``, L of (B, H, T or 1, S), and
    ``decoder_hidden_states``, L + 1 of (B, T or 1, D); ``past_key_values``.
    """

    sequences: jax.Array
    scores: Steps | None = None
    logits: Steps | None = None
    encoder_attentions: Layers | None = None
    encoder_hidden_states: Layers | None = None
    decoder_attentions: tuple[Layers, ...] | None = None
    cross_attentions: tuple[Layers, ...] | None = None
    decoder_hidden_states: tuple[Layers, ...] | None = None
    past_key_values: Any = None


class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """Of a decoder with N beams for each of B prompts, and n returned sequences.

    ``sequences`` (B * n, T + new) int32, the best of each prompt first; ``sequences_scores`` (B * n,) float32, sums
    of log-probabilities divided by the length's power (with ``output_scores``); one (B * N, V) float32 array for each
    step of ``scores`` (processed log-probabilities) and ``logits``; ``beam_indices`` (B * n, new) int32, for each new
    token the row of ``scores`` that it was chosen from, -1 after the end; the rest as in `GenerateDecoderOnlyOutput`,
    with B * N rows.
    """

    sequences: jax.Array
    sequences_scores: np.ndarray | None = None
    scores: Steps | None = None
    logits: Steps | None = None
    beam_indices: np.ndarray | None = None
    attentions: tuple[Layers, ...] | None = None
    hidden_states: tuple[Layers, ...] | None = None
    past_key_values: Any = None


class GenerateBeamEncoderDecoderOutput(ModelOutput):
    """Of an encoder-decoder with beams: fields as in `GenerateBeamDecoderOnlyOutput` and
    `GenerateEncoderDecoderOutput`, the decoder's with B * N rows.
    """

    sequences: jax.Array
    sequences_scores: np.ndarray | None = None
    scores: Steps | None = None
    logits: Steps | None = None
    beam_indices: np.ndarray | None = None
    encoder_attentions: Layers | None = None
    encoder_hidden_states: Layers | None = None
    decoder_attentions: tuple[Layers, ...] | None = None
    cross_attentions: tuple[Layers, ...] | None = None
    decoder_hidden_states: tuple[Layers, ...] | None = None
    past_key_values: Any = None


GenerateNonBeamOutput = GenerateDecoderOnlyOutput | GenerateEncoderDecoderOutput
GenerateBeamOutput = GenerateBeamDecoderOnlyOutput | GenerateBeamEncoderDecoderOutput
GenerateOutput = GenerateNonBeamOutput | GenerateBeamOutput


def output_class(*, beams: bool, encoder_decoder: bool) -> Any:
    """Returns the class of what a call returns."""
    if beams:
        return GenerateBeamEncoderDecoderOutput if encoder_decoder else GenerateBeamDecoderOnlyOutput
    return GenerateEncoderDecoderOutput if encoder_decoder else GenerateDecoderOnlyOutput


def compute_transition_scores(
    sequences: Any, scores: Sequence[Any], beam_indices: Any = None, normalize_logits: bool = False
) -> np.ndarray:
    """Returns the score of each new token at the step at which it was chosen.

    Args:
        sequences: (R, T) int, prompts and new tokens.
        scores: of the same call, one (rows, V) array for each step.
        beam_indices: (R, new) int, of a call with beams: the row of `scores` that each token was chosen from, -1 after
            the end. Without beams None.
        normalize_logits: make the scores log-probabilities first.

    Returns:
        (R, new) float32; 0 after the end of a sequence of a beam search.

    Raises:
        ValueError: there are no scores, or shapes do not agree.
    """
    if scores is None or not len(scores):
        raise ValueError("compute_transition_scores needs the scores of the call: pass output_scores=True to generate.")
    ids = np.asarray(sequences)
    stacked = np.stack([np.asarray(step, np.float32) for step in scores])  # (new, rows, V)
    steps, rows, vocab_size = stacked.shape
    origins = np.repeat(np.arange(rows)[:, None], steps, axis=1) if beam_indices is None else np.asarray(beam_indices)
    if ids.ndim != 2 or origins.ndim != 2 or len(origins) != len(ids):
        rows_from = f"beam_indices of shape {origins.shape}" if beam_indices is not None else f"scores of {rows} rows"
        hint = "" if beam_indices is not None else "; of a call with beams pass beam_indices too"
        raise ValueError(f"sequences of shape {ids.shape} and {rows_from} do not come from one call{hint}.")
    ended = origins < 0
    longest = int((~ended).sum(axis=1).max())
    if longest > min(steps, ids.shape[1]) or origins.max(initial=0) >= rows:
        raise ValueError(
            f"beam_indices with {longest} tokens and rows up to {origins.max(initial=0)} do not belong to {steps} "
            f"steps of {rows} rows and sequences of shape {ids.shape}."
        )
    origins, ended = np.where(ended, 0, origins)[:, :longest], ended[:, :longest]
    new = ids[:, ids.shape[1] - longest :]
    if new.min(initial=0) < 0 or new.max(initial=0) >= vocab_size:
        raise ValueError(f"sequences hold ids outside the vocabulary of scores, 0 to {vocab_size - 1}.")
    if normalize_logits:
        largest = stacked.max(axis=-1, keepdims=True)
        shifted = stacked - np.where(np.isfinite(largest), largest, 0.0)
        stacked = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    found = stacked[np.arange(longest)[None], origins, new]
    return np.where(ended, np.float32(0.0), found)
