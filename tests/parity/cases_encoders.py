"""Parity cases of the encoders."""

from typing import Any

MASKED_LM, TOKEN_CLASSIFICATION = "AutoModelForMaskedLM", "AutoModelForTokenClassification"
SEQUENCE_CLASSIFICATION, QUESTION_ANSWERING = "AutoModelForSequenceClassification", "AutoModelForQuestionAnswering"
ALL = (MASKED_LM, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION, QUESTION_ANSWERING, "AutoModel")

HEADS: dict[str, tuple[str, ...]] = {
    "bert": ALL,
    "roberta": ALL,
    "xlm-roberta": ALL,
    "camembert": ALL,
    "distilbert": ALL,
    "electra": ALL,
    "albert": ALL,
    "mpnet": ALL,
    "modernbert": ALL,
    "nomic_bert": (MASKED_LM, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION, "AutoModel"),
    "deberta-v2": ALL,
}

TOKEN_TYPES: tuple[str, ...] = ("roberta", "xlm-roberta", "camembert", "electra", "albert", "deberta-v2", "nomic_bert")

# Positions count the tokens that are not the padding token.
POSITIONS_FROM_IDS: tuple[str, ...] = ("roberta", "xlm-roberta", "camembert", "mpnet")

THREE_HEADS: dict[str, Any] = {
    "hidden_size": 36,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": 70,
    "num_labels": 5,
}
FIVE_HEADS: dict[str, Any] = {
    "hidden_size": 35,
    "num_attention_heads": 5,
    "intermediate_size": 41,
    "max_position_embeddings": 47,
    "num_hidden_layers": 3,
    "num_labels": 1,
}
FOUR_HEADS: dict[str, Any] = {
    "hidden_size": 36,
    "num_attention_heads": 4,
    "intermediate_size": 52,
    "max_position_embeddings": 70,
}
ROBERTA: dict[str, dict[str, Any]] = {
    "three_heads": {**THREE_HEADS, "pad_token_id": 1, "bos_token_id": 0, "type_vocab_size": 1},
    "pad_5_relu_two_types_untied": {
        **FIVE_HEADS,
        "pad_token_id": 5,
        "hidden_act": "relu",
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-3,
        "tie_word_embeddings": False,
    },
}
ROBERTA_MESH: dict[str, dict[str, Any]] = {
    "four_heads": {**FOUR_HEADS, "pad_token_id": 1},
    "undivided": ROBERTA["three_heads"],
}

CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "distilbert": {
        "three_heads": {"dim": 36, "n_heads": 3, "n_layers": 2, "hidden_dim": 50, "max_position_embeddings": 70},
        "relu_untied": {
            "dim": 35,
            "n_heads": 5,
            "n_layers": 3,
            "hidden_dim": 41,
            "max_position_embeddings": 47,
            "activation": "relu",
            "sinusoidal_pos_embds": True,
            "tie_word_embeddings": False,
            "num_labels": 1,
        },
    },
    "electra": {
        "narrow_embedding": {**THREE_HEADS, "embedding_size": 22},
        "same_width_untied": {
            **FIVE_HEADS,
            "embedding_size": 35,
            "hidden_act": "relu",
            "type_vocab_size": 3,
            "tie_word_embeddings": False,
        },
    },
    "mpnet": {
        "three_heads": {**THREE_HEADS, "pad_token_id": 1},
        "more_buckets_relu_untied": {
            **FIVE_HEADS,
            "pad_token_id": 1,
            "hidden_act": "relu",
            "relative_attention_num_buckets": 40,
            "tie_word_embeddings": False,
        },
    },
    "modernbert": {
        # Windows of 4 tokens on either side, and rotary positions of each kind of layer.
        "windows_cls": {
            "hidden_size": 36,
            "num_attention_heads": 3,
            "intermediate_size": 50,
            "local_attention": 8,
            "num_hidden_layers": 2,
            "norm_bias": True,
            "num_labels": 5,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        "biased_mean_scaled_untied": {
            "hidden_size": 40,
            "num_attention_heads": 5,
            "intermediate_size": 41,
            "num_hidden_layers": 4,
            "local_attention": 5,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
            "hidden_activation": "silu",
            "norm_eps": 1e-3,
            "attention_bias": True,
            "mlp_bias": True,
            "decoder_bias": False,
            "classifier_pooling": "mean",
            "classifier_bias": True,
            "classifier_activation": "relu",
            "tie_word_embeddings": False,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 700.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
            "num_labels": 1,
        },
    },
    "deberta-v2": {
        # As v3; prompts of the tests reach beyond the 8 distances that have a bucket of their own.
        "shared_keys_log_buckets": {
            **THREE_HEADS,
            "relative_attention": True,
            "position_buckets": 8,
            "max_relative_positions": -1,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
        # As the largest of v2, with a distance clipped, and the head of the pre-training.
        "own_keys_convolution_lm_predictions": {
            **FIVE_HEADS,
            "relative_attention": True,
            "max_relative_positions": 9,
            "pos_att_type": "c2p|p2c",
            "position_biased_input": True,
            "type_vocab_size": 3,
            "conv_kernel_size": 3,
            "conv_act": "gelu",
            "hidden_act": "relu",
            "pooler_hidden_act": "tanh",
            "layer_norm_eps": 1e-3,
            "legacy": False,
        },
        "narrow_embedding_c2p_grouped_convolution_untied": {
            **THREE_HEADS,
            "embedding_size": 22,
            "relative_attention": True,
            "position_buckets": 12,
            "max_relative_positions": 40,
            "pos_att_type": ["c2p"],
            "conv_kernel_size": 5,
            "conv_groups": 4,
            "type_vocab_size": 2,
            "tie_word_embeddings": False,
        },
    },
    "nomic_bert": {
        "wide_heads": {
            "hidden_size": 36,
            "num_attention_heads": 3,
            "head_dim": 10,
            "intermediate_size": 50,
            "num_labels": 5,
        },
        "three_types_relu_linear": {
            "hidden_size": 40,
            "num_attention_heads": 5,
            "intermediate_size": 41,
            "num_hidden_layers": 3,
            "hidden_act": "relu",
            "type_vocab_size": 3,
            "layer_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
            "num_labels": 1,
        },
    },
    "albert": {
        "one_group": {**THREE_HEADS, "embedding_size": 22, "num_hidden_layers": 3},
        "two_groups_of_two_untied": {
            **FIVE_HEADS,
            "embedding_size": 35,
            "num_hidden_layers": 3,
            "num_hidden_groups": 2,
            "inner_group_num": 2,
            "hidden_act": "relu",
            "type_vocab_size": 3,
            "tie_word_embeddings": False,
        },
    },
}

MESH_CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "roberta": ROBERTA_MESH,
    "xlm-roberta": ROBERTA_MESH,
    "camembert": ROBERTA_MESH,
    "distilbert": {
        "four_heads": {"dim": 36, "n_heads": 4, "n_layers": 2, "hidden_dim": 52, "max_position_embeddings": 70},
        "undivided": CONFIGS["distilbert"]["three_heads"],
    },
    "electra": {
        "four_heads": {**FOUR_HEADS, "embedding_size": 24},
        "undivided": CONFIGS["electra"]["narrow_embedding"],
    },
    "mpnet": {
        "four_heads": {**FOUR_HEADS, "pad_token_id": 1},
        "undivided": CONFIGS["mpnet"]["three_heads"],
    },
    "modernbert": {
        "four_heads": {
            "hidden_size": 40,
            "num_attention_heads": 4,
            "intermediate_size": 52,
            "local_attention": 8,
            "attention_bias": True,
            "mlp_bias": True,
        },
        "undivided": CONFIGS["modernbert"]["windows_cls"],
    },
    "deberta-v2": {
        "four_heads": {
            **FOUR_HEADS,
            "relative_attention": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "conv_kernel_size": 3,
        },
        "undivided": CONFIGS["deberta-v2"]["shared_keys_log_buckets"],
    },
    "nomic_bert": {
        "four_heads": {"hidden_size": 40, "num_attention_heads": 4, "intermediate_size": 52},
        "undivided": CONFIGS["nomic_bert"]["wide_heads"],
    },
    "albert": {
        "four_heads": {**FOUR_HEADS, "embedding_size": 24},
        "undivided": CONFIGS["albert"]["one_group"],
    },
}
