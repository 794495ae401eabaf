"""From a checkpoint's vocabulary files to a ``tokenizers.Tokenizer``: one file here per kind of source.

A converter looks for its files and returns a `Converted`, or None where the checkpoint has none of them. A new
kind of source is a new file with a ``convert`` function and one more line in ``CONVERTERS``.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxpipe.tokenization.converters import byte_level_bpe, paired, sentencepiece, tokenizer_json, wordpiece
from jaxpipe.tokenization.converters.base import Converted

if TYPE_CHECKING:
    from jaxpipe.checkpoint.resolve import Checkpoint

Converter = Callable[["Checkpoint", dict[str, Any], str | None], Converted | None]

# Tried in this order: tokenizer.json says the most, bare vocabularies leave the rules to the tokenizer's class.
CONVERTERS: dict[str, Converter] = {
    "tokenizer.json": tokenizer_json.convert,
    "source.spm + target.spm + vocab.json": paired.convert_marian,
    "sentencepiece.bpe.model + vocab.json": paired.convert_m2m100,
    "*.model of SentencePiece": sentencepiece.convert,
    "vocab.json + merges.txt": byte_level_bpe.convert,
    "vocab.txt": wordpiece.convert,
}

__all__ = ["CONVERTERS", "Converted", "Converter"]
