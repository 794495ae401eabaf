"""AutoTokenizer: a checkpoint's files to a tokenizer."""

from os import PathLike
from typing import TYPE_CHECKING, Any

from jaxpipe.common.errors import CheckpointError, nearest
from jaxpipe.common.logging import info_once
from jaxpipe.tokenization import settings
from jaxpipe.tokenization.families import FAMILIES, FAMILY_OF_MODEL_TYPE
from jaxpipe.tokenization.special_tokens import EXTRA, NAMED
from jaxpipe.tokenization.tokenizer import Tokenizer
from jaxpipe.tokenization.translation import LanguageTokenizer

if TYPE_CHECKING:
    from jaxpipe.checkpoint.resolve import Checkpoint
    from jaxpipe.tokenization.converters import Converted

OVERRIDES = (
    *NAMED,
    *EXTRA,
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "chat_template",
    "clean_up_tokenization_spaces",
    "do_lower_case",
    "model_input_names",
    "model_max_length",
    "never_split",
    "padding_side",
    "split_special_tokens",
    "src_lang",
    "strip_accents",
    "tgt_lang",
    "tokenize_chinese_chars",
    "tokenizer_class",
    "trim_offsets",
    "truncation_side",
)


class AutoTokenizer:
    """Loads tokenizers; it is not made itself."""

    def __init__(self) -> None:
        raise TypeError("AutoTokenizer is not made itself; call AutoTokenizer.from_pretrained(name).")

    @staticmethod
    def from_pretrained(
        name_or_checkpoint: "str | PathLike[str] | Checkpoint",
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        subfolder: str = "",
        gguf_file: str | None = None,
        tokenizer_type: str | None = None,
        use_fast: bool | None = None,
        trust_remote_code: bool | None = None,
        **overrides: Any,
    ) -> Tokenizer:
        """Loads a tokenizer from tokenizer.json, SentencePiece models, vocabulary files, or a GGUF file.

        Args:
            name_or_checkpoint: Hub id, directory, ``.gguf`` file, ``package://`` path, or resolved checkpoint.
            revision: branch, tag or commit of a Hub repository.
            token: Hub token.
            cache_dir: where downloads lie.
            local_files_only: use no network.
            force_download: download anew.
            subfolder: folder of the repository.
            gguf_file: name of a GGUF file in the repository or directory, whose vocabulary to use.
            tokenizer_type: model type whose tokenizer class to take ("bert", "gpt2", ...).
            use_fast: accepted and without effect; every tokenizer here is a fast one.
            trust_remote_code: accepted and without effect; no code of a repository is run.
            overrides: keys of tokenizer_config.json that win over the files: special tokens, ``padding_side``,
                ``model_max_length``, ``chat_template``, ``add_bos_token``, ...

        Raises:
            CheckpointError: the files are missing or damaged.
            TypeError: an unknown argument.
            ValueError: an override has a value that cannot be.
        """
        from jaxpipe.checkpoint.resolve import resolve

        for name, value in (("use_fast", use_fast), ("trust_remote_code", trust_remote_code)):
            if value is not None:
                info_once(f"{name}={value} has no effect: tokenizers are fast ones, and no code of a repository runs.")
        _check_overrides(overrides)
        if tokenizer_type is not None:
            if tokenizer_type not in FAMILY_OF_MODEL_TYPE:
                known = sorted(FAMILY_OF_MODEL_TYPE)
                raise ValueError(
                    f"tokenizer_type={tokenizer_type!r} is not known; known are {', '.join(known)}."
                    + nearest(tokenizer_type, known)
                )
            overrides.setdefault("tokenizer_class", FAMILY_OF_MODEL_TYPE[tokenizer_type])
        checkpoint = resolve(
            name_or_checkpoint,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            subfolder=subfolder,
        )
        converted, config = _convert(checkpoint, gguf_file, overrides)
        config = {**converted.settings, **config, **converted.winning}
        make = converted.make or (LanguageTokenizer if converted.family.language else Tokenizer)
        return make(converted.backend, config, family=converted.family, name_or_path=checkpoint.name)


def _check_overrides(overrides: dict[str, Any]) -> None:
    for name, value in overrides.items():
        own_token = name.endswith("_token") and (value is None or isinstance(value, str) or hasattr(value, "content"))
        if name not in OVERRIDES and not own_token:
            raise TypeError(
                f"AutoTokenizer.from_pretrained got an unknown argument {name!r}; settings that can be overridden are "
                f"{', '.join(OVERRIDES)}.{nearest(name, OVERRIDES)}"
            )
    if (given := overrides.get("tokenizer_class")) is not None and given.removesuffix("Fast") not in FAMILIES:
        raise ValueError(
            f"tokenizer_class={given!r} is not known; known are {', '.join(FAMILIES)}.{nearest(given, FAMILIES)}"
        )


def _convert(
    checkpoint: "Checkpoint", gguf_file: str | None, overrides: dict[str, Any]
) -> "tuple[Converted, dict[str, Any]]":
    """The backend of the first kind of source that the checkpoint has, and its settings."""
    from jaxpipe.tokenization.converters import CONVERTERS, gguf

    path = checkpoint.gguf
    if gguf_file is not None:
        path = checkpoint.file(gguf_file)
        if path is None:
            raise CheckpointError(f"{checkpoint.name}: there is no file {gguf_file!r}.")
    if path is not None:
        from jaxpipe.checkpoint.gguf import GGUFFile

        return gguf.convert(GGUFFile(path).vocabulary(), path), overrides
    config = settings.read(checkpoint, overrides)
    model_config = checkpoint.read_json("config.json") or {}
    model_type = model_config.get("model_type")
    if config.get("tokenizer_class") is None and isinstance(model_config.get("tokenizer_class"), str):
        config["tokenizer_class"] = model_config["tokenizer_class"]
    for convert in CONVERTERS.values():
        converted = convert(checkpoint, config, model_type)
        if converted is not None:
            return converted, config
    raise CheckpointError(
        f"{checkpoint.name}: no tokenizer found; looked for {', '.join(CONVERTERS)}. "
        "Add a tokenizer.json, which transformers.AutoTokenizer.from_pretrained(...).save_pretrained(DIR) writes."
    )
