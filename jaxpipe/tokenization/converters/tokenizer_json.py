"""tokenizer.json: the library's own format, which holds every rule."""

import json
from typing import TYPE_CHECKING, Any

from jaxpipe.common.errors import CheckpointError
from jaxpipe.tokenization.converters.base import Converted, add_bert_processing
from jaxpipe.tokenization.families import family_of

if TYPE_CHECKING:
    from jaxpipe.checkpoint.resolve import Checkpoint


def convert(checkpoint: "Checkpoint", config: dict[str, Any], model_type: str | None) -> Converted | None:
    """Reads tokenizer.json, and applies the switches of the tokenizer's class that the config sets.

    Args:
        checkpoint: the files.
        config: keys of tokenizer_config.json.
        model_type: of config.json, or None.

    Raises:
        CheckpointError: the file is not what the library can read.
    """
    from tokenizers import Tokenizer

    path = checkpoint.file("tokenizer.json")
    rules = checkpoint.read_json("tokenizer.json")
    if path is None or rules is None:
        return None
    splitter = json.dumps([rules.get("pre_tokenizer"), rules.get("decoder")])
    family = family_of(config.get("tokenizer_class"), model_type, byte_level='"ByteLevel"' in splitter)
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises bare Exceptions.
        raise CheckpointError(f"{path}: not a tokenizer that the tokenizers library can read: {error}") from error
    if family.splitting == "bert":
        _apply_bert_switches(backend, rules, config)
        cls, sep = (str(config.get(name) or family.special_tokens[name]) for name in ("cls_token", "sep_token"))
        if backend.post_processor is None and {cls, sep} <= backend.get_vocab().keys():
            add_bert_processing(backend, family, cls, sep)
    if family.splitting in ("gpt2", "roberta") or "add_prefix_space" in config:
        _apply_prefix_space(backend, rules, config, default=False if family.splitting else None)
    return Converted(backend, family, _saved_sides(rules))


def _apply_bert_switches(backend: Any, rules: dict[str, Any], config: dict[str, Any]) -> None:
    """do_lower_case and kin: the config and its class's defaults win over the saved normaliser."""
    from tokenizers import normalizers

    saved = rules.get("normalizer") or {}
    if saved.get("type") != "BertNormalizer":
        return
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=saved.get("clean_text", True),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )


def _apply_prefix_space(backend: Any, rules: dict[str, Any], config: dict[str, Any], default: bool | None) -> None:
    """add_prefix_space: rewrites the byte-level steps that were saved with another value."""
    wanted = config.get("add_prefix_space", default)
    if wanted is None:
        return
    steps = _steps(rules.get("pre_tokenizer"))
    byte_level = [step for step in steps if step.get("type") == "ByteLevel"]
    # Only the step that cuts the text sees its start; one after a Split step would add a space to every piece.
    if len(steps) != 1 or not byte_level or byte_level[0].get("add_prefix_space") == wanted:
        return
    byte_level[0]["add_prefix_space"] = bool(wanted)
    processor = rules.get("post_processor") or {}
    if processor.get("type") == "RobertaProcessing":
        processor["add_prefix_space"] = bool(wanted)
    replacement = type(backend).from_str(json.dumps({**rules, "added_tokens": [], "model": _no_vocabulary(rules)}))
    backend.pre_tokenizer = replacement.pre_tokenizer
    if processor.get("type") == "RobertaProcessing":
        backend.post_processor = replacement.post_processor


def _steps(rule: dict[str, Any] | None) -> list[dict[str, Any]]:
    if rule is None:
        return []
    return rule["pretokenizers"] if rule.get("type") == "Sequence" else [rule]


def _no_vocabulary(rules: dict[str, Any]) -> dict[str, Any]:
    return {"type": "WordLevel", "vocab": {}, "unk_token": rules.get("model", {}).get("unk_token") or ""}


def _saved_sides(rules: dict[str, Any]) -> dict[str, Any]:
    """Sides and pad token that the file was saved with; the lengths in it are of one training run, not of a call."""
    settings: dict[str, Any] = {}
    if padding := rules.get("padding"):
        settings["pad_token"] = padding.get("pad_token")
        settings["padding_side"] = str(padding.get("direction", "Right")).lower()
    if truncation := rules.get("truncation"):
        settings["truncation_side"] = str(truncation.get("direction", "Right")).lower()
    return settings
