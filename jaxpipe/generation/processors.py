"""Logits processors: traceable functions of fp32 logits, in the order of Transformers' ``_get_logits_processor``.

Each processor is a frozen dataclass and a pytree. Values that users vary are leaves, so another temperature runs
the same compiled loop; which processors there are, and the size buckets they work in, is structure. A setting that is
off adds nothing.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.generation.dola import LayerContrast
from jaxpipe.generation.greenlist import GreenListBias
from jaxpipe.generation.guidance import Guidance
from jaxpipe.generation.processors_groups import HammingDiversity
from jaxpipe.generation.processors_history import (
    EncoderNoRepeatNgram,
    EncoderRepetitionPenalty,
    NoRepeatNgram,
    RepetitionPenalty,
    SequenceBias,
)
from jaxpipe.generation.processors_tokens import (
    ExponentialDecay,
    ForcedTokens,
    MinNewTokens,
    RemoveInvalid,
    Renormalize,
    SuppressTokens,
    SuppressTokensAtStep,
)
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.step import LogitsProcessor, StepState, bucket
from jaxpipe.generation.stopping import eos_array
from jaxpipe.generation.synthid import SynthID
from jaxpipe.generation.warpers import EpsilonCutoff, EtaCutoff, MinP, Temperature, TopH, TopK, TopP, TypicalP
from jaxpipe.generation.watermarking import WatermarkingConfig

Array = jax.Array


def processors_for(
    settled: Settled,
    vocab_size: int,
    *,
    source: Any = None,
    allowed: LogitsProcessor | None = None,
    user: Sequence[LogitsProcessor] = (),
) -> tuple[LogitsProcessor, ...]:
    """Returns the processors that the settings ask for, in the order in which they act.

    Args:
        settled: the settings of a call.
        vocab_size: V, the width of the logits.
        source: (R, S) int32, the encoder's tokens from column 0 on, then -1; None for decoders.
        allowed: what ``prefix_allowed_tokens_fn`` asks for, or None.
        user: the user's own, which act after the others and before what narrows sampling.

    Raises:
        ValueError: a token is not in the vocabulary, or none of it is left.
    """
    _check_ids(settled, vocab_size)
    processors = [*_merging(settled), *_history(settled, source)]
    if settled.min_new_tokens > 0 and settled.eos_token_ids:
        processors.append(MinNewTokens(np.int32(settled.min_new_tokens), eos_array(settled.eos_token_ids)))
    if allowed is not None:
        processors.append(allowed)
    processors += [*_tokens(settled), *user]
    if settled.do_sample:
        processors += _warpers(settled, vocab_size)
    if isinstance(settled.watermark, WatermarkingConfig):
        processors.append(GreenListBias.of(settled.watermark, vocab_size))
    elif settled.watermark is not None:
        processors.append(SynthID.of(settled.watermark))
    if settled.renormalize_logits:
        processors.append(Renormalize())
    return tuple(processors)


def _merging(settled: Settled) -> list[LogitsProcessor]:
    """The one that makes one row of logits of several."""
    if settled.dola_layers is not None:
        return [LayerContrast()]
    if settled.guidance_scale != 1.0:
        return [Guidance(np.float32(settled.guidance_scale))]
    return []


def _history(settled: Settled, source: Any) -> list[LogitsProcessor]:
    """Those that look at the tokens so far."""
    processors: list[LogitsProcessor] = []
    if settled.sequence_bias:
        processors.append(SequenceBias.of(settled.sequence_bias))
    if settled.num_beam_groups > 1:
        processors.append(HammingDiversity(np.float32(settled.diversity_penalty)))
    if settled.encoder_repetition_penalty != 1.0:
        inverse = np.float32(1.0 / settled.encoder_repetition_penalty)
        processors.append(EncoderRepetitionPenalty(inverse, source))
    if settled.repetition_penalty != 1.0:
        processors.append(RepetitionPenalty(np.float32(settled.repetition_penalty)))
    if settled.no_repeat_ngram_size:
        size = settled.no_repeat_ngram_size
        processors.append(NoRepeatNgram(np.int32(size), bucket(size - 1)))
    if settled.encoder_no_repeat_ngram_size:
        size = settled.encoder_no_repeat_ngram_size
        processors.append(EncoderNoRepeatNgram(np.int32(size), source, bucket(size - 1)))
    if settled.bad_words_ids:
        processors.append(SequenceBias.of([(ids, -np.inf) for ids in settled.bad_words_ids]))
    return processors


def _tokens(settled: Settled) -> list[LogitsProcessor]:
    """Those for certain tokens at certain steps."""
    processors: list[LogitsProcessor] = [
        ForcedTokens(np.int32(step), eos_array(ids)) for step, ids in settled.forced().values() if ids
    ]
    if settled.remove_invalid_values:
        processors.append(RemoveInvalid())
    if settled.exponential_decay_length_penalty is not None:
        start, factor = settled.exponential_decay_length_penalty
        eos = eos_array(settled.eos_token_ids)
        processors.append(ExponentialDecay.of(start, factor, settled.max_new_tokens, eos))
    if settled.suppress_tokens:
        processors.append(SuppressTokens(eos_array(settled.suppress_tokens)))
    if settled.begin_suppress_tokens:
        ids = eos_array(settled.begin_suppress_tokens)
        processors.append(SuppressTokensAtStep(np.int32(settled.begin_step), ids))
    return processors


def _warpers(settled: Settled, vocab_size: int) -> list[LogitsProcessor]:
    """Those that narrow what is sampled from."""
    # Beams need a token that ends none of them.
    keep = 1 if settled.num_beams == 1 else 1 + max(len(settled.eos_token_ids), 1)
    processors: list[LogitsProcessor] = []
    if settled.temperature != 1.0:
        processors.append(Temperature(np.float32(settled.temperature)))
    if settled.top_h is not None:
        processors.append(TopH(np.float32(settled.top_h)))
    left = None
    top_k = max(settled.top_k, keep) if settled.top_k else 0
    if 0 < top_k < vocab_size:
        left = min(bucket(top_k, smallest=1), vocab_size)
        processors.append(TopK(np.int32(top_k), left))
    if settled.top_p < 1.0:
        processors.append(TopP(np.float32(1.0 - settled.top_p), left, keep))
    if settled.min_p > 0.0:
        processors.append(MinP(np.float32(settled.min_p), keep))
    if settled.typical_p < 1.0:
        processors.append(TypicalP(np.float32(settled.typical_p), keep))
    if settled.epsilon_cutoff > 0.0:
        processors.append(EpsilonCutoff(np.float32(settled.epsilon_cutoff), keep))
    if settled.eta_cutoff > 0.0:
        processors.append(EtaCutoff(np.float32(settled.eta_cutoff), keep))
    return processors


def _check_ids(settled: Settled, vocab_size: int) -> None:
    biased = [ids for ids, _ in settled.sequence_bias]
    named: dict[str, Sequence[Sequence[int]]] = {
        **{name: [ids] for name, (_, ids) in settled.forced().items()},
        "bad_words_ids": settled.bad_words_ids,
        "sequence_bias": biased,
        "suppress_tokens": [settled.suppress_tokens],
        "begin_suppress_tokens": [settled.begin_suppress_tokens],
    }
    for name, words in named.items():
        largest = max((max(ids) for ids in words if ids), default=0)
        if largest >= vocab_size:
            raise ValueError(f"{name}={largest}: expected token ids from 0 to {vocab_size - 1}.")
    banned = {ids[0] for ids in settled.bad_words_ids if len(ids) == 1}.union(settled.suppress_tokens)
    if len(banned.union(settled.begin_suppress_tokens)) >= vocab_size:
        raise ValueError(
            f"bad_words_ids, suppress_tokens and begin_suppress_tokens name all {vocab_size} tokens together, which "
            "leaves none to choose."
        )


def process(processors: Sequence[LogitsProcessor], logits: Array, state: StepState) -> Array:
    """Applies processors in order.

    Args:
        processors: from `processors_for`.
        logits: (B, V) of any float dtype.
        state: the tokens so far.

    Returns:
        (B, V) float32.
    """
    logits = logits.astype(jnp.float32)
    for processor in processors:
        logits = processor(logits, state)
    return logits


def broken_rows(processors: Sequence[LogitsProcessor], logits: Array) -> Array:
    """Returns which rows of logits (R, V) hold NaN, by which no token can be chosen, (R,) bool; none where
    ``remove_invalid_values`` mends them.
    """
    if any(isinstance(processor, RemoveInvalid) for processor in processors):
        return jnp.zeros(logits.shape[:1], bool)
    return jnp.isnan(jnp.max(logits, axis=-1))


def check_logits(broken: np.ndarray) -> None:
    """Checks that no prompt's logits were NaN.

    Args:
        broken: (B,) bool.

    Raises:
        ValueError: those of a prompt were.
    """
    if broken.any():
        rows = ", ".join(map(str, np.flatnonzero(broken)))
        raise ValueError(
            f"The logits of prompt {rows} are NaN: the weights hold NaN, or the computation left the range of its "
            "dtype. Check the checkpoint, try dtype='float32', or pass remove_invalid_values=True."
        )
