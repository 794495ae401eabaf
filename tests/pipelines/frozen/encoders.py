"""Tiny BERT and RoBERTa checkpoints that every version of every library makes alike: no torch, no training.

Weights are drawn by numpy, by name; the vocabularies are spelled out. For the scripts that freeze an oracle's outputs,
and for the tests that compare with them.
"""

import json
import zlib
from pathlib import Path

import numpy as np

LENGTH = 48
_HIDDEN, _INNER, _LAYERS, _HEADS = 32, 48, 2, 4
# Whole words; of all others only pieces are in the vocabularies, and of some characters nothing at all.
_WORDS = (
    "the a an in on of and is was where who what does do my name i live lives work works at for sarah john paris "
    "london berlin cat sat mat dog ate river flows through city company from to it born capital france . , ? ' -"
).split()
_PIECES = "micro soft hugging face york new wolf gang in s ing ed er ly".split()
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

NER_LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC")


def wordpiece_backend():
    """A lower-casing WordPiece ``tokenizers.Tokenizer`` as BERT's; digits and accents outside it become ``[UNK]``."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*_PIECES, *(f"##{piece}" for piece in _PIECES), *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    tokens = list(dict.fromkeys([*special, *_WORDS, *pieces]))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return backend


def byte_bpe_backend():
    """A byte-level BPE ``tokenizers.Tokenizer`` as RoBERTa's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    merges: dict[tuple[str, str], None] = {}
    for word in [*_WORDS, *_PIECES]:
        for text in (word, f"Ġ{word}"):
            # Letter by letter from the left, so that every beginning of a word is a token too.
            for end in range(1, len(text)):
                merges[text[:end], text[end]] = None
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens = list(dict.fromkeys([*tokens, *(left + right for left, right in merges)]))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return backend


_FAMILIES = {
    "bert": {
        "backend": wordpiece_backend,
        "architecture": "BertFor",
        "types": 2,
        "positions": LENGTH,
        "pad": 0,
        "special": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    },
    "roberta": {
        "backend": byte_bpe_backend,
        "architecture": "RobertaFor",
        "types": 1,
        "positions": LENGTH + 2,
        "pad": 1,
        "special": {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"},
    },
}
HEADS = {"qa": ("QuestionAnswering", "qa_outputs", 2), "ner": ("TokenClassification", "classifier", len(NER_LABELS))}


def write_checkpoint(directory, family: str, head: str, *, seed: int = 0, **tokenizer_config):
    """Writes a checkpoint in the Hub's layout.

    Args:
        directory: made where it does not exist.
        family: ``"bert"`` or ``"roberta"``.
        head: ``"qa"`` or ``"ner"``.
        seed: of the weights.
        **tokenizer_config: keys of tokenizer_config.json.
    """
    from safetensors.numpy import save_file

    directory, made = Path(directory), _FAMILIES[family]
    directory.mkdir(parents=True, exist_ok=True)
    backend = made["backend"]()
    vocabulary = backend.get_vocab_size()
    name, layer, outputs = HEADS[head]
    shapes = _shapes(family, vocabulary, made["positions"], made["types"], layer, outputs)
    save_file(_weights(shapes, seed), directory / "model.safetensors", metadata={"format": "pt"})
    labels = {"id2label": dict(enumerate(NER_LABELS)), "label2id": {label: i for i, label in enumerate(NER_LABELS)}}
    config = {
        "model_type": family, "architectures": [made["architecture"] + name], "vocab_size": vocabulary,
        "hidden_size": _HIDDEN, "intermediate_size": _INNER, "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS, "max_position_embeddings": made["positions"],
        "type_vocab_size": made["types"], "pad_token_id": made["pad"], "torch_dtype": "float32", "layer_norm_eps": 1e-5,
        **(labels if head == "ner" else {}),
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    backend.save(str(directory / "tokenizer.json"))
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * (made["types"] > 1)
    special = {f"{kind}_token": token for kind, token in made["special"].items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LENGTH, "model_input_names": names, **special,
        **tokenizer_config,
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def _shapes(family: str, vocabulary: int, positions: int, types: int, layer: str, outputs: int) -> dict[str, tuple]:
    def dense(name: str, width_in: int, width_out: int) -> dict[str, tuple]:
        return {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}

    def norm(name: str) -> dict[str, tuple]:
        return {f"{name}.LayerNorm.weight": (_HIDDEN,), f"{name}.LayerNorm.bias": (_HIDDEN,)}

    tables = {"word_embeddings": vocabulary, "position_embeddings": positions, "token_type_embeddings": types}
    shapes = {f"{family}.embeddings.{table}.weight": (rows, _HIDDEN) for table, rows in tables.items()}
    shapes |= norm(f"{family}.embeddings")
    for number in range(_LAYERS):
        block = f"{family}.encoder.layer.{number}"
        for part in ("query", "key", "value"):
            shapes |= dense(f"{block}.attention.self.{part}", _HIDDEN, _HIDDEN)
        shapes |= dense(f"{block}.attention.output.dense", _HIDDEN, _HIDDEN) | norm(f"{block}.attention.output")
        shapes |= dense(f"{block}.intermediate.dense", _HIDDEN, _INNER)
        shapes |= dense(f"{block}.output.dense", _INNER, _HIDDEN) | norm(f"{block}.output")
    return shapes | dense(layer, _HIDDEN, outputs)


def _weights(shapes: dict[str, tuple], seed: int) -> dict[str, np.ndarray]:
    weights = {}
    for name in sorted(shapes):
        # A stream of its own for every weight, so that a vocabulary that grows changes no other.
        values = np.random.default_rng([seed, zlib.crc32(name.encode())]).normal(size=shapes[name])
        weights[name] = (values * _spread(name, shapes[name]) + name.endswith("LayerNorm.weight")).astype(np.float32)
    return weights


def _spread(name: str, shape: tuple) -> float:
    """Large for what tells tokens apart, so that labels and answers differ and near-ties are rare."""
    if len(shape) == 1:
        return 0.1
    if "embeddings" in name:
        return 1.0 if "word" in name else 0.3
    return (2.0 if "query" in name or "key" in name else 4.0 if "encoder" not in name else 1.0) / shape[1] ** 0.5
