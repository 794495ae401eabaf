"""vocab.txt: WordPiece as in BERT, one token a line (https://arxiv.org/abs/1810.04805)."""

from typing import TYPE_CHECKING, Any

from jaxpipe.common.errors import CheckpointError
from jaxpipe.tokenization.converters.base import Converted, add_bert_processing
from jaxpipe.tokenization.families import FAMILIES, family_of
from jaxpipe.tokenization.settings import read_text

if TYPE_CHECKING:
    from jaxpipe.checkpoint.resolve import Checkpoint


def convert(checkpoint: "Checkpoint", config: dict[str, Any], model_type: str | None) -> Converted | None:
    """Builds the tokenizer of vocab.txt.

    Args:
        checkpoint: the files.
        config: keys of tokenizer_config.json; ``do_lower_case``, ``strip_accents``, ``tokenize_chinese_chars``,
            ``never_split`` and special tokens are used.
        model_type: of config.json, or None.

    Raises:
        CheckpointError: the vocabulary lacks a special token that encoding needs.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    path = checkpoint.file("vocab.txt")
    if path is None:
        return None
    family = family_of(config.get("tokenizer_class"), model_type)
    if family.splitting != "bert":
        family = FAMILIES["BertTokenizer"]
    tokens = {name: str(config.get(name) or default) for name, default in family.special_tokens.items()}
    # Only \n ends a line: other line separators of Unicode can be tokens.
    lines = read_text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
    vocab = {token: index for index, token in enumerate(lines)}
    for name in ("unk_token", "cls_token", "sep_token"):
        if tokens[name] not in vocab:
            raise CheckpointError(f"{path}: the {name} {tokens[name]!r} is not in it; is it a WordPiece vocabulary?")
    backend = Tokenizer(models.WordPiece(vocab, unk_token=tokens["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    add_bert_processing(backend, family, tokens["cls_token"], tokens["sep_token"])
    kept = [token for token in config.get("never_split") or () if token in vocab]
    backend.add_tokens([AddedToken(token, single_word=True, normalized=False) for token in kept])
    return Converted(backend, family)
