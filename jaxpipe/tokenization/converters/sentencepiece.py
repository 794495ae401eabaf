"""SentencePiece models (``spiece.model``, ``tokenizer.model``, ...): unigram and BPE, by the rules of each class.

The vocabulary is the file's; in which order special tokens stand around it, and how text is cut, is the tokenizer
class's. What each does: ``tokenization_*.py`` of Transformers 5.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jaxpipe.common.errors import CheckpointError
from jaxpipe.tokenization import languages
from jaxpipe.tokenization.converters.base import Converted
from jaxpipe.tokenization.converters.sentencepiece_model import (
    CONTROL,
    UNIGRAM,
    USER_DEFINED,
    SentencePieceModel,
    read_model,
)
from jaxpipe.tokenization.families import BASE, family_of
from jaxpipe.tokenization.special_tokens import EXTRA

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

    from jaxpipe.checkpoint.resolve import Checkpoint

FILES = ("spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model")
SPACE = "\u2581"
MANY_SPACES = " {2,}"

Vocabulary = list[tuple[str, float]]


@dataclasses.dataclass
class Source:
    """A model file with the settings and the special tokens of its checkpoint."""

    model: SentencePieceModel
    config: Mapping[str, Any]
    tokens: dict[str, str]
    listed: "list[AddedToken | str]"

    @property
    def framed(self) -> Vocabulary:
        """The vocabulary in fairseq's order: four special tokens, then the pieces without their first three."""
        first = [(self.tokens[name], 0.0) for name in ("bos_token", "pad_token", "eos_token", "unk_token")]
        return first + self.model.scored[3:]

    def switch(self, name: str, default: bool) -> bool:
        """Returns a switch of tokenizer_config.json."""
        value = self.config.get(name)
        return default if value is None else bool(value)


def convert(checkpoint: "Checkpoint", config: dict[str, Any], model_type: str | None) -> Converted | None:
    """Builds the tokenizer of a SentencePiece model.

    Args:
        checkpoint: the files.
        config: keys of tokenizer_config.json; special tokens and the class's own switches are used.
        model_type: of config.json, or None.

    Raises:
        CheckpointError: the file is damaged, or lacks a token that encoding adds.
    """
    from tokenizers import AddedToken

    family = family_of(config.get("tokenizer_class"), model_type)
    path = next((found for name in FILES if (found := checkpoint.file(name))), None)
    if path is None or family.splitting is not None:
        return None
    model = read_model(path)
    if family.name not in BUILDERS:
        family = BASE
    tokens = {name: str(config.get(name) or default) for name, default in family.special_tokens.items()}
    if family is BASE:
        used = {name: token for name, (index, token) in model.special.items() if index >= 0 and name != "pad"}
        tokens = {f"{name}_token": str(config.get(f"{name}_token") or token) for name, token in used.items()}
    listed: list[AddedToken | str] = [
        AddedToken(piece.text, normalized=False, special=piece.kind == CONTROL)
        for piece in model.pieces
        if piece.kind in (CONTROL, USER_DEFINED)
    ]
    source = Source(model, config, tokens, listed)
    try:
        backend = BUILDERS[family.name](source)
    except CheckpointError:
        raise
    except Exception as error:  # The library raises bare Exceptions.
        raise CheckpointError(f"{path}: no tokenizer can be made of it as {family.name}: {error}") from error
    winning: dict[str, Any] = {}
    if not any(config.get(name) for name in EXTRA):
        winning[EXTRA[1]] = source.listed
    if family.mask_takes_space and not isinstance(config.get("mask_token"), AddedToken):
        # The mask stands for a word with the space before it.
        normalized = family.name == "NllbTokenizer"
        winning["mask_token"] = AddedToken(tokens["mask_token"], lstrip=True, normalized=normalized, special=True)
    return Converted(backend, family, tokens if family is BASE else {}, winning)


def merges_in_order(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Returns the pairs that make a token of the vocabulary; those of a lower id merge first.

    Args:
        vocab: token to id, in the order in which BPE found the tokens.
    """
    ranked = []
    for token, index in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                ranked.append((index, len(left), len(right), vocab[left], vocab[right], left, right))
    ranked.sort(key=lambda entry: entry[:5])
    return [(left, right) for *_, left, right in ranked]


def unigram(vocabulary: Vocabulary, unknown: int, **options: Any) -> "Backend":
    """Returns a unigram backend without any other step."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.Unigram(vocabulary, unk_id=unknown, **{"byte_fallback": False, **options}))


def bpe(vocab: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> "Backend":
    """Returns a BPE backend without any other step."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=True, **options))


def _indices(model: SentencePieceModel) -> dict[str, int]:
    return {piece.text: index for index, piece in enumerate(model.pieces)}


def _index(vocabulary: Vocabulary, token: str, default: int) -> int:
    return next((index for index, (text, _) in enumerate(vocabulary) if text == token), default)


def _normalize(backend: "Backend", *steps: Any) -> None:
    from tokenizers import normalizers

    kept = [step for step in steps if step is not None]
    backend.normalizer = kept[0] if len(kept) == 1 else normalizers.Sequence(kept) if kept else None


def charsmap(model: SentencePieceModel) -> Any:
    """Returns the normaliser of characters that a model file holds, or None.

    Raises:
        CheckpointError: it is damaged.
    """
    from tokenizers import normalizers

    try:
        return normalizers.Precompiled(model.charsmap) if model.charsmap else None
    except Exception as error:  # The library raises bare Exceptions.
        raise CheckpointError(f"{model.path}: its normalisation of characters is damaged: {error}") from error


def _one_space() -> Any:
    from tokenizers import Regex, normalizers

    return normalizers.Replace(Regex(MANY_SPACES), " ")


def _metaspace(backend: "Backend", scheme: str = "always", words: bool = False, *before: Any) -> None:
    """Marks words by the character that stands for a space; with ``words`` white space of any kind parts them."""
    from tokenizers import decoders, pre_tokenizers

    steps = [*before, *([pre_tokenizers.WhitespaceSplit()] if words else [])]
    last = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    backend.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme)


def _surround(backend: "Backend", source: Source, tokens: list[str], single: list[str], pair: list[str]) -> None:
    """Sets what is put around a text (``$A``) and a pair (``$A``, ``$B``), and which of it are tokens."""
    from tokenizers import processors

    used = []
    for token in tokens:
        index = backend.token_to_id(token)
        if index is None:
            raise CheckpointError(f"{source.model.path}: the token {token!r}, which encoding adds, is not in it.")
        used.append((token, index))
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)


def _bert_like(backend: "Backend", source: Source, cls: str, sep: str) -> None:
    pair = [f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"]
    _surround(backend, source, [cls, sep], pair[:3], pair)


def _roberta_like(backend: "Backend", source: Source) -> None:
    bos, eos = source.tokens["bos_token"], source.tokens["eos_token"]
    _surround(backend, source, [bos, eos], [bos, "$A", eos], [bos, "$A", eos, eos, "$B", eos])


def _t5(source: Source) -> "Backend":
    count = source.config.get("extra_ids")
    sentinels = [f"<extra_id_{index}>" for index in range(100 if count is None else int(count))]
    backend = unigram([*source.model.scored, *((token, 0.0) for token in reversed(sentinels))], 2)
    if not any("<extra_id_" in str(token) for token in source.listed):
        source.listed += sentinels
    _normalize(backend, charsmap(source.model))
    _metaspace(backend, words=True)
    _surround(backend, source, ["</s>"], ["$A", "</s>"], ["$A", "</s>", "$B", "</s>"])
    return backend


def _xlm_roberta(source: Source) -> "Backend":
    backend = unigram([*source.framed, (source.tokens["mask_token"], 0.0)], 3)
    _normalize(backend, charsmap(source.model))
    _metaspace(backend, "always" if source.switch("add_prefix_space", True) else "never", True)
    _roberta_like(backend, source)
    return backend


def _camembert(source: Source) -> "Backend":
    pad, unk, mask = (source.tokens[f"{name}_token"] for name in ("pad", "unk", "mask"))
    first = [("<s>NOTUSED", 0.0), (pad, 0.0), ("</s>NOTUSED", 0.0), (unk, 0.0), ("<unk>NOTUSED", -100.0)]
    vocabulary = [*first, *source.model.scored[1:], (mask, 0.0)]
    backend = unigram(vocabulary, _index(vocabulary, unk, 0))
    _normalize(backend, charsmap(source.model))
    _metaspace(backend, "always" if source.switch("add_prefix_space", True) else "never", True)
    _roberta_like(backend, source)
    return backend


def _albert(source: Source) -> "Backend":
    from tokenizers import normalizers

    backend = unigram(source.model.scored, 1)
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not source.switch("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if source.switch("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    _normalize(backend, *steps, charsmap(source.model))
    _metaspace(backend, "always" if source.switch("add_prefix_space", True) else "never", True)
    _bert_like(backend, source, "[CLS]", "[SEP]")
    return backend


def _deberta_v2(source: Source) -> "Backend":
    from tokenizers import Regex, normalizers, pre_tokenizers

    vocabulary, unk = source.model.scored, source.tokens["unk_token"]
    backend = unigram(vocabulary, _index(vocabulary, unk, source.model.special["unk"][0]))
    lower = normalizers.Lowercase() if source.switch("do_lower_case", False) else None
    spaces = normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " ")
    _normalize(backend, lower, spaces, normalizers.NFC(), normalizers.Strip(left=False, right=True))
    by_punctuation = [pre_tokenizers.Punctuation("isolated")] if source.switch("split_by_punct", False) else []
    _metaspace(backend, "always" if source.switch("add_prefix_space", True) else "first", False, *by_punctuation)
    _bert_like(backend, source, source.tokens["cls_token"], source.tokens["sep_token"])
    return backend


def _pegasus(source: Source) -> "Backend":
    from tokenizers import normalizers

    eos, unk = source.tokens["eos_token"], source.tokens["unk_token"]
    offset = int(source.config.get("offset") or 103)
    masks = [str(source.config.get("mask_token") or "<mask_1>")]
    masks.append(str(source.config.get("mask_token_sent") or "<mask_2>"))
    unused = [f"<unk_{index}>" for index in range(2, offset)]
    first = [source.tokens["pad_token"], eos, *dict.fromkeys(masks)]
    vocabulary = [(token, 0.0) for token in first] + [(token, -100.0) for token in unused] + source.model.scored[2:]
    backend = unigram(vocabulary, _index(vocabulary, unk, source.model.special["unk"][0]))
    source.listed[:] = [str(source.config.get("mask_token_sent") or "<mask_1>"), *unused]
    _normalize(backend, charsmap(source.model) or normalizers.Replace("\n", " "), _one_space())
    _metaspace(backend)
    _surround(backend, source, [eos], ["$A", eos], ["$A", "$B", eos])
    return backend


def _mbart(source: Source) -> "Backend":
    codes = [(code, 0.0) for code in languages.MBART]
    backend = unigram([*source.framed, *codes, (source.tokens["mask_token"], 0.0)], 3)
    source.listed[:0] = languages.MBART
    _metaspace(backend, words=True)
    return backend


def _mbart50(source: Source) -> "Backend":
    codes = [(code, 0.0) for code in languages.MBART50]
    tokens = {**source.tokens, "bos_token": source.tokens["cls_token"]}
    framed = dataclasses.replace(source, tokens=tokens).framed
    backend = unigram([*framed, *codes, (source.tokens["mask_token"], 0.0)], 3)
    source.listed += languages.MBART50
    _normalize(backend, charsmap(source.model), _one_space())
    _metaspace(backend)
    return backend


def _nllb(source: Source) -> "Backend":
    first = [source.tokens[name] for name in ("bos_token", "pad_token", "eos_token", "unk_token")]
    given = next((source.config[name] for name in EXTRA if source.config.get(name)), None)
    codes = list(map(str, given)) if isinstance(given, list) else languages.NLLB
    order = dict.fromkeys([*first, *(piece.text for piece in source.model.pieces)])
    merges = merges_in_order(_indices(source.model))
    backend = bpe({token: index for index, token in enumerate(order)}, merges, unk_token=source.tokens["unk_token"])
    # As in fairseq's dictionaries: the languages behind the pieces, and the mask behind them.
    backend.add_special_tokens([*codes, source.tokens["mask_token"]])
    source.listed[:] = codes
    if source.model.charsmap:
        _normalize(backend, charsmap(source.model), _one_space())
    _metaspace(backend)
    return backend


def _byte_decoder(strip: bool) -> Any:
    from tokenizers import decoders

    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if strip else steps)


def _llama(source: Source) -> "Backend":
    from tokenizers import pre_tokenizers

    vocab = _indices(source.model)
    backend = bpe(vocab, merges_in_order(vocab), byte_fallback=True)
    prefix = source.switch("add_prefix_space", True)
    scheme = ("always" if source.switch("legacy", False) else "first") if prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    backend.decoder = _byte_decoder(prefix)
    return backend


def _gemma(source: Source) -> "Backend":
    from tokenizers import normalizers, pre_tokenizers

    vocab = _indices(source.model)
    backend = bpe(vocab, merges_in_order(vocab), unk_token=source.tokens["unk_token"], byte_fallback=True)
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = _byte_decoder(False)
    return backend


def _general(source: Source) -> "Backend":
    """Of a class that has no rules of its own: what the file itself says."""
    from tokenizers import decoders, normalizers

    model = source.model
    if model.kind == UNIGRAM:
        backend = unigram(model.scored, model.special["unk"][0], byte_fallback=model.byte_fallback)
    else:
        vocab = _indices(model)
        merges = merges_in_order(vocab)
        # Placeholders of the file that the settings give another name.
        for index, token in (source.config.get("added_tokens_decoder") or {}).items():
            if 0 <= index < len(model.pieces) and str(token) not in vocab:
                vocab[str(token)] = vocab.pop(model.pieces[index].text)
        backend = bpe(vocab, merges, unk_token=model.special["unk"][1], byte_fallback=model.byte_fallback)
    steps = [charsmap(model), normalizers.Replace(" ", SPACE)]
    backend.normalizer = normalizers.Sequence([step for step in steps if step is not None])
    spaces = decoders.Sequence([decoders.Replace(SPACE, " ")])
    backend.decoder = _byte_decoder(False) if model.byte_fallback else spaces
    return backend


BUILDERS: dict[str, Callable[[Source], "Backend"]] = {
    BASE.name: _general,
    "T5Tokenizer": _t5,
    "XLMRobertaTokenizer": _xlm_roberta,
    "CamembertTokenizer": _camembert,
    "AlbertTokenizer": _albert,
    "DebertaV2Tokenizer": _deberta_v2,
    "PegasusTokenizer": _pegasus,
    "MBartTokenizer": _mbart,
    "MBart50Tokenizer": _mbart50,
    "NllbTokenizer": _nllb,
    "LlamaTokenizer": _llama,
    "GemmaTokenizer": _gemma,
}
