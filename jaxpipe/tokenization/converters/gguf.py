"""GGUF vocabularies: byte-level BPE ("gpt2"), SentencePiece-like BPE ("llama") and unigrams ("t5").

Keys and pre-tokenizer names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's
``llama-vocab.cpp``.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpipe.common.errors import CheckpointError
from jaxpipe.tokenization.converters.base import LLAMA3, QWEN2, Converted, byte_alphabet, split_by
from jaxpipe.tokenization.families import BASE, FAMILIES

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

CONTROL, USER_DEFINED = 3, 4
T5 = FAMILIES["T5Tokenizer"]
SENTINELS = 100
SPECIAL_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # as the format spells it
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
GPT2_LIKE = ("default", "gpt-2", "mpt", "olmo", "phi-2", "jina-es", "jina-de", "roberta-bpe", "gigachat", "jais")
DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
LLAMA3_LIKE = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2", "midm-2.0")
LLAMA3_SPLIT_ONLY = ("dbrx", "smaug-bpe")
QWEN2_LIKE = ("qwen2", "deepseek-r1-qwen", "megrez", "kormo")
# Of these the tokenizer.json composes characters first.
COMPOSED = ("qwen2", "deepseek-r1-qwen")
FALCON = "falcon"
THREE_DIGITS = "[0-9][0-9][0-9]"
KNOWN_PRE = (FALCON, *GPT2_LIKE, *DIGITS_APART, *LLAMA3_LIKE, *LLAMA3_SPLIT_ONLY, *QWEN2_LIKE)
SPACE = "\u2581"


def convert(vocabulary: dict[str, Any], path: Path) -> Converted:
    """Builds the tokenizer of a GGUF file's metadata.

    Args:
        vocabulary: the ``tokenizer.ggml.*`` keys without their prefix.
        path: the file, for errors.

    Raises:
        CheckpointError: the vocabulary is of a kind that is not supported, or incomplete.
    """
    kinds = {"gpt2": _byte_level, "llama": _sentencepiece, "t5": _unigram}
    kind = vocabulary.get("model")
    if kind not in kinds:
        raise CheckpointError(
            f"{path}: tokenizer.ggml.model is {kind!r}; supported are {', '.join(kinds)}. "
            "Pass the tokenizer of the original repository instead."
        )
    if not vocabulary.get("tokens"):
        raise CheckpointError(f"{path}: tokenizer.ggml.tokens is missing or empty.")
    if kind == "t5":
        vocabulary = _with_sentinels(vocabulary)
    settings = _settings(vocabulary, path)
    backend = kinds[kind](vocabulary, path)
    _mark_tokens(backend, vocabulary)
    return Converted(backend, T5 if kind == "t5" else BASE, settings)


def _settings(vocabulary: dict[str, Any], path: Path) -> dict[str, Any]:
    tokens = vocabulary["tokens"]
    settings: dict[str, Any] = {}
    for name, key in SPECIAL_IDS.items():
        index = vocabulary.get(key)
        if index is None:
            continue
        if not 0 <= index < len(tokens):
            raise CheckpointError(f"{path}: tokenizer.ggml.{key} is {index}, but there are {len(tokens)} tokens.")
        settings[name] = tokens[index]
    templates = dict(vocabulary.get("chat_templates") or {})
    if vocabulary.get("chat_template"):
        templates["default"] = vocabulary["chat_template"]
    if templates:
        settings["chat_template"] = templates
    # Files older than the flags rely on llama.cpp's defaults: these two kinds open with the BOS token.
    opens = vocabulary.get("model") == "llama" or vocabulary.get("pre") in LLAMA3_LIKE
    settings["add_bos_token"] = bool(vocabulary.get("add_bos_token", opens)) and "bos_token" in settings
    closes = vocabulary.get("model") == "t5"
    settings["add_eos_token"] = bool(vocabulary.get("add_eos_token", closes)) and "eos_token" in settings
    return settings


def _byte_level(vocabulary: dict[str, Any], path: Path) -> "Backend":
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = vocabulary.get("pre") or "default"
    if pre not in KNOWN_PRE:
        raise CheckpointError(
            f"{path}: tokenizer.ggml.pre is {pre!r}, whose splitting rules are not known; known are "
            f"{', '.join(KNOWN_PRE)}. Pass the tokenizer of the original repository instead."
        )
    spelling = byte_alphabet()
    alphabet = set(spelling.values())
    vocab = {
        token if set(token) <= alphabet else "".join(spelling[byte] for byte in token.encode()): index
        for index, token in enumerate(vocabulary["tokens"])
    }
    merges = [_pair(merge, path) for merge in vocabulary.get("merges") or ()]
    try:
        backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in LLAMA3_LIKE))
    except Exception as error:  # The library raises bare Exceptions.
        raise CheckpointError(f"{path}: tokenizer.ggml.merges do not fit the tokens: {error}") from error
    if pre in (*LLAMA3_LIKE, *LLAMA3_SPLIT_ONLY):
        backend.pre_tokenizer = split_by(LLAMA3)
    elif pre in QWEN2_LIKE:
        if pre in COMPOSED:
            backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = split_by(QWEN2)
    elif pre == FALCON:  # as in the model's tokenizer.json
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Punctuation("contiguous"),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
                pre_tokenizers.Digits(individual_digits=False),
                pre_tokenizers.Split(Regex(THREE_DIGITS), "isolated"),
            ]
        )
    else:
        steps = [pre_tokenizers.Digits(individual_digits=True)] if pre in DIGITS_APART else []
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level]) if steps else byte_level
    backend.decoder = decoders.ByteLevel()
    return backend


def _pair(merge: str, path: Path) -> tuple[str, str]:
    # A token may itself hold a space, so the pair is cut at the first one after its first character.
    cut = merge.find(" ", 1)
    if cut < 0 or cut == len(merge) - 1:
        raise CheckpointError(f"{path}: tokenizer.ggml.merges holds {merge!r}, which is not two tokens.")
    return merge[:cut], merge[cut + 1 :]


def _sentencepiece(vocabulary: dict[str, Any], path: Path) -> "Backend":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = vocabulary["tokens"]
    vocab = {token: index for index, token in enumerate(tokens)}
    if vocabulary.get("merges"):
        merges = [_pair(merge, path) for merge in vocabulary["merges"]]
    else:
        merges = merges_from_scores(vocab, _scores(vocabulary, path))
    unknown = vocabulary.get("unknown_token_id")
    backend = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(vocabulary.get("add_space_prefix", True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=SPACE, prepend_scheme="first" if prefix else "never", split=False
    )
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefix else steps)
    return backend


def _with_sentinels(vocabulary: dict[str, Any]) -> dict[str, Any]:
    """Gives T5's tokens for blanks their names back: they are no pieces, so converters write them as padding."""
    tokens: list[str] = list(vocabulary["tokens"])
    types: list[int] = list(vocabulary.get("token_type") or ())
    padding = [index for index, token in enumerate(tokens) if token == f"[PAD{index}]"]
    for number, index in enumerate(padding[:SENTINELS]):
        tokens[index] = f"<extra_id_{SENTINELS - 1 - number}>"
        if index < len(types):
            types[index] = CONTROL
    return {**vocabulary, "tokens": tokens, "token_type": types}


def _unigram(vocabulary: dict[str, Any], path: Path) -> "Backend":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokens = vocabulary["tokens"]
    scores = _scores(vocabulary, path)
    unknown = vocabulary.get("unknown_token_id", 2)
    charsmap = vocabulary.get("precompiled_charsmap")
    try:
        backend = Tokenizer(models.Unigram(list(zip(tokens, scores, strict=True)), unk_id=unknown, byte_fallback=False))
        if charsmap:
            backend.normalizer = normalizers.Precompiled(np.asarray(charsmap).astype(np.uint8).tobytes())
    except Exception as error:  # The library raises bare Exceptions.
        raise CheckpointError(f"{path}: no tokenizer can be made of tokenizer.ggml.tokens: {error}") from error
    scheme = "always" if vocabulary.get("add_space_prefix", True) else "never"
    space = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    apart = vocabulary.get("remove_extra_whitespaces", True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space]) if apart else space
    backend.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    return backend


def _scores(vocabulary: dict[str, Any], path: Path) -> list[float]:
    tokens, scores = vocabulary["tokens"], vocabulary.get("scores")
    if scores is None or len(scores) != len(tokens):
        raise CheckpointError(
            f"{path}: tokenizer.ggml.scores has {len(scores or ())} values for {len(tokens)} tokens, "
            "and they are needed."
        )
    return scores


def merges_from_scores(vocab: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Returns merges that rank pairs as SentencePiece BPE does: by the score of the token that they make.

    Args:
        vocab: token to id.
        scores: of each id; higher merges first.
    """
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, index in vocab.items():
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
        pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        ranked += [(scores[index], len(left), len(right), left, right) for left, right in pairs]
    # The sort is stable, so that equal scores and lengths keep the order of the vocabulary.
    ranked.sort(key=lambda entry: entry[:3], reverse=True)
    return [(left, right) for _, _, _, left, right in ranked]


def _mark_tokens(backend: "Backend", vocabulary: dict[str, Any]) -> None:
    """Keeps control tokens whole and special, and user-defined tokens whole."""
    from tokenizers import AddedToken

    tokens, types = vocabulary["tokens"], vocabulary.get("token_type") or ()
    special, plain = [], []
    for token, kind in zip(tokens, types, strict=False):
        # In a byte-level vocabulary a token of other characters is spelled anew, and is no longer this one.
        if backend.token_to_id(token) is None:
            continue
        if kind == CONTROL:
            special.append(AddedToken(token, normalized=False, special=True))
        elif kind == USER_DEFINED:
            plain.append(AddedToken(token, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(plain)
