"""Parity cases of OPT, GPT-NeoX, BLOOM, Falcon, GPT-J, GPT-Neo and Mamba-2."""

from typing import Any

CAUSAL_LM, BASE = "AutoModelForCausalLM", "AutoModel"

HEADS: dict[str, tuple[str, ...]] = {
    "opt": (CAUSAL_LM, BASE),
    "gpt_neox": (CAUSAL_LM, BASE),
    "bloom": (CAUSAL_LM, BASE),
    "falcon": (CAUSAL_LM, BASE),
    "gptj": (CAUSAL_LM, BASE),
    "gpt_neo": (CAUSAL_LM, BASE),
    "mamba2": (CAUSAL_LM, BASE),
}

TOKEN_TYPES: tuple[str, ...] = ("gptj", "gpt_neo")

# Eager attention of Falcon with linear biases adds them twice.
SDPA: tuple[tuple[str, str], ...] = (("falcon", "linear_biases"),)

CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "opt": {
        "three_heads": {
            "hidden_size": 36,
            "ffn_dim": 50,
            "num_attention_heads": 3,
            "max_position_embeddings": 70,
            "init_std": 0.4,
        },
        "norms_behind_narrow_embedding": {
            "hidden_size": 35,
            "ffn_dim": 61,
            "num_attention_heads": 5,
            "max_position_embeddings": 83,
            "num_hidden_layers": 3,
            "do_layer_norm_before": False,
            "word_embed_proj_dim": 22,
            "init_std": 0.4,
        },
        "unbiased_untied_gelu": {
            "hidden_size": 28,
            "ffn_dim": 33,
            "num_attention_heads": 7,
            "max_position_embeddings": 66,
            "enable_bias": False,
            "activation_function": "gelu",
            "tie_word_embeddings": False,
            "init_std": 0.4,
        },
    },
    "gpt_neox": {
        # Prompts of the tests reach beyond the original positions of scaled rope.
        "parallel_quarter_rotary": {
            "hidden_size": 48,
            "intermediate_size": 50,
            "num_attention_heads": 3,
            "rotary_pct": 0.25,
            "rotary_emb_base": 500,
        },
        "sequential_linear_tied": {
            "hidden_size": 50,
            "intermediate_size": 61,
            "num_attention_heads": 5,
            "num_hidden_layers": 3,
            "use_parallel_residual": False,
            "rope_parameters": {
                "rope_type": "linear",
                "factor": 2.0,
                "rope_theta": 1000.0,
                "partial_rotary_factor": 0.6,
            },
            "hidden_act": "relu",
            "layer_norm_eps": 1e-3,
            "tie_word_embeddings": True,
        },
        "unbiased_whole_head": {
            "hidden_size": 42,
            "intermediate_size": 33,
            "num_attention_heads": 7,
            "attention_bias": False,
            "rotary_pct": 1.0,
        },
    },
    "bloom": {
        "three_heads": {"hidden_size": 36, "n_head": 3},
        "normed_residual_untied": {
            "hidden_size": 44,
            "n_head": 11,
            "n_layer": 3,
            "apply_residual_connection_post_layernorm": True,
            "layer_norm_epsilon": 1e-3,
            "tie_word_embeddings": False,
        },
    },
    "falcon": {
        "groups": {
            "hidden_size": 36,
            "num_attention_heads": 6,
            "num_kv_heads": 3,
            "new_decoder_architecture": True,
            "ffn_hidden_size": 50,
        },
        "one_kv_head": {
            "hidden_size": 50,
            "num_attention_heads": 5,
            "num_hidden_layers": 3,
            "bias": True,
            "activation": "relu",
            "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
            "layer_norm_epsilon": 1e-3,
            "tie_word_embeddings": False,
        },
        "linear_biases": {
            "hidden_size": 42,
            "num_attention_heads": 7,
            "multi_query": False,
            "parallel_attn": False,
            "alibi": True,
            "bias": True,
        },
        "groups_under_one_norm": {
            "hidden_size": 40,
            "num_attention_heads": 4,
            "num_kv_heads": 1,
            "new_decoder_architecture": True,
            "num_ln_in_parallel_attn": 1,
        },
    },
    "gptj": {
        "partly_rotated": {"n_embd": 36, "n_head": 3, "n_positions": 70, "rotary_dim": 6},
        "wholly_rotated_relu": {
            "n_embd": 40,
            "n_head": 5,
            "n_layer": 3,
            "n_inner": 61,
            "n_positions": 83,
            "rotary_dim": 8,
            "activation_function": "relu",
            "layer_norm_epsilon": 1e-3,
        },
    },
    "gpt_neo": {
        # The window is shorter than the prompts.
        "global_and_local": {
            "hidden_size": 36,
            "num_heads": 3,
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 5,
            "max_position_embeddings": 70,
        },
        "mostly_local_untied": {
            "hidden_size": 35,
            "num_heads": 5,
            "num_layers": 3,
            "attention_types": [[["local"], 2], [["global"], 1]],
            "window_size": 7,
            "intermediate_size": 61,
            "max_position_embeddings": 83,
            "activation_function": "relu",
            "layer_norm_epsilon": 1e-3,
            "tie_word_embeddings": False,
        },
    },
    # Prompts are longer than a chunk. With use_bias the oracle lets padding on the left into the convolution, see
    # tests/models/test_mamba2.py.
    "mamba2": {
        "grouped": {
            "hidden_size": 24,
            "num_heads": 6,
            "head_dim": 8,
            "n_groups": 3,
            "state_size": 5,
            "chunk_size": 7,
        },
        "one_group_unbiased_tied": {
            "hidden_size": 35,
            "num_heads": 5,
            "head_dim": 14,
            "n_groups": 1,
            "state_size": 11,
            "num_hidden_layers": 3,
            "conv_kernel": 3,
            "use_conv_bias": False,
            "chunk_size": 64,
            "residual_in_fp32": False,
            "layer_norm_epsilon": 1e-3,
            "tie_word_embeddings": True,
        },
    },
}

MESH_CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "opt": {
        "four_heads": {
            "hidden_size": 36,
            "ffn_dim": 52,
            "num_attention_heads": 4,
            "max_position_embeddings": 70,
            "init_std": 0.4,
        },
        "undivided": CONFIGS["opt"]["norms_behind_narrow_embedding"],
    },
    "gpt_neox": {
        "four_heads": {"hidden_size": 64, "intermediate_size": 52, "num_attention_heads": 4},
        "undivided": CONFIGS["gpt_neox"]["sequential_linear_tied"],
    },
    "bloom": {
        "four_heads": {"hidden_size": 36, "n_head": 4},
        "undivided": CONFIGS["bloom"]["three_heads"],
    },
    "falcon": {
        "repeated_kv_heads": {
            "hidden_size": 48,
            "num_attention_heads": 8,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "bias": True,
        },
        "undivided": CONFIGS["falcon"]["one_kv_head"],
    },
    "gptj": {
        "four_heads": {"n_embd": 32, "n_head": 4, "n_inner": 52, "n_positions": 70, "rotary_dim": 4},
        "undivided": CONFIGS["gptj"]["wholly_rotated_relu"],
    },
    "gpt_neo": {
        "four_heads": CONFIGS["gpt_neo"]["global_and_local"] | {"num_heads": 4},
        "undivided": CONFIGS["gpt_neo"]["mostly_local_untied"],
    },
    "mamba2": {
        "four_heads": {"hidden_size": 24, "num_heads": 4, "head_dim": 12, "n_groups": 2, "state_size": 5},
        "undivided": CONFIGS["mamba2"]["one_group_unbiased_tied"],
    },
}
