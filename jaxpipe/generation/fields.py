"""What each generation setting means here: its default, what is supported, what is refused and what has no effect.

Work that adds a decoding method moves its settings out of `NOT_SUPPORTED`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

DEFAULTS: Mapping[str, Any] = {
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "num_beams": 1,
    "early_stopping": False,
    "length_penalty": 1.0,
    "use_cache": True,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "output_scores": False,
    "output_logits": False,
    "output_hidden_states": False,
    "output_attentions": False,
}
"""Values that hold where neither the call nor the model's generation_config.json sets one (Transformers 5.23)."""

SUPPORTED = frozenset(DEFAULTS) | {
    "max_new_tokens",
    "min_new_tokens",
    "max_time",
    "stop_strings",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "remove_invalid_values",
    "renormalize_logits",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "decoder_start_token_id",
    "watermarking_config",
    "num_beam_groups",
    "diversity_penalty",
    "constraints",
    "force_words_ids",
    "cache_implementation",
    "cache_config",
    "penalty_alpha",
    "dola_layers",
    "guidance_scale",
    "prompt_lookup_num_tokens",
    "prefill_chunk_size",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
}
"""Settings that generation follows."""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A setting that is not supported: the values that ask for nothing, and when it would take effect.

    Attributes:
        neutral: values, beside None, that are the same as leaving it out; the first is named in the message.
        when: ``"always"``, ``"sampling"`` (without effect in greedy decoding) or ``"outputs"`` (only with
            ``return_dict_in_generate=True``).
    """

    neutral: tuple[Any, ...] = ()
    when: str = "always"


NOT_SUPPORTED: Mapping[str, Refusal] = {
    "use_mtp": Refusal((False,)),
    "token_healing": Refusal((False,)),
    "is_assistant": Refusal((False,)),
    "assistant_early_exit": Refusal(),
    "assistant_ensemble_weight": Refusal(),
    "speculation_type": Refusal(),
    "continuous_batching_config": Refusal(),
}
"""Settings that would change the answer and are refused unless neutral."""

_NO_ASSISTANT = "an assistant's tokens are those of the model"
_COMPILED = "the loop is always compiled, with a static cache of bucketed length"

WITHOUT_EFFECT: Mapping[str, str] = {
    "low_memory": "all beams, or candidates, run at once",
    "assistant_lookbehind": _NO_ASSISTANT,
    "target_lookbehind": _NO_ASSISTANT,
    "max_cache_len": _COMPILED,
    "compile_config": _COMPILED,
    "disable_compile": _COMPILED,
}
"""Settings that are accepted and cannot change the answer, each with the reason."""

BEAMS_ONLY = ("early_stopping", "length_penalty", "diversity_penalty")
"""Settings that only act with ``num_beams`` above 1."""

SAMPLING_ONLY: Mapping[str, Any] = {
    "temperature": 1.0,
    "top_h": None,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""Settings that greedy decoding ignores, each with the value that is ignored in silence."""

GENERATE_ARGUMENTS = (
    "input_ids",
    "attention_mask",
    "generation_config",
    "streamer",
    "tokenizer",
    "stopping_criteria",
    "logits_processor",
    "prefix_allowed_tokens_fn",
    "seed",
    "item_indices",
    "decoder_input_ids",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "assistant_model",
    "assistant_tokenizer",
    "past_key_values",
    "prefix_cache",
)
"""Arguments of ``generate`` that are not settings."""

NOT_SUPPORTED_ARGUMENTS = (
    "custom_generate",
    "synced_gpus",
    "inputs_embeds",
)
"""Arguments of Transformers' ``generate`` that are refused unless they are None or False."""
