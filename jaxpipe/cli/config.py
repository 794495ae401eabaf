"""The configuration of ``jaxpipe run``: YAML with dotted overrides, every key checked."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from jaxpipe.common.errors import ConfigError, nearest


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class Message(BaseModel):
    """One message of a chat; further keys are the chat template's."""

    model_config = ConfigDict(extra="allow")
    role: str
    content: Any = None


InputFormat = Literal["text", "csv", "jsonl", "parquet"]
_SUFFIXES: dict[str, InputFormat] = {
    ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
}  # fmt: skip


class Inputs(_Checked):
    """What is run: exactly one of ``texts``, ``messages``, ``items`` and ``path``.

    Of a file with columns, ``column`` names the one that is the item; ``columns`` makes the item a mapping of several,
    either under their own names or, as ``{key: column}``, under those that the pipeline knows.
    """

    texts: list[str] | None = None
    messages: list[list[Message]] | None = None
    items: list[dict[str, Any]] | None = None
    path: str | None = None
    column: str | None = None
    columns: list[str] | dict[str, str] | None = None
    format: InputFormat | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Inputs":
        kinds = ("texts", "messages", "items", "path")
        given = [name for name in kinds if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of texts, messages, items and path, not {' and '.join(given) or 'none'}"
            )
        described = [name for name in ("column", "columns") if getattr(self, name) is not None]
        if self.path is None and (described or self.format):
            raise ValueError("column, columns and format describe a file; they go with path only")
        if len(described) > 1:
            raise ValueError("column makes the item one value and columns a mapping of several; give one of them")
        if described and self.file_format == "text":
            raise ValueError(
                f"a text file has no columns; set format: csv, jsonl or parquet, or leave {described[0]} out"
            )
        if self.columns is not None and (not self.columns or len(self.mapping or ()) != len(self.columns)):
            raise ValueError("columns takes names of columns, each once, or a mapping {key of the item: column}")
        return self

    @property
    def file_format(self) -> InputFormat:
        """How the file at ``path`` is read: as asked, else by its suffix."""
        return self.format or _SUFFIXES.get(Path(str(self.path)).suffix.lower(), "text")

    @property
    def mapping(self) -> dict[str, str] | None:
        """Key of the item -> column of the file, where ``columns`` is given."""
        return self.columns if self.columns is None or isinstance(self.columns, dict) else {c: c for c in self.columns}


class Output(_Checked):
    """Where answers go: ``path`` is a JSONL or Parquet file, or "-" for the terminal."""

    path: str = "-"
    format: Literal["jsonl", "parquet"] | None = None
    errors: str | None = None
    overwrite: bool = False

    @model_validator(mode="after")
    def _a_file_has_a_format(self) -> "Output":
        if self.path == "-" and self.format:
            raise ValueError("format describes a file; the terminal has none")
        return self

    @property
    def file_format(self) -> str:
        """How answers are written: as asked, else by the suffix of ``path``."""
        return self.format or ("parquet" if self.path.lower().endswith(".parquet") else "jsonl")


class RunConfig(_Checked):
    """One run: a task, a model, the inputs, what the pipeline is called with, and where answers go."""

    task: str
    model: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    dtype: str = "auto"
    device_map: str | int | dict[str, int] | None = None
    max_memory: dict[str | int, str | int] | None = None
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    batch_size: PositiveInt | None = None
    seed: NonNegativeInt | None = None
    inputs: Inputs
    call: dict[str, Any] = Field(default_factory=dict)
    output: Output = Field(default_factory=Output)

    @model_validator(mode="after")
    def _said_once(self) -> "RunConfig":
        for key in ("seed", "batch_size", "item_offset"):
            if key in self.call:
                where = "is set by the run" if key == "item_offset" else f"has a key of its own: {key}"
                raise ValueError(f"call.{key} {where}")
        return self


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads ``1e-5`` as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot in every float; people do not write one.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_value(text: str, source: str) -> Any:
    """Reads a YAML value.

    Args:
        text: what to read.
        source: what errors call it.

    Raises:
        ConfigError: it is not YAML, or gives a key twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark and "\n" in text else ""
        raise ConfigError(f"{source}:{where} is not valid YAML: {problem}") from None


def _override(raw: dict[str, Any], assignment: str) -> None:
    """Sets one ``key.inner=value`` in a configuration; the value is YAML."""
    path, equals, value = assignment.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{assignment!r} is not an override; write key=value or key.inner=value.")
    node = raw
    for depth, key in enumerate(keys[:-1], 1):
        inner = node.setdefault(key, {})
        if inner is None:
            inner = node[key] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{assignment!r}: {'.'.join(keys[:depth])} holds {inner!r}, which has no inner keys.")
        node = inner
    node[keys[-1]] = parse_value(value, assignment)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The class of checked keys inside an annotation such as ``list[list[Message]] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _model_at(location: Sequence[Any]) -> type[BaseModel] | None:
    """The class that describes the mapping at a location of a RunConfig, None inside free mappings."""
    model: type[BaseModel] | None = RunConfig
    for key in location:
        if isinstance(key, str):
            field = model.model_fields.get(key) if model else None
            model = _model_in(field.annotation) if field else None
    return model


def _describe(error: Any) -> str:
    """One problem that pydantic found, as one line with its dotted path."""
    location = [part for part in error["loc"] if not _is_branch(part)]
    path = ".".join(map(str, location))
    model = _model_at(location[:-1])
    if error["type"] in ("extra_forbidden", "missing") and model is not None:
        accepted = list(model.model_fields)
        if error["type"] == "missing":
            return f"{path}: is missing and has no default."
        return f"{path}: unknown key. Accepted here: {', '.join(accepted)}.{nearest(str(location[-1]), accepted)}"
    message = error["msg"].removeprefix("Value error, ")
    if not path or error["type"] in ("value_error", "missing"):
        return f"{path}: {message}.".removeprefix(": ")
    return f"{path}: {message[0].lower()}{message[1:]}; found {error['input']!r}."


def _is_branch(part: Any) -> bool:
    """Whether a part of pydantic's location names a branch of a union rather than a key."""
    return isinstance(part, str) and (part in ("str", "int") or "[" in part)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a run's configuration.

    Args:
        path: a YAML file; relative paths inside it are relative to the working directory.
        overrides: ``key.inner=value`` with YAML values, applied in order.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or has an unknown or wrong key; all of them are listed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the configuration cannot be read: {error}") from None
    raw = parse_value(text, str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys, not {type(raw).__name__}.")
    for assignment in overrides:
        _override(raw, assignment)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        problems = list(dict.fromkeys(_describe(problem) for problem in error.errors()))
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems)) from None
