"""Makes the tiny checkpoints on which examples of docs/tasks.md run: ``python docs/tiny_checkpoints.py tiny``.

Their weights are random, so their answers mean nothing; they are there so that every example runs in a second, without
a network. One directory for each head of a model, in the layout of the Hub.
"""

import sys
from pathlib import Path
from typing import Any

TEXTS = [
    "my name is Wolfgang and I live in Berlin. where do I live?",
    "how many people live in Berlin? Berlin has millions of people, Paris has more.",
    "the capital of France is Paris, the capital of Germany is Berlin.",
    "what a lovely film, I like this film! it rains and the street is wet.",
    "who will be elected? this example is politics, cooking, sport, positive or negative.",
    "the cat sat on the mat and a dog ate. translate English to German: how old are you?",
    "an apple a day keeps the doctor away, and so does a long walk by the sea.",
]
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
ENTITIES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
# Directory -> (Auto class, names of the labels), all of them BERTs.
ENCODERS: dict[str, tuple[str, list[str]]] = {
    "fill-mask": ("AutoModelForMaskedLM", []),
    "classifier": ("AutoModelForSequenceClassification", ["NEGATIVE", "POSITIVE"]),
    "entailment": ("AutoModelForSequenceClassification", ["contradiction", "neutral", "entailment"]),
    "cross-encoder": ("AutoModelForSequenceClassification", ["relevance"]),
    "entities": ("AutoModelForTokenClassification", ENTITIES),
    "answers": ("AutoModelForQuestionAnswering", []),
}


def trained_tokenizer(special: dict[str, str], single: str, pair: str) -> Any:
    """A WordPiece tokenizer trained on `TEXTS`; ``single`` and ``pair`` are the templates of its post-processor."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    from jaxpipe.tokenization.tokenizer import Tokenizer

    names = list(special.values())
    backend = Backend(models.WordPiece(unk_token=special["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(TEXTS, trainers.WordPieceTrainer(special_tokens=names, show_progress=False))
    used = [(name, names.index(name)) for name in names if name in f"{single} {pair}"]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)
    return Tokenizer(backend, {**special, "model_max_length": 128})


def write_encoders(directory: Path) -> None:
    """Writes the BERTs."""
    import jaxpipe.auto
    from jaxpipe import AutoConfig

    special = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    tokenizer = trained_tokenizer(special, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    for name, (auto, labels) in ENCODERS.items():
        config = AutoConfig.for_model(
            "bert",
            **SIZES,
            vocab_size=len(tokenizer),
            max_position_embeddings=128,
            initializer_range=0.4,
            id2label=dict(enumerate(labels)) or None,
        )
        getattr(jaxpipe.auto, auto).from_config(config, dtype="float32", seed=1).save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)


def write_encoder_decoder(directory: Path) -> None:
    """Writes a T5."""
    from jaxpipe import AutoConfig, AutoModelForSeq2SeqLM

    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = trained_tokenizer(special, "$A </s>", "$A </s> $B </s>")
    config = AutoConfig.for_model(
        "t5", d_model=32, d_kv=16, d_ff=32, num_layers=2, num_heads=2, vocab_size=len(tokenizer), pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=False,
        task_specific_params={"translation_en_to_de": {"prefix": "translate English to German: "}},
    )  # fmt: skip
    AutoModelForSeq2SeqLM.from_config(config, dtype="float32", seed=1).save_pretrained(directory / "t5")
    tokenizer.save_pretrained(directory / "t5")


def write(directory: Path) -> None:
    """Writes all of them."""
    write_encoders(directory)
    write_encoder_decoder(directory)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
