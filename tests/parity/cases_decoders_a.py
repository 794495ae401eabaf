"""Parity cases of Mistral, Qwen, SmolLM, OLMo, Granite, StarCoder, StableLM and EXAONE; see `cases`."""

from typing import Any

CAUSAL_LM, BASE = "AutoModelForCausalLM", "AutoModel"
FULL, SLIDING = "full_attention", "sliding_attention"

# Sizes that nothing divides, sizes of one key-value head and wide ones, and sizes for four shards.
GROUPED = {"hidden_size": 36, "intermediate_size": 50, "num_attention_heads": 6, "num_key_value_heads": 3}
ONE_KV = {"hidden_size": 40, "intermediate_size": 33, "num_attention_heads": 5, "num_key_value_heads": 1}
MESH = {"hidden_size": 48, "intermediate_size": 52, "num_attention_heads": 8, "num_key_value_heads": 2}
# Prompts of the tests reach beyond the original positions.
YARN = {
    "rope_type": "yarn",
    "rope_theta": 900.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
}

CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "mistral": {
        "window_shorter_than_prompts": {**GROUPED, "head_dim": 10, "sliding_window": 5},
        "one_kv_head_tied_dynamic": {
            **ONE_KV,
            "sliding_window": None,
            "hidden_act": "gelu",
            "tie_word_embeddings": True,
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 700.0},
        },
    },
    "qwen2": {
        "upper_layers_slide": {
            **GROUPED,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
        },
        "one_kv_head_tied_yarn": {
            **ONE_KV,
            "tie_word_embeddings": True,
            "sliding_window": 4,  # not used
            "rms_norm_eps": 1e-3,
            "rope_parameters": YARN,
            "max_position_embeddings": 64,
        },
    },
    "qwen3": {
        "grouped_wide": {**GROUPED, "head_dim": 10},
        "one_kv_head_biased_tied_layers_given": {
            **ONE_KV,
            "head_dim": 12,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": [SLIDING, FULL],
            "rope_parameters": {**YARN, "attention_factor": 1.3, "truncate": False},
            "max_position_embeddings": 64,
        },
    },
    "smollm3": {
        "second_layer_without_positions": {**GROUPED, "no_rope_layer_interval": 2},
        "biased_untied_windows": {
            **ONE_KV,
            "num_hidden_layers": 3,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            "no_rope_layers": [0, 1, 1],
            "use_sliding_window": True,
            "sliding_window": 6,
        },
    },
    "olmo2": {
        "grouped": GROUPED,
        "one_kv_head_biased_tied_linear": {
            **ONE_KV,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-3,
            "hidden_act": "gelu",
            "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
        },
    },
    "granite": {
        "scaled_everywhere": {
            **GROUPED,
            "embedding_multiplier": 3.0,
            "logits_scaling": 0.4,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.3,
            "tie_word_embeddings": True,
        },
        "one_kv_head_biased_plain": {**ONE_KV, "attention_bias": True, "mlp_bias": True, "hidden_act": "relu"},
    },
}

CONFIGS |= {
    "olmo3": {
        "yarn_where_all_is_seen": {
            **GROUPED,
            "layer_types": [SLIDING, FULL],
            "sliding_window": 5,
            "max_position_embeddings": 64,
            "rope_parameters": {
                FULL: YARN,
                SLIDING: {"rope_type": "default", "rope_theta": 300.0},
            },
        },
        "one_kv_head_biased_tied_pattern": {
            **ONE_KV,
            "num_hidden_layers": 4,
            "sliding_window": 7,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    },
    "stablelm": {
        "heads_normed": {
            **GROUPED,
            "hidden_size": 48,
            "qk_layernorm": True,
            "use_qkv_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 0.5},
        },
        "one_kv_head_parallel_tied": {
            **ONE_KV,
            "use_parallel_residual": True,
            "tie_word_embeddings": True,
            "layer_norm_eps": 1e-3,
            "hidden_act": "gelu",
        },
    },
    "starcoder2": {
        "window_shorter_than_prompts": {**GROUPED, "sliding_window": 5},
        "one_kv_head_unbiased_untied": {
            **ONE_KV,
            "use_bias": False,
            "tie_word_embeddings": False,
            "norm_epsilon": 1e-3,
            "hidden_act": "gelu",
        },
    },
    "exaone4": {
        "window_shorter_than_prompts": {**GROUPED, "sliding_window": 5, "sliding_window_pattern": 2},
        "one_kv_head_tied_all_rotary": {
            **ONE_KV,
            "sliding_window": None,
            "layer_types": [FULL, FULL],
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    },
    "ministral3": {
        "queries_grow": {
            **GROUPED,
            "head_dim": 10,
            "max_position_embeddings": 64,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7, "llama_4_scaling_beta": 0.3},
        },
        "one_kv_head_tied_window": {
            **ONE_KV,
            "head_dim": 12,
            "sliding_window": 6,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 700.0,
                "llama_4_scaling_beta": 0.5,
                "original_max_position_embeddings": 9,
            },
        },
    },
    "olmo": {
        "clipped": {**GROUPED, "clip_qkv": 0.7},
        "one_kv_head_biased_tied": {**ONE_KV, "attention_bias": True, "tie_word_embeddings": True},
    },
}

MESH_CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "mistral": {
        "repeated_kv_heads": {**MESH, "sliding_window": 6},
        "undivided": CONFIGS["mistral"]["window_shorter_than_prompts"],
    },
    "qwen2": {"repeated_kv_heads": MESH, "undivided": CONFIGS["qwen2"]["upper_layers_slide"]},
    "qwen3": {"repeated_kv_heads": {**MESH, "head_dim": 10}, "undivided": CONFIGS["qwen3"]["grouped_wide"]},
    "smollm3": {
        "repeated_kv_heads": {**MESH, "no_rope_layer_interval": 2},
        "undivided": CONFIGS["smollm3"]["second_layer_without_positions"],
    },
    "olmo2": {"repeated_kv_heads": MESH, "undivided": CONFIGS["olmo2"]["grouped"]},
    "granite": {
        "repeated_kv_heads": {**MESH, "residual_multiplier": 0.6, "attention_bias": True},
        "undivided": CONFIGS["granite"]["scaled_everywhere"],
    },
}

MESH_CONFIGS |= {
    "olmo3": {
        "repeated_kv_heads": {**MESH, "layer_types": [FULL, SLIDING], "sliding_window": 6},
        "undivided": CONFIGS["olmo3"]["yarn_where_all_is_seen"],
    },
    "stablelm": {
        "repeated_kv_heads": {**MESH, "hidden_size": 64, "qk_layernorm": True, "use_qkv_bias": True},
        "undivided": CONFIGS["stablelm"]["heads_normed"],
    },
    "starcoder2": {
        "repeated_kv_heads": {**MESH, "sliding_window": 6},
        "undivided": CONFIGS["starcoder2"]["window_shorter_than_prompts"],
    },
    "exaone4": {
        "repeated_kv_heads": {**MESH, "sliding_window": 6, "sliding_window_pattern": 2},
        "undivided": CONFIGS["exaone4"]["window_shorter_than_prompts"],
    },
    "ministral3": {
        "repeated_kv_heads": {**MESH, "head_dim": 10, "sliding_window": 6},
        "undivided": CONFIGS["ministral3"]["queries_grow"],
    },
    "olmo": {
        "repeated_kv_heads": {**MESH, "clip_qkv": 0.9},
        "undivided": CONFIGS["olmo"]["clipped"],
    },
}

HEADS: dict[str, tuple[str, ...]] = dict.fromkeys(CONFIGS, (CAUSAL_LM, BASE))
