"""vocab.json and merges.txt: byte-level BPE as in GPT-2, RoBERTa and Qwen2."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpipe.common.errors import CheckpointError
from jaxpipe.tokenization.converters.base import QWEN2, Converted, split_by
from jaxpipe.tokenization.families import FAMILIES, Family, family_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

    from jaxpipe.checkpoint.resolve import Checkpoint


def convert(checkpoint: "Checkpoint", config: dict[str, Any], model_type: str | None) -> Converted | None:
    """Builds the tokenizer of vocab.json and merges.txt; its class tells the splitting, GPT-2's by default.

    Args:
        checkpoint: the files.
        config: keys of tokenizer_config.json; ``add_prefix_space``, ``trim_offsets`` and special tokens are used.
        model_type: of config.json, or None.

    Raises:
        CheckpointError: a file is damaged, or merges.txt is missing.
    """
    vocab = checkpoint.read_json("vocab.json")
    if vocab is None:
        return None
    merges = checkpoint.file("merges.txt")
    if merges is None:
        raise CheckpointError(f"{checkpoint.name}: has vocab.json but no merges.txt (and no tokenizer.json).")
    family = family_of(config.get("tokenizer_class"), model_type)
    if family.splitting not in ("gpt2", "roberta", "qwen2"):
        family = FAMILIES["GPT2Tokenizer"]
    if wrong := next((item for item in vocab.items() if not isinstance(item[1], int)), None):
        raise CheckpointError(f"{checkpoint.name}: vocab.json: the id of {wrong[0]!r} is {wrong[1]!r}, not an int.")
    backend = build(vocab, read_merges(merges), family, bool(config.get("add_prefix_space")), str(merges))
    if family.splitting == "roberta":
        _add_roberta_processing(backend, family, config)
    return Converted(backend, family)


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Returns the pairs of a merges.txt, in the order in which they merge.

    Raises:
        CheckpointError: a line is not two tokens.
    """
    pairs = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            if not line.strip() or (number == 1 and line.startswith("#version")):
                continue
            pair = line.split(" ")
            if len(pair) != 2:
                raise CheckpointError(f"{path}, line {number}: {line!r} is not two tokens with a space between.")
            pairs.append((pair[0], pair[1]))
    return pairs


def build(
    vocab: dict[str, int], merges: list[tuple[str, str]], family: Family, add_prefix_space: bool, where: str
) -> "Backend":
    """Returns a byte-level BPE tokenizer without post-processor.

    Args:
        vocab: token to id.
        merges: pairs, first to merge first.
        family: whose splitting rules to use.
        add_prefix_space: put a space before the text, as GPT-2's family may want.
        where: the file that an error names.

    Raises:
        CheckpointError: a merge makes a token that the vocabulary lacks.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False))
    except Exception as error:  # The library raises bare Exceptions.
        raise CheckpointError(f"{where}: the merges do not fit the vocabulary: {error}") from error
    if family.splitting == "qwen2":
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = split_by(QWEN2)
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    return backend


def _add_roberta_processing(backend: "Backend", family: Family, config: dict[str, Any]) -> None:
    from tokenizers import processors

    def token(name: str) -> tuple[str, int]:
        text = str(config.get(name) or family.special_tokens[name])
        if backend.token_to_id(text) is None:
            backend.add_special_tokens([text])
        return text, backend.get_vocab()[text]

    backend.post_processor = processors.RobertaProcessing(
        token("sep_token"),
        token("cls_token"),
        trim_offsets=bool(config.get("trim_offsets", True)),
        add_prefix_space=bool(config.get("add_prefix_space")),
    )
