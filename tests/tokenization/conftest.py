"""Small tokenizers, trained when the tests start, as directories in the forms that checkpoints have."""

import json
from pathlib import Path

import pytest

TEXTS = [
    "Hello, world! This is a test of the tokenizer's splitting.",
    "The quick brown fox jumps over 13 lazy dogs; it's 2024-11-22, isn't it?",
    "  two  spaces,\ttabs\nand\n\nnewlines  ",
    "Ünïcödé: naïve café, Straße, ﬁne ½ — “quotes” … ①",
    "日本語のテキスト、中文文本，한국어 텍스트",
    "emoji 🙂👩‍👩‍👧‍👦🇫🇷 and zero​width",
    "Привет, мир! مرحبا بالعالم שלום",
    "def f(x):\n    return x ** 2  # comment",
    "e\u0301 decomposed, UPPER lower MiXeD",
    "don't can't we'll they've I'm he'd",
    "x",
    "",
]
CORPUS = [text for text in TEXTS if text] * 8 + [
    "The tokenizer learns pairs of letters that stand together often, and the words of this sentence too.",
    "A model reads ids; a tokenizer reads text. Both were trained on the same words, over and over again.",
] * 10

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def chatml() -> str:
    return CHATML


def write(directory: Path, **files: object) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = directory / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def write_files():
    return write


@pytest.fixture(scope="session")
def wordpiece():
    """A trained WordPiece backend, lower-cased."""
    from tokenizers import BertWordPieceTokenizer

    trainer = BertWordPieceTokenizer()
    trainer.train_from_iterator(CORPUS, vocab_size=320, show_progress=False, min_frequency=1)
    return trainer._tokenizer


@pytest.fixture(scope="session")
def byte_level():
    """A trained byte-level BPE backend with <|endoftext|>."""
    from tokenizers import ByteLevelBPETokenizer

    trainer = ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer.train_from_iterator(CORPUS, vocab_size=500, show_progress=False, special_tokens=special)
    return trainer._tokenizer


@pytest.fixture(scope="session")
def vocab_and_merges(byte_level) -> tuple[dict, list]:
    model = json.loads(byte_level.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


@pytest.fixture(scope="session")
def metaspace_bpe():
    """A trained SentencePiece-like BPE backend with byte fallback."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    special = ["<unk>", "<s>", "</s>"]
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=620, special_tokens=special + bytes_, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(state))


@pytest.fixture(scope="session")
def unigram():
    """A trained Unigram backend with Metaspace, as T5 has it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", backend.token_to_id("</s>"))]
    )
    return backend


@pytest.fixture(scope="session")
def bert_v4(tmp_path_factory, wordpiece) -> Path:
    """BERT as Transformers 4 wrote it: added_tokens_decoder, special_tokens_map.json, saved padding."""
    names = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    state = json.loads(wordpiece.to_str())
    state["padding"] = {
        "strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    state["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    decoder = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in state["added_tokens"]
    }
    config = {f"{name}_token": token for name, token in names.items()}
    config |= {"added_tokens_decoder": decoder, "do_lower_case": True, "model_max_length": 24}
    config |= {"tokenizer_class": "BertTokenizer", "clean_up_tokenization_spaces": True, "strip_accents": None}
    return write(
        tmp_path_factory.mktemp("bert_v4"),
        tokenizer__json=state,
        tokenizer_config__json=config,
        special_tokens_map__json={f"{name}_token": token for name, token in names.items()},
        config__json={"model_type": "bert"},
    )


@pytest.fixture(scope="session")
def gpt2_v5(tmp_path_factory, byte_level) -> Path:
    """Byte-level BPE in the dialect of Transformers 5, with a chat template."""
    config = {
        "tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "model_max_length": 64,
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }  # fmt: skip
    return write(
        tmp_path_factory.mktemp("gpt2_v5"),
        tokenizer__json=byte_level.to_str(),
        tokenizer_config__json=config,
        chat_template__jinja=CHATML,
        config__json={"model_type": "llama"},
    )


@pytest.fixture(scope="session")
def directories(tmp_path_factory, bert_v4, gpt2_v5, metaspace_bpe, unigram, wordpiece, vocab_and_merges):
    """Name to directory, of every form of checkpoint that the parity tests compare."""
    root = tmp_path_factory.mktemp("tokenizers")
    vocab, merges = vocab_and_merges
    pairs = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n"
    words = sorted(wordpiece.get_vocab(), key=wordpiece.get_vocab().__getitem__)
    roberta_vocab = dict(vocab)
    for token in ("<s>", "</s>", "<pad>", "<unk>", "<mask>"):
        roberta_vocab[token] = len(roberta_vocab)
    gpt2 = {"vocab__json": vocab, "merges__txt": pairs}
    lines = "\n".join(words) + "\n"
    cased = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "tokenize_chinese_chars": False}
    roberta = {"vocab__json": roberta_vocab, "merges__txt": pairs, "config__json": {"model_type": "roberta"}}
    llama = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    llama |= {"unk_token": "<unk>", "padding_side": "left", "truncation_side": "left"}
    t5 = {"tokenizer_class": "TokenizersBackend", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    qwen2 = {"tokenizer_class": "Qwen2Tokenizer"}
    return {
        "bert_v4": bert_v4,
        "gpt2_v5": gpt2_v5,
        "bert_vocab": write(root / "bert_vocab", vocab__txt=lines, config__json={"model_type": "bert"}),
        "bert_cased": write(
            root / "bert_cased", vocab__txt=lines, tokenizer_config__json=cased, config__json={"model_type": "bert"}
        ),
        "gpt2_files": write(root / "gpt2_files", **gpt2, config__json={"model_type": "gpt2"}),
        "gpt2_prefix": write(
            root / "gpt2_prefix",
            **gpt2,
            tokenizer_config__json={
                "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "add_bos_token": True,
                "pad_token": "<|endoftext|>", "model_max_length": 32,
            },
            config__json={"model_type": "gpt2"},
        ),
        "roberta_files": write(root / "roberta_files", **roberta),
        "roberta_offsets": write(
            root / "roberta_offsets",
            **roberta,
            tokenizer_config__json={
                "tokenizer_class": "RobertaTokenizer", "add_prefix_space": True, "trim_offsets": False,
                "mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "normalized": False},
            },
        ),
        "qwen2_files": write(
            root / "qwen2_files", **gpt2, tokenizer_config__json=qwen2, config__json={"model_type": "qwen2"}
        ),
        "llama_json": write(
            root / "llama_json",
            tokenizer__json=metaspace_bpe.to_str(),
            tokenizer_config__json=llama,
            config__json={"model_type": "mistral"},
        ),
        "t5_json": write(
            root / "t5_json",
            tokenizer__json=unigram.to_str(),
            tokenizer_config__json=t5,
            config__json={"model_type": "umt5"},
        ),
    }  # fmt: skip
