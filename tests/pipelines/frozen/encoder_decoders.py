"""Tiny checkpoints of encoder-decoders, the same on every machine: weights drawn by numpy, tokenizers written out.

`write` makes directories that both Transformers 4.57.6 and jaxpipe load. ``t5`` has relative positions and
`task_specific_params`, ``bart`` learned positions and a prefix, ``m2m_100`` language codes (NLLB's tokenizer).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

WORDS = (
    "the cat sat on mat a dog ate rat hello world again and house red blue tree sun moon river runs small big old new "
    "green bird sings morning night we they you walk home summarize translate English German French to"
).split()
CHARACTERS = "abcdefghijklmnopqrstuvwxyzEGF.,:!'"
LANGUAGES = ("eng_Latn", "fra_Latn", "deu_Latn")
SIZES = {"t5": 24, "bart": 24, "m2m_100": 24}
POSITIONS = 48

T5: dict[str, Any] = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "is_encoder_decoder": True,
    "d_model": 24,
    "d_kv": 6,
    "num_heads": 4,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "task_specific_params": {
        "summarization": {"prefix": "summarize: ", "num_beams": 2, "min_length": 4, "max_length": 9},
        "translation_en_to_de": {"prefix": "translate English to German: ", "num_beams": 3},
        "translation_en_to_fr": {"prefix": "translate English to French: ", "max_length": 300},
    },
}
BART_KIN: dict[str, Any] = {
    "is_encoder_decoder": True,
    "d_model": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 32,
    "activation_function": "relu",
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "t5": T5,
    "bart": BART_KIN
    | {
        "model_type": "bart",
        "architectures": ["BartForConditionalGeneration"],
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 2,
        "prefix": "the ",
    },
    "m2m_100": BART_KIN
    | {
        "model_type": "m2m_100",
        "architectures": ["M2M100ForConditionalGeneration"],
        "scale_embedding": True,
    },
}
SPECIAL = {
    "t5": ["<pad>", "</s>", "<unk>"],
    "bart": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "m2m_100": ["<s>", "<pad>", "</s>", "<unk>"],
}
# How much more often than other tokens the end comes.
DRAWN = {"t5": (1.5, 4.0, 1.0, 60), "bart": (0.6, 4.0, 1.0, 56), "m2m_100": (0.3, 4.0, 6.0, 28)}
ENDS = {"t5": 1.0, "bart": 3.0, "m2m_100": 2.0}

_SCORES = ("q_proj.weight", "k_proj.weight", ".q.weight", ".k.weight")
_TABLES = ("shared.weight", "lm_head.weight", "embed_positions.weight", "relative_attention_bias.weight")


def write(kind: str, directory: Path, config: Any = None, generation: Any = None) -> Path:
    """Writes a checkpoint and returns its directory.

    Args:
        kind: ``"t5"``, ``"bart"`` or ``"m2m_100"``.
        directory: made where it does not exist.
        config: changes to config.json.
        generation: the contents of generation_config.json, which is only written where they are given.
    """
    directory.mkdir(parents=True, exist_ok=True)
    backend, settings = tokenizer(kind)
    values = CONFIGS[kind] | {"vocab_size": backend.get_vocab_size()} | (config or {})
    (directory / "config.json").write_text(json.dumps(values, indent=2))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    save_file(weights(kind, values), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def tokenizer(kind: str) -> tuple[Any, dict[str, Any]]:
    """Returns the ``tokenizers.Tokenizer`` of a kind and its tokenizer_config.json."""
    from tokenizers import AddedToken, processors

    backend = _byte_level() if kind == "bart" else _unigram(kind)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL[kind]])
    settings: dict[str, Any] = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    if kind == "t5":
        settings |= {"tokenizer_class": "T5TokenizerFast", "extra_ids": 0, "model_max_length": 40}
        ends, single = ["</s>"], "$A </s>"
    elif kind == "bart":
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "model_max_length": POSITIONS}
        ends, single = ["<s>", "</s>"], "<s> $A </s>"
    else:
        backend.add_special_tokens([AddedToken(code, normalized=False) for code in LANGUAGES])
        backend.add_special_tokens([AddedToken("<mask>", normalized=True, lstrip=True)])
        settings |= {"tokenizer_class": "NllbTokenizerFast", "additional_special_tokens": list(LANGUAGES)}
        settings |= {"bos_token": "<s>", "model_max_length": 40}
        ends, single = ["eng_Latn", "</s>"], "eng_Latn $A </s>"
    used = [(token, backend.token_to_id(token)) for token in ends]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=used)
    return backend, settings


def _unigram(kind: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [(token, 0.0) for token in SPECIAL[kind]]
    pieces += [("▁" + word, -2.0 - 0.01 * rank) for rank, word in enumerate(WORDS)]
    pieces += [(character, -8.0 - 0.01 * rank) for rank, character in enumerate("▁" + CHARACTERS)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL[kind].index("<unk>")))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


def _byte_level() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(set("".join(WORDS)) | set(CHARACTERS) | {"Ġ"})
    tokens = SPECIAL["bart"] + letters
    merges = []
    for word in WORDS:
        # Each word, with the space before it, is put together letter by letter.
        for end in range(1, len(word) + 1):
            left, right = "Ġ" + word[: end - 1], word[end - 1]
            if left + right not in tokens:
                merges.append((left, right))
                tokens.append(left + right)
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def weights(kind: str, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the weights by name, drawn in the order of the names, so large that no two tokens nearly tie."""
    shapes = _t5_shapes(config) if kind == "t5" else _bart_shapes(config, learned=kind == "bart")
    tables, attention, outputs, seed = DRAWN[kind]
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name in sorted(shapes):
        shape = shapes[name]
        drawn = random.standard_normal(shape)
        if "norm" in name and name.endswith("weight"):
            drawn = 1 + 0.2 * drawn
        elif len(shape) == 1:
            drawn = 0.2 * drawn
        elif name.endswith(_TABLES):
            drawn = tables * drawn
        else:
            drawn = (attention if name.endswith(_SCORES) else outputs) * drawn / np.sqrt(shape[1])
        arrays[name] = drawn.astype(np.float32)
    end, head = config["eos_token_id"], "lm_head.weight" if kind == "t5" else "model.shared.weight"
    if kind == "bart":
        arrays["final_logits_bias"] = np.zeros((1, config["vocab_size"]), np.float32)
        arrays["final_logits_bias"][0, end] = ENDS[kind]
    else:
        arrays[head][end] *= ENDS[kind]
    return arrays


def _t5_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner, hidden = config["d_model"], config["d_kv"] * config["num_heads"], config["d_ff"]
    shapes: dict[str, tuple[int, ...]] = {
        "shared.weight": (config["vocab_size"], width),
        "lm_head.weight": (config["vocab_size"], width),
    }
    for half, attentions in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        shapes[f"{half}.final_layer_norm.weight"] = (width,)
        buckets = (config["relative_attention_num_buckets"], config["num_heads"])
        shapes[f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = buckets
        for block in range(config["num_layers"]):
            place = f"{half}.block.{block}.layer"
            for number, attention in enumerate(attentions):
                shapes |= {f"{place}.{number}.{attention}.{part}.weight": (inner, width) for part in "qkv"}
                shapes[f"{place}.{number}.{attention}.o.weight"] = (width, inner)
            last = len(attentions)
            shapes[f"{place}.{last}.DenseReluDense.wi.weight"] = (hidden, width)
            shapes[f"{place}.{last}.DenseReluDense.wo.weight"] = (width, hidden)
            shapes |= {f"{place}.{number}.layer_norm.weight": (width,) for number in range(last + 1)}
    return shapes


def _bart_shapes(config: dict[str, Any], learned: bool) -> dict[str, tuple[int, ...]]:
    width = config["d_model"]
    shapes: dict[str, tuple[int, ...]] = {"model.shared.weight": (config["vocab_size"], width)}

    def norm(place: str) -> None:
        shapes.update({f"{place}.{part}": (width,) for part in ("weight", "bias")})

    for half, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        if learned:
            shapes[f"model.{half}.embed_positions.weight"] = (config["max_position_embeddings"] + 2, width)
        norm(f"model.{half}.{'layernorm_embedding' if learned else 'layer_norm'}")
        hidden = config[f"{half}_ffn_dim"]
        for layer in range(config[f"{half}_layers"]):
            place = f"model.{half}.layers.{layer}"
            for attention in attentions:
                norm(f"{place}.{attention}_layer_norm")
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    shapes[f"{place}.{attention}.{part}.weight"] = (width, width)
                    shapes[f"{place}.{attention}.{part}.bias"] = (width,)
            norm(f"{place}.final_layer_norm")
            for part, (outer, inner) in {"fc1": (hidden, width), "fc2": (width, hidden)}.items():
                shapes[f"{place}.{part}.weight"] = (outer, inner)
                shapes[f"{place}.{part}.bias"] = (outer,)
    return shapes
