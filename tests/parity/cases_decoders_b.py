"""Parity cases of Gemma, Phi, GLM and Cohere; see `cases` for what the tables mean."""

from typing import Any

CAUSAL_LM, BASE = "AutoModelForCausalLM", "AutoModel"

HEADS: dict[str, tuple[str, ...]] = {
    "gemma": (CAUSAL_LM, BASE),
    "gemma2": (CAUSAL_LM, BASE),
    "gemma3_text": (CAUSAL_LM, BASE),
    "phi": (CAUSAL_LM, BASE),
    "phi3": (CAUSAL_LM, BASE),
    "cohere": (CAUSAL_LM, BASE),
    "cohere2": (CAUSAL_LM, BASE),
    "glm4": (CAUSAL_LM, BASE),
}

CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "gemma": {
        "grouped_wide": {
            "hidden_size": 36,
            "intermediate_size": 50,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 10,
            "hidden_act": "gelu",
            "initializer_range": 0.15,
        },
        "one_kv_head_biased_untied": {
            "hidden_size": 35,
            "intermediate_size": 33,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "hidden_act": "silu",
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0},
            "max_position_embeddings": 16,
        },
    },
    "gemma2": {
        # The window is shorter than the prompts.
        "grouped_window_caps": {
            "hidden_size": 36,
            "intermediate_size": 50,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "query_pre_attn_scalar": 7,
            "sliding_window": 5,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 9.0,
        },
        "biased_untied_uncapped_layers_given": {
            "hidden_size": 35,
            "intermediate_size": 33,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "num_hidden_layers": 3,
            "hidden_activation": "silu",
            "attention_bias": True,
            "tie_word_embeddings": False,
            "query_pre_attn_scalar": 8,
            "sliding_window": 7,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
        },
    },
}

CONFIGS |= {
    "gemma3_text": {
        "window_shorter_than_prompts": {
            "hidden_size": 36,
            "intermediate_size": 50,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "query_pre_attn_scalar": 7,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "pattern_biased_untied_capped_linear": {
            "hidden_size": 35,
            "intermediate_size": 33,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "num_hidden_layers": 4,
            "sliding_window_pattern": 3,
            "sliding_window": 7,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "query_pre_attn_scalar": 8,
            "final_logit_softcapping": 9.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    },
    "phi": {
        "three_heads": {
            "hidden_size": 36,
            "intermediate_size": 50,
            "num_attention_heads": 3,
        },
        "grouped_normed_third_rotated": {
            "hidden_size": 72,
            "intermediate_size": 33,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "qk_layernorm": True,
            "layer_norm_eps": 1e-3,
            "hidden_act": "relu",
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.34},
        },
    },
}

CONFIGS |= {
    "phi3": {
        # Every prompt is longer than the original 4 positions, so that the long factors hold.
        "grouped_long_part_rotated": {
            "hidden_size": 48,
            "intermediate_size": 50,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "max_position_embeddings": 64,
            "original_max_position_embeddings": 4,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.3],
                "long_factor": [1.5, 3.0, 7.0],
            },
        },
        "short_window_tied": {
            "hidden_size": 40,
            "intermediate_size": 33,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "num_hidden_layers": 3,
            "sliding_window": 6,
            "tie_word_embeddings": True,
            "max_position_embeddings": 640,
            "original_max_position_embeddings": 80,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 500.0,
                "short_factor": [1.0, 1.1, 1.3, 1.4],
                "long_factor": [1.5, 3.0, 7.0, 8.0],
            },
        },
        "multi_head_default": {"hidden_size": 36, "intermediate_size": 50, "num_attention_heads": 3},
    },
    "cohere": {
        "grouped_normed": {
            "hidden_size": 36,
            "intermediate_size": 50,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "use_qk_norm": True,
            "logit_scale": 0.3,
        },
        "one_kv_head_biased_untied": {
            "hidden_size": 40,
            "intermediate_size": 33,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "num_hidden_layers": 3,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "layer_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
        },
    },
    "cohere2": {
        "window_shorter_than_prompts": {
            "hidden_size": 36,
            "intermediate_size": 50,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
            "logit_scale": 0.3,
        },
        "pattern_biased_untied": {
            "hidden_size": 40,
            "intermediate_size": 33,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "num_hidden_layers": 4,
            "sliding_window": 7,
            "sliding_window_pattern": 3,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "layer_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    },
    "glm4": {
        "grouped_biased": {
            "hidden_size": 36,
            "intermediate_size": 50,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 12,
        },
        "unbiased_tied_quarter_rotated": {
            "hidden_size": 35,
            "intermediate_size": 33,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "num_hidden_layers": 3,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25},
        },
    },
}

MESH_CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "gemma": {
        "repeated_kv_head": {
            "hidden_size": 48,
            "intermediate_size": 52,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 10,
        },
        "undivided": CONFIGS["gemma"]["grouped_wide"],
    },
    "gemma3_text": {
        "repeated_kv_heads": {
            "hidden_size": 48,
            "intermediate_size": 52,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 10,
            "sliding_window": 6,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        "undivided": CONFIGS["gemma3_text"]["window_shorter_than_prompts"],
    },
    "phi3": {
        "repeated_kv_heads": {
            "hidden_size": 64,
            "intermediate_size": 52,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
        },
        "undivided": CONFIGS["phi3"]["grouped_long_part_rotated"],
    },
    "cohere": {
        "repeated_kv_heads_normed": {
            "hidden_size": 64,
            "intermediate_size": 52,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "use_qk_norm": True,
            "logit_scale": 0.3,
        },
        "undivided": CONFIGS["cohere"]["grouped_normed"],
    },
    "cohere2": {
        "repeated_kv_heads": {
            "hidden_size": 64,
            "intermediate_size": 52,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "sliding_window": 6,
            "layer_types": ["full_attention", "sliding_attention"],
            "logit_scale": 0.3,
        },
        "undivided": CONFIGS["cohere2"]["window_shorter_than_prompts"],
    },
    "glm4": {
        "repeated_kv_heads": {
            "hidden_size": 48,
            "intermediate_size": 52,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 12,
        },
        "undivided": CONFIGS["glm4"]["grouped_biased"],
    },
    "phi": {
        "normed": {
            "hidden_size": 64,
            "intermediate_size": 52,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "qk_layernorm": True,
        },
        "undivided": CONFIGS["phi"]["three_heads"],
    },
    "gemma2": {
        "repeated_kv_heads": {
            "hidden_size": 48,
            "intermediate_size": 52,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 10,
            "sliding_window": 6,
            "attention_bias": True,
        },
        "undivided": CONFIGS["gemma2"]["grouped_window_caps"],
    },
}
