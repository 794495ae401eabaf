"""Parity cases of the encoder-decoders."""

from typing import Any

SEQ2SEQ_LM, BASE = "AutoModelForSeq2SeqLM", "AutoModel"

HEADS: dict[str, tuple[str, ...]] = {
    "t5": (SEQ2SEQ_LM, BASE),
    "mt5": (SEQ2SEQ_LM, BASE),
    "umt5": (SEQ2SEQ_LM, BASE),
    "bart": (SEQ2SEQ_LM, "AutoModelForSequenceClassification", BASE),
    "mbart": (SEQ2SEQ_LM, "AutoModelForSequenceClassification", BASE),
    "marian": (SEQ2SEQ_LM, BASE),
    "pegasus": (SEQ2SEQ_LM, BASE),
    "m2m_100": (SEQ2SEQ_LM, BASE),
}
SEQ2SEQ = tuple(HEADS)
POSITIONS_FROM_IDS = ("m2m_100",)

# Distances of the tests reach beyond the last bucket. Decoders have no more layers than their encoders: the oracle's
# cache has the encoder's.
T5_TIED: dict[str, Any] = {
    "d_model": 36,
    "d_kv": 10,
    "num_heads": 3,
    "d_ff": 50,
    "num_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 15,
    "decoder_start_token_id": 0,
}
T5_GATED: dict[str, Any] = {
    "d_model": 35,
    "d_kv": 7,
    "num_heads": 5,
    "d_ff": 41,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-3,
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}
T5_MESH: dict[str, dict[str, Any]] = {
    "four_heads": T5_TIED | {"d_model": 48, "num_heads": 4, "d_ff": 52},
    "undivided": T5_TIED | {"d_ff": 55},
}
BART: dict[str, Any] = {
    "d_model": 36,
    "encoder_layers": 2,
    "encoder_ffn_dim": 50,
    "encoder_attention_heads": 3,
    "decoder_layers": 2,
    "decoder_ffn_dim": 42,
    "decoder_attention_heads": 6,
    "max_position_embeddings": 70,
    "init_std": 0.4,
    "num_labels": 5,
    "decoder_start_token_id": 2,
}
BART_SCALED: dict[str, Any] = {
    "d_model": 35,
    "encoder_layers": 3,
    "encoder_ffn_dim": 33,
    "encoder_attention_heads": 5,
    "decoder_layers": 2,
    "decoder_ffn_dim": 40,
    "decoder_attention_heads": 7,
    "max_position_embeddings": 47,
    "init_std": 0.3,
    "activation_function": "relu",
    "scale_embedding": True,
    "num_labels": 1,
    "decoder_start_token_id": 5,
}
BART_MESH: dict[str, dict[str, Any]] = {
    "four_heads": BART
    | {
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 52,
        "decoder_ffn_dim": 44,
    },
    "undivided": BART | {"encoder_ffn_dim": 55},
}
BART_KIN = ("bart", "mbart", "marian", "pegasus", "m2m_100")

CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "t5": {
        "tied_relu": T5_TIED,
        "gated_apart": T5_GATED,
        "tied_gated_silu": T5_TIED | {"feed_forward_proj": "gated-silu", "num_heads": 1, "d_kv": 9},
    },
    "mt5": {"gated_apart": T5_GATED, "tied_relu": T5_TIED | {"feed_forward_proj": "relu"}},
    "umt5": {"gated_apart": T5_GATED, "tied_relu": T5_TIED | {"feed_forward_proj": "relu"}},
    **{kind: {"three_heads": BART, "scaled_relu": BART_SCALED} for kind in BART_KIN},
}
MESH_CONFIGS = {
    **dict.fromkeys(("t5", "mt5", "umt5"), T5_MESH),
    **dict.fromkeys(BART_KIN, BART_MESH),
}
