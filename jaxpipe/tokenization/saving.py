"""Writing a tokenizer as files that Transformers and jaxpipe read."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpipe.common.errors import CheckpointError
from jaxpipe.tokenization.settings import TEMPLATE, TEMPLATE_FOLDER

if TYPE_CHECKING:
    from jaxpipe.tokenization.tokenizer import Tokenizer

# Of tokenizer_config.json, what is written anew or lies in other files.
_NOT_COPIED = (
    "added_tokens_decoder",
    "additional_special_tokens",
    "extra_special_tokens",
    "add_bos_token",
    "add_eos_token",
    "auto_map",
    "backend",
    "chat_template",
    "fast_tokenizer_files",
    "is_local",
    "local_files_only",
    "max_len",
    "name_or_path",
    "special_tokens_map_file",
    "tokenizer_file",
    "vocab_file",
    "merges_file",
)


def save(tokenizer: "Tokenizer", directory: Path) -> tuple[str, ...]:
    """Writes tokenizer.json, tokenizer_config.json and the chat templates; returns their paths.

    Raises:
        CheckpointError: the path is a file.
        ValueError: a chat template's name is not a plain file name.
    """
    if directory.is_file():
        raise CheckpointError(f"{directory} is a file; save_pretrained needs a directory.")
    templates = tokenizer.chat_template
    if templates is None:
        templates = {}
    elif isinstance(templates, str):
        templates = {"default": templates}
    for name in templates:
        if Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"The chat template's name {name!r} cannot be a file name.")
    directory.mkdir(parents=True, exist_ok=True)
    written = [directory / "tokenizer.json", directory / "tokenizer_config.json"]
    with tokenizer.without_padding() as backend:
        backend.save(str(written[0]))
    written[1].write_text(
        json.dumps(_config(tokenizer), indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    for name, text in templates.items():
        path = directory / TEMPLATE if name == "default" else directory / TEMPLATE_FOLDER / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return tuple(map(str, written))


def _config(tokenizer: "Tokenizer") -> dict[str, Any]:
    kept = {key: value for key, value in tokenizer.init_kwargs.items() if key not in _NOT_COPIED}
    config = {key: value for key, value in kept.items() if _is_json(value)}
    named = {key: None for key in config if key.endswith("_token")}
    config = {key: value for key, value in config.items() if key not in named}
    config |= {
        **tokenizer.special_tokens_map,
        **tokenizer.saved_settings(),
        "model_max_length": tokenizer.model_max_length,
        "model_input_names": tokenizer.model_input_names,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        "clean_up_tokenization_spaces": tokenizer.clean_up_tokenization_spaces,
    }
    if extra := tokenizer.extra_special_tokens:
        # Transformers 4 and 5 both read this older name of the list.
        config["additional_special_tokens"] = extra
    return config


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
