"""`GenerationConfig`: the settings of ``generate`` as Transformers names them, and their resolution for one call."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpipe.common.errors import CheckpointError, nearest
from jaxpipe.generation.settle import Layer, Settled, check_names, settle

if TYPE_CHECKING:
    from jaxpipe.checkpoint.resolve import Checkpoint

GENERATION_CONFIG_NAME = "generation_config.json"

_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder", "variant")
_METADATA = ("transformers_version", "_from_model_config", "_commit_hash", "_original_object_hash")
# In config.json these two steer the forward pass; they do not ask generate for more outputs.
_FORWARD_FLAGS = ("output_attentions", "output_hidden_states")
_TEXT_CONFIGS = ("decoder", "generator", "text_config")


class GenerationConfig:
    """Settings of ``generate``: None means not set, and the defaults apply when a call is resolved.

    Entries of a file that are no settings (a model's own) can be read as attributes and are written back.

    Args:
        **values: settings by name.

    Raises:
        ValueError: a name is no setting, or a value can never be valid.
    """

    # Length of the output.
    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    early_stopping: bool | str | None = None
    max_time: float | None = None
    stop_strings: str | list[str] | None = None
    # Strategy.
    do_sample: bool | None = None
    num_beams: int | None = None
    use_mtp: bool | None = None
    # Cache.
    use_cache: bool | None = None
    cache_implementation: str | None = None
    cache_config: Any = None
    max_cache_len: int | None = None
    # Changes to the logits.
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    repetition_penalty: float | None = None
    encoder_repetition_penalty: float | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    bad_words_ids: list[list[int]] | None = None
    renormalize_logits: bool | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    remove_invalid_values: bool | None = None
    exponential_decay_length_penalty: Any = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    sequence_bias: Any = None
    token_healing: bool | None = None
    guidance_scale: float | None = None
    watermarking_config: Any = None
    # What is returned.
    num_return_sequences: int | None = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    return_dict_in_generate: bool | None = None
    # Special tokens.
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    # Encoder-decoder models.
    encoder_no_repeat_ngram_size: int | None = None
    decoder_start_token_id: int | list[int] | None = None
    # Assisted generation.
    is_assistant: bool | None = None
    num_assistant_tokens: int | None = None
    num_assistant_tokens_schedule: str | None = None
    assistant_confidence_threshold: float | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    assistant_early_exit: int | None = None
    assistant_lookbehind: int | None = None
    target_lookbehind: int | None = None
    assistant_ensemble_weight: float | None = None
    speculation_type: str | None = None
    # Compilation and memory.
    compile_config: Any = None
    disable_compile: bool | None = None
    continuous_batching_config: Any = None
    prefill_chunk_size: int | None = None
    # Methods that Transformers moved to the Hub.
    low_memory: bool | None = None
    penalty_alpha: float | None = None
    dola_layers: Any = None
    diversity_penalty: float | None = None
    num_beam_groups: int | None = None
    constraints: Any = None
    force_words_ids: Any = None

    _origin: str
    _entries: dict[str, Any]

    def __init__(self, **values: Any) -> None:
        self._origin = "the model's generation_config"
        self._entries = {}
        for name in values:
            if name not in FIELDS and name not in _METADATA:
                raise ValueError(f"GenerationConfig has no setting {name!r}.{nearest(name, FIELDS)}")
        self._assign(values)
        self.validate()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> "GenerationConfig":
        """Makes a config from the contents of a generation_config.json, of any version.

        Args:
            values: settings by name; entries that are no settings are kept.
            **changes: settings that replace those of ``values``.

        Raises:
            ValueError: a name in ``changes`` is no setting, or a value can never be valid.
        """
        config = cls(**changes)
        config._entries = {name: value for name, value in values.items() if name not in (*FIELDS, *_METADATA)}
        config._assign({name: values[name] for name in FIELDS.intersection(values).difference(changes)})
        config.validate()
        return config

    @classmethod
    def from_model_config(cls, model_config: Any) -> "GenerationConfig":
        """Makes a config from a model's config, which in older checkpoints holds the generation settings.

        Args:
            model_config: the contents of a config.json, or an object with ``to_dict``. Settings of a nested text
                config hold where the outer one sets none.
        """
        outer = dict(model_config) if isinstance(model_config, Mapping) else model_config.to_dict()
        inner = next((outer[name] for name in _TEXT_CONFIGS if isinstance(outer.get(name), Mapping)), {})
        names = FIELDS.difference(_FORWARD_FLAGS)
        values = {name: entries[name] for entries in (inner, outer) for name in names if entries.get(name) is not None}
        if outer.get("force_bos_token_to_be_generated"):
            values["forced_bos_token_id"] = values.get("bos_token_id")
        config = cls.from_dict(values)
        config._origin = "the model's config.json"
        return config

    @classmethod
    def from_pretrained(cls, name_or_checkpoint: "str | Path | Checkpoint", **kwargs: Any) -> "GenerationConfig":
        """Reads a checkpoint's generation_config.json, else derives the settings from its config.json.

        Args:
            name_or_checkpoint: Hub id, directory, .gguf file, ``package://`` path or a resolved checkpoint.
            **kwargs: Hub arguments (``revision``, ``token``, ``cache_dir``, ``local_files_only``,
                ``force_download``, ``subfolder``, ``variant``) and settings that replace those of the file;
                ``config_file_name`` reads another file than generation_config.json.

        Returns:
            The config; with no setting where the checkpoint has neither file.

        Raises:
            OSError: the checkpoint or a named file is missing, or a file is not JSON.
            ValueError: a setting is unknown or can never be valid.
        """
        from jaxpipe.checkpoint.resolve import resolve as resolve_checkpoint

        hub = {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if name in kwargs}
        file_name = kwargs.pop("config_file_name", None)
        checkpoint = resolve_checkpoint(name_or_checkpoint, **hub)
        values, origin = cls._read(checkpoint, file_name)
        try:
            config = cls.from_model_config(values) if origin == "config.json" else cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{origin} of {checkpoint.name}: {error}") from None
        config._origin = f"{origin} of {checkpoint.name}"
        unused = config.update(**kwargs)
        if unused:
            name = next(iter(unused))
            raise ValueError(
                f"GenerationConfig.from_pretrained got an unknown argument {name!r}."
                f"{nearest(name, [*FIELDS, *_HUB_ARGUMENTS, 'config_file_name'])}"
            )
        return config

    @staticmethod
    def _read(checkpoint: "Checkpoint", file_name: str | None) -> tuple[dict[str, Any], str]:
        """The contents of the file that holds the settings, and its name."""
        if checkpoint.gguf is not None:
            from jaxpipe.checkpoint.gguf import GGUFFile

            return GGUFFile(checkpoint.gguf).generation_config(), Path(checkpoint.gguf).name
        values = checkpoint.read_json(file_name or GENERATION_CONFIG_NAME)
        if values is not None:
            return values, file_name or GENERATION_CONFIG_NAME
        if file_name is not None:
            raise CheckpointError(f"{checkpoint.name} has no file {file_name!r}.")
        return checkpoint.read_json("config.json") or {}, "config.json"

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes the settings that are set to ``directory``/generation_config.json.

        Raises:
            ValueError: a value can never be valid.
        """
        self.validate()
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        (path / GENERATION_CONFIG_NAME).write_text(self._json(self.to_diff_dict()), encoding="utf-8")

    def update(self, **values: Any) -> dict[str, Any]:
        """Sets the settings that ``values`` names and returns the entries that are no settings of this config.

        Raises:
            ValueError: a value can never be valid.
        """
        known = {name: value for name, value in values.items() if name in FIELDS or name in self._entries}
        self._assign(known)
        self.validate()
        return {name: value for name, value in values.items() if name not in known}

    def validate(self) -> None:
        """Checks values that are wrong whatever the call; the others are checked when a call is resolved.

        Raises:
            ValueError: a value can never be valid.
        """
        if isinstance(self.max_new_tokens, int) and self.max_new_tokens <= 0:
            raise ValueError(f"max_new_tokens={self.max_new_tokens!r}: expected an integer of at least 1, or None.")
        if self.early_stopping not in (None, True, False, "never"):
            raise ValueError(f'early_stopping={self.early_stopping!r}: expected True, False or "never".')

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, those that are not set as None, and the file's own entries."""
        return copy.deepcopy({**self._entries, **{name: getattr(self, name) for name in sorted(FIELDS)}})

    def to_diff_dict(self) -> dict[str, Any]:
        """The settings and entries that are set."""
        return {name: value for name, value in self.to_dict().items() if value is not None}

    def settings(self) -> dict[str, Any]:
        """The settings that are set, without the file's own entries."""
        values = {name: getattr(self, name) for name in FIELDS}
        return copy.deepcopy({name: value for name, value in values.items() if value is not None})

    def _assign(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if name not in _METADATA:
                setattr(self, name, value)

    @staticmethod
    def _json(values: Mapping[str, Any]) -> str:
        bias = values.get("sequence_bias")
        if isinstance(bias, Mapping):  # the keys are tuples, which JSON does not have
            values = {**values, "sequence_bias": [[list(ids), value] for ids, value in bias.items()]}
        return json.dumps(values, indent=2, sort_keys=True, default=_as_json) + "\n"

    def __getattr__(self, name: str) -> Any:
        entries = self.__dict__.get("_entries", {})
        if name not in entries:
            raise AttributeError(f"GenerationConfig has no setting {name!r}.{nearest(name, FIELDS)}")
        return entries[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FIELDS or name.startswith("_"):
            super().__setattr__(name, value)
        elif name in self._entries:
            self._entries[name] = value
        else:
            raise AttributeError(f"GenerationConfig has no setting {name!r}.{nearest(name, FIELDS)}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_diff_dict() == other.to_diff_dict()

    def __repr__(self) -> str:
        return f"GenerationConfig {self._json(self.to_diff_dict())}"


def _as_json(value: Any) -> Any:
    """What a setting that JSON does not know is written as; a watermark's config as its entries."""
    return value.to_dict() if hasattr(value, "to_dict") else str(value)


FIELDS = frozenset(name for name in GenerationConfig.__annotations__ if not name.startswith("_"))
"""Names of all settings."""


def resolve(
    generation_config: GenerationConfig | None,
    model_generation_config: GenerationConfig | None,
    kwargs: Mapping[str, Any],
    *,
    prompt_length: int,
    max_positions: int | None = None,
) -> Settled:
    """Settles what one call of ``generate`` runs with.

    The keyword arguments win over ``generation_config``, that wins over the model's config, and last come the
    defaults. In a keyword argument None means off; in a config it means not set. ``max_new_tokens`` wins over
    ``max_length`` wherever either comes from, and with neither 20 new tokens are generated, capped by
    ``max_positions`` (Transformers 5.23, ``generation/utils.py``).

    Args:
        generation_config: the config that the user passed to the call, or None.
        model_generation_config: the model's own config, or None.
        kwargs: the keyword arguments of the call that ``generate`` does not name itself.
        prompt_length: positions of the prompt in the input ids, padding included.
        max_positions: positions that the model was made for, or None.

    Returns:
        The checked settings.

    Raises:
        TypeError: ``generation_config`` is no GenerationConfig.
        ValueError: a name is unknown, a value is wrong or not supported yet, or the prompt leaves no room.
    """
    check_names(kwargs, FIELDS)
    if generation_config is not None and not isinstance(generation_config, GenerationConfig):
        raise TypeError(f"generation_config must be a GenerationConfig, not {type(generation_config).__name__}.")
    layers = [Layer({name: kwargs[name] for name in kwargs if name in FIELDS}, "argument of generate", by_user=True)]
    if generation_config is not None and generation_config is not model_generation_config:
        layers.append(Layer(generation_config.settings(), "generation_config argument", by_user=True))
    if model_generation_config is not None:
        layers.append(Layer(model_generation_config.settings(), model_generation_config._origin, by_user=False))
    return settle(layers, prompt_length=prompt_length, max_positions=max_positions)
