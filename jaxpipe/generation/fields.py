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
    "num_beam_groups": Refusal((1,)),
    "diversity_penalty": Refusal((0.0,)),
    "penalty_alpha": Refusal((0.0,)),
    "dola_layers": Refusal(),
    "constraints": Refusal(),
    "force_words_ids": Refusal(),
    "use_mtp": Refusal((False,)),
    "cache_implementation": Refusal((None, "static", "dynamic", "hybrid", "hybrid_chunked", "sliding_window")),
    "token_healing": Refusal((False,)),
    "guidance_scale": Refusal((1.0,)),
    "watermarking_config": Refusal(),
    "output_attentions": Refusal((False,), when="outputs"),
    "output_hidden_states": Refusal((False,), when="outputs"),
    "is_assistant": Refusal((False,)),
    "prompt_lookup_num_tokens": Refusal(),
    "assistant_early_exit": Refusal(),
    "assistant_ensemble_weight": Refusal(),
    "speculation_type": Refusal(),
    "prefill_chunk_size": Refusal(),
    "continuous_batching_config": Refusal(),
}
"""Settings that would change the answer and are refused unless neutral."""

_NO_ASSISTANT = "it only acts in assisted generation"
_COMPILED = "the loop is always compiled, with a static cache of bucketed length"

WITHOUT_EFFECT: Mapping[str, str] = {
    "low_memory": "all beams run at once",
    "num_assistant_tokens": _NO_ASSISTANT,
    "num_assistant_tokens_schedule": _NO_ASSISTANT,
    "assistant_confidence_threshold": _NO_ASSISTANT,
    "max_matching_ngram_size": _NO_ASSISTANT,
    "assistant_lookbehind": _NO_ASSISTANT,
    "target_lookbehind": _NO_ASSISTANT,
    "cache_config": _COMPILED,
    "max_cache_len": _COMPILED,
    "compile_config": _COMPILED,
    "disable_compile": _COMPILED,
}
"""Settings that are accepted and cannot change the answer, each with the reason."""

BEAMS_ONLY = ("early_stopping", "length_penalty")
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
)
"""Arguments of ``generate`` that are not settings."""

NOT_SUPPORTED_ARGUMENTS = (
    "assistant_model",
    "assistant_tokenizer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "custom_generate",
    "synced_gpus",
    "inputs_embeds",
    "past_key_values",
)
"""Arguments of Transformers' ``generate`` that are refused unless they are None or False."""
