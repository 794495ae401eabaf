"""The table of parity cases: tiny configs with odd sizes, several for every architecture and head.

An architecture joins by a row of `CONFIGS` for each config, in the oracle's keys, and a row of `HEADS`.
"""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

BASE, CAUSAL_LM = "AutoModel", "AutoModelForCausalLM"
MASKED_LM, SEQUENCE_CLASSIFICATION = "AutoModelForMaskedLM", "AutoModelForSequenceClassification"
TOKEN_CLASSIFICATION, QUESTION_ANSWERING = "AutoModelForTokenClassification", "AutoModelForQuestionAnswering"
SEQ2SEQ_LM = "AutoModelForSeq2SeqLM"

# Auto classes of each architecture, which are the heads.
HEADS: dict[str, tuple[str, ...]] = {
    "llama": (CAUSAL_LM, BASE),
    "gpt2": (CAUSAL_LM, BASE),
    "bert": (MASKED_LM, SEQUENCE_CLASSIFICATION, BASE),
}

# Heads of decoders that classify: `CLASSIFIERS` has those of the sequences, of the tokens and for questions.
CLASSIFIERS = (SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION, QUESTION_ANSWERING)
DECODER_CLASSIFIERS: dict[str, tuple[str, ...]] = (
    dict.fromkeys(("gemma3_text", "olmo", "olmo2", "olmo3"), CLASSIFIERS[:1])
    | dict.fromkeys(("gptj", "opt"), (SEQUENCE_CLASSIFICATION, QUESTION_ANSWERING))
    | dict.fromkeys("deepseek_v3 gemma gemma2 glm4 gpt_oss phi phi3 stablelm starcoder2".split(), CLASSIFIERS[:2])
    | dict.fromkeys("bloom exaone4 falcon gpt2 gpt_neo gpt_neox llama ministral3 mistral mixtral".split(), CLASSIFIERS)
    | dict.fromkeys("qwen2 qwen2_moe qwen3 qwen3_moe smollm3".split(), CLASSIFIERS)
)
# Of which the classifier of sequences is tested also where time is short.
QUICK_CLASSIFIERS = ("llama", "gpt2", "qwen2", "qwen3", "mistral", "gemma")

# Architectures whose models read token_type_ids.
TOKEN_TYPES: tuple[str, ...] = ("bert", "gpt2")

# Pairs of model_type and name of configs whose eager attention is at fault in the oracle; its sdpa puts out no
# attentions.
SDPA: tuple[tuple[str, str], ...] = ()

# Architectures with an encoder and a decoder.
SEQ2SEQ: tuple[str, ...] = ()

# Architectures whose models tell padding by the padding token, beside the mask.
POSITIONS_FROM_IDS: tuple[str, ...] = ()

# model_type -> name -> config; the first of an architecture is the quick one.
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        # Prompts of the tests reach beyond the original 16 positions.
        "grouped_biased_llama3": {
            "hidden_size": 36,
            "intermediate_size": 50,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": LLAMA3,
        },
        "one_kv_head_wide_tied_linear": {
            "hidden_size": 35,
            "intermediate_size": 33,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 10,
            "hidden_act": "gelu",
            "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
            "tie_word_embeddings": True,
        },
        "multi_head_default": {
            "hidden_size": 56,
            "intermediate_size": 90,
            "num_attention_heads": 7,
            "rms_norm_eps": 1e-3,
            "num_hidden_layers": 3,
        },
    },
    "gpt2": {
        "three_heads": {"n_embd": 36, "n_head": 3, "n_positions": 70},
        "scaled_by_layer": {
            "n_embd": 35,
            "n_head": 5,
            "n_inner": 61,
            "n_positions": 83,
            "n_layer": 3,
            "activation_function": "relu",
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
            "layer_norm_epsilon": 1e-3,
        },
        "unscaled_untied": {
            "n_embd": 28,
            "n_head": 7,
            "n_positions": 66,
            "scale_attn_weights": False,
            "tie_word_embeddings": False,
        },
    },
    "bert": {
        "three_heads": {
            "hidden_size": 36,
            "num_attention_heads": 3,
            "intermediate_size": 50,
            "max_position_embeddings": 70,
            "num_labels": 5,
        },
        "three_types_relu": {
            "hidden_size": 35,
            "num_attention_heads": 5,
            "intermediate_size": 41,
            "max_position_embeddings": 47,
            "num_hidden_layers": 3,
            "hidden_act": "relu",
            "type_vocab_size": 3,
            "layer_norm_eps": 1e-3,
            "num_labels": 1,
        },
        "untied": {
            "hidden_size": 28,
            "num_attention_heads": 7,
            "intermediate_size": 30,
            "max_position_embeddings": 48,
            "hidden_act": "gelu_new",
            "tie_word_embeddings": False,
            "num_labels": 3,
        },
    },
}

# Configs for several devices, the quick one first. On 4 tensor shards the first of each splits its heads or repeats
# its key-value heads, and does not split the vocabulary; the second splits nothing.
MESH_CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "repeated_kv_heads": {
            "hidden_size": 48,
            "intermediate_size": 52,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "attention_bias": True,
            "mlp_bias": True,
        },
        "undivided": CONFIGS["llama"]["grouped_biased_llama3"],
    },
    "gpt2": {
        "four_heads": {"n_embd": 36, "n_head": 4, "n_inner": 52, "n_positions": 70},
        "undivided": CONFIGS["gpt2"]["three_heads"] | {"n_inner": 55},
    },
    "bert": {
        "four_heads": {
            "hidden_size": 36,
            "num_attention_heads": 4,
            "intermediate_size": 52,
            "max_position_embeddings": 70,
        },
        "undivided": CONFIGS["bert"]["three_heads"],
    },
}


# Families of architectures bring tables of their own, of the same names, in modules beside this one.
for _module in sorted(Path(__file__).parent.glob("cases_*.py")):
    _family = importlib.import_module(f"tests.parity.{_module.stem}")
    HEADS |= _family.HEADS
    CONFIGS |= _family.CONFIGS
    MESH_CONFIGS |= _family.MESH_CONFIGS
    TOKEN_TYPES += getattr(_family, "TOKEN_TYPES", ())
    SDPA += getattr(_family, "SDPA", ())
    POSITIONS_FROM_IDS += getattr(_family, "POSITIONS_FROM_IDS", ())
    SEQ2SEQ += getattr(_family, "SEQ2SEQ", ())

HEADS |= {model_type: HEADS[model_type] + heads for model_type, heads in DECODER_CLASSIFIERS.items()}


@dataclass(frozen=True, eq=False)
class Case:
    """One config of one architecture under one head.

    Attributes:
        head: name of the Auto class, here and in the oracle.
        config: keys of the oracle's config class.
    """

    model_type: str
    head: str
    name: str
    config: dict[str, Any] = field(repr=False)

    @property
    def token_types(self) -> bool:
        return self.model_type in TOKEN_TYPES

    @property
    def classifier(self) -> bool:
        """Whether it is a decoder with a head that classifies."""
        return self.model_type in DECODER_CLASSIFIERS and self.head in CLASSIFIERS

    @property
    def seq2seq(self) -> bool:
        return self.model_type in SEQ2SEQ

    @property
    def sdpa(self) -> bool:
        return (self.model_type, self.name) in SDPA

    def __str__(self) -> str:
        return f"{self.model_type}-{self.head.removeprefix('AutoModel') or 'Base'}-{self.name}"


def _config(own: dict[str, Any], head: str) -> dict[str, Any]:
    if head == QUESTION_ANSWERING:  # which has two labels
        own = {key: value for key, value in own.items() if key != "num_labels"}
    elif head in CLASSIFIERS:
        own = {"num_labels": 3, **own}
    layers = (
        {} if {"n_layer", "num_hidden_layers", "num_layers", "encoder_layers"} & set(own) else {"num_hidden_layers": 2}
    )
    # Wide weights, so that no two tokens come close to the same score.
    return {"vocab_size": 131, "initializer_range": 0.4, **IDS, **layers, **own}


CASES = {
    model_type: [
        [Case(model_type, head, name, _config(own, head)) for head in HEADS[model_type]]
        for name, own in configs.items()
    ]
    for model_type, configs in CONFIGS.items()
}

# model_type -> the cases for several devices, each under its architecture's first head.
MESH_CASES = {
    model_type: [
        Case(model_type, head, name, _config(own, head))
        for name, own in configs.items()
        for head in HEADS[model_type][:1]
    ]
    for model_type, configs in MESH_CONFIGS.items()
}


# Tested in every way also where time is short; what the others add to these shows in fewer ways.
CORE = ("llama", "gpt2", "bert")


def params(*heads: str, first_head: bool = False, core: bool = False) -> list[Any]:
    """The cases as pytest parameters; all but each architecture's first config are marked `full`.

    Args:
        heads: only these; all of them by default.
        first_head: mark all but each architecture's first head `full` too: what is tested lies before the head.
        core: mark all but the first head of `CORE` `full` too: what is tested is much the same everywhere.
    """
    found = []
    for model_type, configs in CASES.items():
        for i, row in enumerate(configs):
            for j, case in enumerate(row):
                other = model_type not in CORE
                # A base model under a later row is the one that the first head was tested with.
                full = i or (j and (first_head or core)) or (core and other) or (j and other and case.head == BASE)
                if case.classifier:  # of the model that is tested under the first head
                    quick = case.head == SEQUENCE_CLASSIFICATION and case.model_type in QUICK_CLASSIFIERS
                    full = full or first_head or core or not quick
                marks = [pytest.mark.full] if full else []
                if not heads or case.head in heads:
                    found.append(pytest.param(case, id=str(case), marks=marks))
    return found
