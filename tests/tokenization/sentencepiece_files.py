"""Small SentencePiece models, trained when the tests start, as directories in the forms that checkpoints have."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from jaxpipe.tokenization.languages import M2M100
from tests.tokenization.conftest import CORPUS, TEXTS

BYTES = {"model_type": "bpe", "vocab_size": 700, "byte_fallback": True, "normalization_rule_name": "identity"}
BYTES |= {"remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True, "split_digits": True}
MODELS: dict[str, dict[str, Any]] = {
    "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "fairseq": {},
    "llama": BYTES,
    "gemma": {
        **BYTES, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "eos_piece": "<eos>", "bos_piece": "<bos>",
        "user_defined_symbols": ["<mask>", "<start_of_turn>", "\n", "\n\n"], "add_dummy_prefix": False,
    },
    "albert": {
        "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"],
        "user_defined_symbols": ["(", ")", "-"],
    },
    "deberta": {
        "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]", "bos_piece": "[CLS]",
        "eos_piece": "[SEP]", "unk_piece": "[UNK]",
    },
    "bpe": {"model_type": "bpe", "vocab_size": 600},
    "source": {"sentences": CORPUS[:60], "eos_id": 0, "unk_id": 1, "bos_id": -1, "vocab_size": 300},
    "target": {"sentences": CORPUS[40:], "eos_id": 0, "unk_id": 1, "bos_id": -1, "vocab_size": 300},
}  # fmt: skip
HARD = [
    "The <pad> naïve, 日本語 🙂  x</s>", "<extra_id_0> fill <extra_id_1>", "<mask> a <mask>.", ">>fr<< Hello world",
    "a\tb\nc   d ", "Ｆｕｌｌ ｗｉｄｔｈ ﬁ ½ №", "\u200bzero ௵ க 𓀀𓀁 x𓀀", "fr_XX __en__ eng_Latn [MASK] [SEP]",
    "１２３ 12345 ''quoted`` -- (x)",
]  # fmt: skip


def texts() -> list[str]:
    """Texts of many scripts, and some that hold special tokens, odd spaces and characters that no model knows."""
    return TEXTS + HARD


def train(folder: Path) -> dict[str, Path]:
    """Trains every model."""
    with warnings.catch_warnings():
        # Wrapped modules warn of themselves on newer Pythons.
        warnings.simplefilter("ignore")
        import sentencepiece

    for name, options in MODELS.items():
        given = {"vocab_size": 400, "hard_vocab_limit": False, "minloglevel": 2, **options}
        sentences = given.pop("sentences", CORPUS)
        sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
            sentence_iterator=iter(sentences), model_prefix=str(folder / name), **given
        )
    return {name: folder / f"{name}.model" for name in MODELS}


def processor(path: Path) -> Any:
    """Returns SentencePiece's own reader of a model."""
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(path))  # type: ignore[attr-defined]


def pieces(path: Path) -> list[str]:
    """Returns the vocabulary of a model."""
    model = processor(path)
    return [model.id_to_piece(index) for index in range(model.get_piece_size())]


def write(folder: Path, copies: dict[str, Path], **files: Any) -> Path:
    """Writes a directory of copies and of JSON files."""
    folder.mkdir()
    for name, path in copies.items():
        shutil.copy(path, folder / name)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def directories(root: Path, models: dict[str, Path]) -> dict[str, Path]:
    """Writes a directory of every form; returns them by name."""
    spm = {"sentencepiece.bpe.model": models["fairseq"]}
    t5 = {"spiece.model": models["t5"]}
    pegasus = {"mask_token": "<mask_2>", "mask_token_sent": "<mask_1>", "model_max_length": 512, "offset": 103}
    mask = {"mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "normalized": False}}
    both = [*pieces(models["source"])[2:-20], *pieces(models["target"])[2:]]
    marian = ["</s>", "<unk>", *sorted(set(both)), ">>fr<<", ">>de<<", "<pad>"]
    apart = {name: ["</s>", "<unk>", *pieces(models[name])[2:], "<pad>"] for name in ("source", "target")}
    pair = {"source.spm": models["source"], "target.spm": models["target"]}
    m2m100 = ["<s>", "<pad>", "</s>", "<unk>", *pieces(models["fairseq"])[3:]]
    forms: dict[str, tuple[dict[str, Path], str, dict[str, Any]]] = {
        "t5": (t5, "t5", {}),
        "t5_few": (
            t5, "t5",
            {"extra_ids": 3, "extra_special_tokens": ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"],
             "model_max_length": 50},
        ),
        "mt5": (t5, "mt5", {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": None}),
        "xlm_roberta": (spm, "xlm-roberta", {"model_max_length": 512, **mask}),
        "xlm_roberta_bare": (spm, "xlm-roberta", {}),
        "camembert": (spm, "camembert", {}),
        "llama": ({"tokenizer.model": models["llama"]}, "llama", {}),
        "llama_legacy": (
            {"tokenizer.model": models["llama"]}, "llama",
            {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": True},
        ),
        "llama_new": (
            {"tokenizer.model": models["llama"]}, "llama",
            {"tokenizer_class": "LlamaTokenizer", "add_eos_token": True, "legacy": False, "pad_token": "<pad>"},
        ),
        "mistral": (
            {"tokenizer.model": models["llama"]}, "mistral",
            {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True},
        ),
        "gemma": ({"tokenizer.model": models["gemma"]}, "gemma", {"add_bos_token": True}),
        "albert": ({"spiece.model": models["albert"]}, "albert", {}),
        "albert_cased": (
            {"spiece.model": models["albert"]}, "albert", {"do_lower_case": False, "keep_accents": True}
        ),
        "deberta": ({"spm.model": models["deberta"]}, "deberta-v2", {}),
        "deberta_lower": (
            {"spm.model": models["deberta"]}, "deberta-v2", {"do_lower_case": True, "split_by_punct": True}
        ),
        "pegasus": (t5, "pegasus", pegasus),
        "mbart": (spm, "mbart", {"src_lang": "de_DE", "tgt_lang": "ro_RO"}),
        "mbart50": (spm, "mbart", {"tokenizer_class": "MBart50Tokenizer", "src_lang": "fr_XX", "tgt_lang": "de_DE"}),
        "nllb": ({"sentencepiece.bpe.model": models["bpe"]}, "m2m_100", {"tokenizer_class": "NllbTokenizer"}),
        "m2m100": (
            spm, "m2m_100",
            {
                "tokenizer_class": "M2M100Tokenizer", "src_lang": "de", "tgt_lang": "fr",
                "additional_special_tokens": [f"__{code}__" for code in M2M100],
            },
        ),
        "marian": (pair, "marian", {"source_lang": "en", "target_lang": "de"}),
        "marian_apart": (pair, "marian", {"separate_vocabs": True}),
    }  # fmt: skip
    vocabularies = {"m2m100": m2m100, "marian": marian, "marian_apart": apart["source"]}
    written = {}
    for name, (copies, model_type, config) in forms.items():
        files: dict[str, Any] = {"config": {"model_type": model_type}}
        if config:
            files["tokenizer_config"] = config
        if name in vocabularies:
            files["vocab"] = {token: index for index, token in enumerate(dict.fromkeys(vocabularies[name]))}
        if name == "marian_apart":
            files["target_vocab"] = {token: index for index, token in enumerate(apart["target"])}
        written[name] = write(root / name, copies, **files)
    return written
