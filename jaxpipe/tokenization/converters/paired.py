"""SentencePiece models beside a vocabulary that gives their pieces other ids: Marian (a pair of models) and M2M100."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpipe.common.errors import CheckpointError
from jaxpipe.tokenization import languages
from jaxpipe.tokenization.converters.base import Converted
from jaxpipe.tokenization.converters.sentencepiece import MANY_SPACES, SPACE, bpe, charsmap, merges_in_order, unigram
from jaxpipe.tokenization.converters.sentencepiece_model import CONTROL, UNIGRAM, SentencePieceModel, read_model
from jaxpipe.tokenization.families import family_of
from jaxpipe.tokenization.paired import M2M100Tokenizer, PairedTokenizer
from jaxpipe.tokenization.special_tokens import EXTRA

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

    from jaxpipe.checkpoint.resolve import Checkpoint

UNKNOWN = 2
M2M100_FILES = ("sentencepiece.bpe.model", "vocab.json")


def convert_marian(checkpoint: "Checkpoint", config: dict[str, Any], model_type: str | None) -> Converted | None:
    """Builds the tokenizer of Marian's source.spm, target.spm and vocab.json.

    Args:
        checkpoint: the files.
        config: keys of tokenizer_config.json; ``separate_vocabs`` asks for target_vocab.json too.
        model_type: of config.json, or None.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    from tokenizers import AddedToken

    family = family_of(config.get("tokenizer_class"), model_type)
    names = ["source.spm", "target.spm", "vocab.json"]
    if family.name != "MarianTokenizer":
        return None
    if config.get("separate_vocabs"):
        names.append("target_vocab.json")
    files = [checkpoint.file(name) for name in names]
    if missing := [name for name, file in zip(names, files, strict=True) if file is None]:
        wanted = ", ".join(names)
        raise CheckpointError(f"{checkpoint.name}: a Marian tokenizer needs {wanted}; {missing[0]} is missing.")
    found = [file for file in files if file is not None]
    unknown = str(config.get("unk_token") or "<unk>")
    vocabularies = [_vocabulary(checkpoint, name, unknown) for name in names[2:]]
    source, target = (_read_splitter(file) for file in found[:2])
    # Codes of target languages, such as >>fr<<, stand before a text.
    codes = [token for token in vocabularies[0] if token.startswith(">>") and token.endswith("<<")]
    for backend in (source, target):
        backend.add_tokens([AddedToken(code, normalized=False) for code in codes])
    make = functools.partial(
        PairedTokenizer,
        source=source,
        target=target,
        target_backend=_word_level(vocabularies[-1], unknown) if len(vocabularies) > 1 else None,
        space_after_special=True,
        files=found,
    )
    settings = {"model_max_length": 512}
    return Converted(_word_level(vocabularies[0], unknown), family, settings, make=make)


def convert_m2m100(checkpoint: "Checkpoint", config: dict[str, Any], model_type: str | None) -> Converted | None:
    """Builds the tokenizer of M2M100's sentencepiece.bpe.model and vocab.json.

    Args:
        checkpoint: the files.
        config: keys of tokenizer_config.json; ``language_codes`` is "m2m100" or "wmt21".
        model_type: of config.json, or None.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    from tokenizers import AddedToken

    family = family_of(config.get("tokenizer_class"), model_type)
    if family.name != "M2M100Tokenizer":
        return None
    files = [checkpoint.file(name) for name in M2M100_FILES]
    if missing := [name for name, file in zip(M2M100_FILES, files, strict=True) if file is None]:
        raise CheckpointError(
            f"{checkpoint.name}: an M2M100 tokenizer needs {' and '.join(M2M100_FILES)}; {missing[0]} is missing."
        )
    found = [file for file in files if file is not None]
    kinds = {"m2m100": languages.M2M100, "wmt21": languages.WMT21}
    kind = config.get("language_codes") or "m2m100"
    if kind not in kinds:
        raise CheckpointError(f"{checkpoint.name}: language_codes is {kind!r}; known are {', '.join(kinds)}.")
    unknown = str(config.get("unk_token") or "<unk>")
    backend = _word_level(_vocabulary(checkpoint, "vocab.json", unknown), unknown)
    codes = [AddedToken(f"__{code}__", normalized=False, special=True) for code in kinds[kind]]
    backend.add_tokens(codes)
    make = functools.partial(M2M100Tokenizer, source=_read_splitter(found[0]), files=found)
    winning = {} if any(config.get(name) for name in EXTRA) else {EXTRA[1]: codes}
    return Converted(backend, family, {}, winning, make)


def _vocabulary(checkpoint: "Checkpoint", name: str, unknown: str) -> dict[str, int]:
    vocab = checkpoint.read_json(name) or {}
    if wrong := next((item for item in vocab.items() if type(item[1]) is not int or item[1] < 0), None):
        raise CheckpointError(f"{checkpoint.name}: {name}: the id of {wrong[0]!r} is {wrong[1]!r}, not an id.")
    if unknown not in vocab:
        raise CheckpointError(f"{checkpoint.name}: {name} lacks the unknown token {unknown!r}.")
    return vocab


def _word_level(vocab: dict[str, int], unknown: str) -> "Backend":
    """A backend that splits nothing and gives whole tokens their ids."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel(vocab, unk_token=unknown))


def _read_splitter(path: Path) -> "Backend":
    model = read_model(path)
    try:
        return _splitter(model)
    except CheckpointError:
        raise
    except Exception as error:  # The library raises bare Exceptions.
        raise CheckpointError(f"{path}: no tokenizer can be made of it: {error}") from error


def _splitter(model: SentencePieceModel) -> "Backend":
    """A backend that splits text as SentencePiece itself does with a model."""
    from tokenizers import Regex, normalizers

    # Control tokens and the unknown one are never found in text; no text has this character.
    pieces = [
        (f"\0{piece.text}" if piece.kind in (UNKNOWN, CONTROL) else piece.text, piece.score) for piece in model.pieces
    ]
    unknown = model.special["unk"][0]
    if model.kind == UNIGRAM:
        backend = unigram(pieces, unknown, byte_fallback=model.byte_fallback)
    else:
        vocab = {token: index for index, (token, _) in enumerate(pieces)}
        backend = bpe(vocab, merges_in_order(vocab), unk_token=pieces[unknown][0], byte_fallback=model.byte_fallback)
    steps: list[Any] = [charsmap(model)] if model.charsmap else []
    if model.collapses_spaces:
        steps += [normalizers.Replace(Regex(MANY_SPACES), " "), normalizers.Strip()]
    if model.adds_space:
        steps.append(normalizers.Prepend(SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    return backend
