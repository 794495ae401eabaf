"""The base of configurations: what a config.json may hold, in both dialects of the Hub."""

import dataclasses
import json
import math
import typing
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

import pydantic
from pydantic.dataclasses import dataclass as _validated

from jaxpipe.common.dtypes import to_dtype
from jaxpipe.common.errors import ConfigError
from jaxpipe.common.logging import warn_once

# Keys of any config.json that change nothing here: bookkeeping, training, output switches that are
# arguments of a call, and generation settings, which generation/config.py reads for itself. A type may have a field
# of such a name.
INERT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _experts_implementation _name_or_path
    _output_attentions attention_dropout attention_probs_dropout_prob attn_implementation auto_map bad_words_ids
    base_model_tp_plan begin_suppress_tokens chunk_size_feed_forward classifier_dropout custom_pipelines
    decoder_start_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout_prob
    is_encoder_decoder length_penalty max_length max_new_tokens min_length model_type name_or_path
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
    output_past output_scores prefix pretraining_tp problem_type remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sbert_ce_default_activation_function
    sentence_transformers sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torchscript transformers_version
    transformers_weights typical_p use_bfloat16 use_cache use_return_dict xla_device
    """.split()
)
# Keys that would change what is computed: refused unless their value is one of these.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "add_cross_attention": (False, None),
    "is_decoder": (False, None),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": (None, {}),
    "quantization": (None,),
}


# JSON has no infinity and no NaN; the Hub's configs of version 5 write them as an object with this key.
FLOAT = "__float__"


def _read_floats(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {FLOAT}:
            return float(value[FLOAT])
        return {key: _read_floats(part) for key, part in value.items()}
    return [_read_floats(part) for part in value] if isinstance(value, list) else value


def _write_floats(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _write_floats(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_write_floats(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT: json.dumps(value)}
    return value


Class = TypeVar("Class", bound=type)


def _as_dataclass(cls: Class) -> Class:
    settings = pydantic.ConfigDict(extra="ignore", protected_namespaces=())
    made: Any = _validated(cls, kw_only=True, repr=False, config=settings)
    return made


@_as_dataclass
@dataclass_transform(kw_only_default=True)
class ModelConfig:
    """Base of the config dataclasses; their fields are the keys of config.json, defaults the oracle's.

    A key of a config.json is a field, or inert, or refused unless neutral; one that is none of the
    three is warned about once by name. Inert and unknown keys are kept and written back.

    Attributes of the class:
        model_type: of the Hub.
        inert: this type's keys that change nothing, beside `INERT`.
        refused: this type's keys with the values that are accepted, beside `REFUSED`.
        attribute_map: other names under which fields can be read, as in Transformers.
    """

    model_type: ClassVar[str]
    inert: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    attribute_map: ClassVar[Mapping[str, str]] = {}

    vocab_size: int = 0
    architectures: list[str] | None = None
    dtype: str | None = None
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    id2label: dict[int, str] | None = None
    label2id: dict[str, int] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _as_dataclass(cls)

    def __post_init__(self) -> None:
        self.extra: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            # Sizes; one whose default is 0 may be left out of a model.
            if field.type is int and (
                value < 0 or (value == 0 and field.default != 0 and field.name not in self.zeros())
            ):
                raise ConfigError(f"config.json: {field.name}={value} is not a positive number.")
        if self.id2label is None:
            self.id2label = {i: f"LABEL_{i}" for i in range(2)}
        if self.label2id is None or len(self.label2id) != len(self.id2label):
            self.label2id = {label: i for i, label in self.id2label.items()}

    def __getattr__(self, name: str) -> Any:
        # Reached only where no field has the name.
        if name in type(self).attribute_map:
            return getattr(self, type(self).attribute_map[name])
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")

    @property
    def num_labels(self) -> int:
        """Number of classes of a classification head."""
        return len(self.id2label or ())

    def zeros(self) -> Collection[str]:
        """Names of the sizes that may be 0 in this config: of modules that may be left out."""
        return ()

    @classmethod
    def keys(cls) -> set[str]:
        """Names of the fields."""
        return {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Brings the keys of a config.json to the fields' names; types with a dialect of their own extend it."""
        values = dict(values)
        dtype = values.pop("torch_dtype", None)
        values["dtype"] = values.get("dtype") or dtype
        if values["dtype"] is not None:
            values["dtype"] = to_dtype(values["dtype"]).name
        for other, field in cls.attribute_map.items():
            if other in values and field not in values:
                values[field] = values.pop(other)
        labels = values.pop("num_labels", None)
        if labels is not None and not values.get("id2label"):
            values["id2label"] = {i: f"LABEL_{i}" for i in range(labels)}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, file: str = "config.json") -> Self:
        """Makes a config from the keys of a config.json.

        Args:
            values: parsed JSON, in either dialect.
            file: named in errors.

        Raises:
            ConfigError: a value has a wrong type, or a key asks for what is not supported.
        """
        given = values.get("model_type")
        if given is not None and given != cls.model_type:
            raise ConfigError(f"{file}: model_type is {given!r}, but {cls.__name__} reads {cls.model_type!r}.")
        values = cls.normalise({key: _read_floats(value) for key, value in values.items()})
        refused = {**REFUSED, **cls.refused}
        known = cls.keys()
        extra: dict[str, Any] = {}
        for key, value in values.items():
            if key in known:
                continue
            if key in refused and value not in refused[key]:
                accepted = ", ".join(repr(v) for v in refused[key])
                raise ConfigError(
                    f"{file}: {key}={value!r} changes what {cls.model_type!r} computes and is not supported; "
                    f"accepted: {accepted}."
                )
            if key not in refused and key not in INERT and key not in cls.inert:
                warn_once(f"{file}: the key {key!r} is not known for model_type {cls.model_type!r} and has no effect.")
            extra[key] = value
        # null stands for the default, unless a field gives it a meaning.
        optional = {k for k, hint in typing.get_type_hints(cls).items() if type(None) in typing.get_args(hint)}
        fields = {k: v for k, v in values.items() if k in known and (v is not None or k in optional)}
        try:
            config = cls(**fields)
        except pydantic.ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}" for e in error.errors()]
            raise ConfigError(f"{file}: " + "; ".join(lines)) from None
        config.extra = extra
        return config

    def limits(self) -> dict[str, int]:
        """First value that is out of range of each input of indices; ``position_ids`` only where positions are
        learned, ``token_type_ids`` only where there are such.
        """
        return {"input_ids": self.vocab_size}

    def longest_input(self) -> int | None:
        """Number of tokens that learned positions serve, None where positions are computed; types whose positions
        do not begin at 0 extend it.
        """
        return self.limits().get("position_ids")

    def get_text_config(self) -> "ModelConfig":
        """Returns the config of what is built: of the text model where others stand beside it, else this one."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Returns the keys of a config.json (version 5's dialect), those without effect among them."""
        fields = {name: getattr(self, name) for name in sorted(self.keys())}
        if self.id2label == {0: "LABEL_0", 1: "LABEL_1"}:
            del fields["id2label"], fields["label2id"]
        return {**self.extra, **fields, "model_type": self.model_type}

    def to_json_string(self) -> str:
        """Returns `to_dict` as JSON text."""
        return json.dumps(_write_floats(self.to_dict()), indent=2, sort_keys=True, default=str) + "\n"

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"
