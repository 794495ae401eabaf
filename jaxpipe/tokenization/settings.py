"""A checkpoint's tokenizer settings: tokenizer_config.json in both dialects, special tokens, chat templates."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpipe.common.errors import CheckpointError
from jaxpipe.tokenization.special_tokens import EXTRA, NAMED, check_token

if TYPE_CHECKING:
    from tokenizers import AddedToken

    from jaxpipe.checkpoint.resolve import Checkpoint

TEMPLATE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
# Names that templates of the Hub have; a repository is asked for these where it cannot be listed.
TEMPLATE_NAMES = ("default", "tool_use", "rag")
# Keys that end in _token and are switches or paths, not tokens.
NOT_TOKENS = ("add_bos_token", "add_eos_token")


def read(checkpoint: "Checkpoint", overrides: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys of tokenizer_config.json, with what the other files add and the caller overrides.

    Args:
        checkpoint: the files.
        overrides: keys that the caller sets; they win over the files.

    Raises:
        CheckpointError: a file holds something else than it should.
    """
    config = checkpoint.read_json("tokenizer_config.json") or {}
    has_tokenizer_json = checkpoint.file("tokenizer.json") is not None
    if has_tokenizer_json:
        # What tokenizer.json adds around a text holds; its config's flags are often stale.
        for key in ("add_bos_token", "add_eos_token"):
            config.pop(key, None)
    if templates := _chat_templates(checkpoint):
        config["chat_template"] = templates
    elif "chat_template" not in config and (legacy := checkpoint.read_json("chat_template.json")):
        config["chat_template"] = legacy.get("chat_template")
    if "added_tokens_decoder" not in config:
        _read_legacy_tokens(checkpoint, config)
    config.update(overrides)
    _convert_added_tokens(config)
    return config


def _chat_templates(checkpoint: "Checkpoint") -> dict[str, str]:
    """The templates in files of their own, by name; "default" is chat_template.jinja."""
    files = {"default": checkpoint.file(TEMPLATE)}
    names = set(TEMPLATE_NAMES)
    anchor = checkpoint.file("tokenizer_config.json") or checkpoint.file("tokenizer.json") or files["default"]
    if anchor is not None:
        names |= {path.stem for path in (anchor.parent / TEMPLATE_FOLDER).glob("*.jinja")}
    for name in sorted(names):
        if path := checkpoint.file(f"{TEMPLATE_FOLDER}/{name}.jinja"):
            files[name] = path
    return {name: read_text(path) for name, path in files.items() if path is not None}


def read_text(path: Path) -> str:
    """Returns a UTF-8 file's text.

    Raises:
        CheckpointError: the file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not a UTF-8 text ({error}); download it again.") from error


def _read_legacy_tokens(checkpoint: "Checkpoint", config: dict[str, Any]) -> None:
    """special_tokens_map.json and added_tokens.json, which older checkpoints have beside the config."""
    special_map = checkpoint.read_json("special_tokens_map.json") or {}
    config.update(special_map)
    added = checkpoint.read_json("added_tokens.json") or {}
    special = {_content(config[key]) for key in NAMED if config.get(key)}
    special |= {_content(token) for key in EXTRA for token in config.get(key) or ()}
    decoder: dict[str, Any] = {}
    for token, index in added.items():
        if not isinstance(index, int):
            raise CheckpointError(
                f"{checkpoint.name}: added_tokens.json: the id of {token!r} is {index!r}, not an int."
            )
        is_special = token in special
        decoder[str(index)] = {"content": token, "normalized": not is_special, "special": is_special}
    if decoder and checkpoint.file("tokenizer.json") is None:
        config["added_tokens_decoder"] = decoder


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, dict) and "content" in token else str(token)


def _convert_added_tokens(config: dict[str, Any]) -> None:
    """Turns every written added token (a dict with "content") into a ``tokenizers.AddedToken``."""
    from tokenizers import AddedToken

    def convert(where: str, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        fields = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
        known = {key: value[key] for key in fields if key in value}
        if not isinstance(known.get("content"), str):
            raise CheckpointError(f"tokenizer_config.json: {where} is {value!r}, which has no text under 'content'.")
        return AddedToken(**known)

    for key in [key for key in config if key in NAMED or key.endswith("_token")]:
        config[key] = convert(key, config[key])
    for key in EXTRA:
        if isinstance(config.get(key), list):
            config[key] = [convert(key, token) for token in config[key]]
    decoder = config.get("added_tokens_decoder")
    if decoder is not None:
        if not isinstance(decoder, dict) or not all(str(index).isdecimal() for index in decoder):
            raise CheckpointError("tokenizer_config.json: added_tokens_decoder must map ids to tokens.")
        tokens = {int(index): convert(f"added token {index}", token) for index, token in decoder.items()}
        if wrong := [index for index, token in tokens.items() if not isinstance(token, AddedToken)]:
            raise CheckpointError(f"tokenizer_config.json: added token {wrong[0]} is {tokens[wrong[0]]!r}, not a dict.")
        config["added_tokens_decoder"] = tokens


def special_tokens(
    config: dict[str, Any],
) -> "tuple[dict[str, str | AddedToken | None], list[str | AddedToken], dict[int, AddedToken]]":
    """Returns the named special tokens, the extra ones, and the added tokens by id that a config lists.

    Any further key that ends in "_token" and holds a token (``image_token``) is a named special token too.

    Raises:
        ValueError: a special token is not a token.
    """
    added: dict[int, AddedToken] = dict(config.get("added_tokens_decoder") or {})
    by_content = {token.content: token for token in added.values()}
    named: dict[str, str | AddedToken | None] = {}
    for key, value in config.items():
        if key in NAMED or (key.endswith("_token") and key not in NOT_TOKENS and _is_token(value)):
            token = check_token(key, value)
            named[key] = by_content.get(str(token), token) if token is not None else None
    extra = next((config[key] for key in EXTRA if config.get(key)), [])
    if isinstance(extra, dict):
        named.update({key: check_token(key, value) for key, value in extra.items()})
        extra = []
    if not isinstance(extra, (list, tuple)):
        raise ValueError(f"{EXTRA[0]} must be a list of tokens or a dict of named ones, not {type(extra).__name__}.")
    return named, [check_token(EXTRA[0], token) for token in extra], added


def _is_token(value: Any) -> bool:
    from tokenizers import AddedToken

    return isinstance(value, (str, AddedToken))
