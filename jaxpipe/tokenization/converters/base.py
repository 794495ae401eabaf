"""What a converter returns, and the splitting rules that several of them share."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxpipe.tokenization.families import Family

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from tokenizers import pre_tokenizers

    from jaxpipe.tokenization.tokenizer import Tokenizer

# Rules by which byte-level vocabularies were trained: text is cut by the pattern, then pairs merge inside a piece.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclasses.dataclass
class Converted:
    """A backend and the traits of its class, with keys of tokenizer_config.json.

    Attributes:
        backend: splits and joins text.
        family: traits of the class.
        settings: keys that the source implies where the config lacks them.
        winning: keys that take the place of the config's.
        make: makes the tokenizer where that is no plain one; takes the arguments of ``Tokenizer``.
    """

    backend: "Backend"
    family: Family
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    winning: dict[str, Any] = dataclasses.field(default_factory=dict)
    make: "Callable[..., Tokenizer] | None" = None


def split_by(pattern: str) -> "pre_tokenizers.PreTokenizer":
    """Returns the pre-tokenizer that cuts text by a pattern and spells the pieces in bytes."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def byte_alphabet() -> dict[int, str]:
    """Returns the printable character that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(256 + place) for place, byte in enumerate(others)}


def add_bert_processing(backend: "Backend", family: Family, cls: str, sep: str) -> None:
    """Makes encoding put ``cls`` and ``sep`` around texts as BERT does, or as MPNet does for its family.

    Args:
        backend: the tokenizer, whose vocabulary has both tokens.
        family: traits of the class.
        cls: the token that opens a row.
        sep: the token that ends each text.
    """
    from tokenizers import processors

    vocab = backend.get_vocab()
    if family.name == "MPNetTokenizer":
        backend.post_processor = processors.RobertaProcessing((sep, vocab[sep]), (cls, vocab[cls]), True, False)
        return
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
