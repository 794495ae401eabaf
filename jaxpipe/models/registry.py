"""Which architectures there are: ``model_type`` -> config class, modules of its heads, names of its weights."""

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxpipe.common.errors import ConfigError, nearest
from jaxpipe.common.gguf_spec import GGUFSpec
from jaxpipe.models.config import ModelConfig

BASE, CAUSAL_LM, MASKED_LM, SEQUENCE_CLASSIFICATION = (
    "base model",
    "causal language model",
    "masked language model",
    "sequence classification",
)
TOKEN_CLASSIFICATION, QUESTION_ANSWERING = "token classification", "question answering"
SEQ2SEQ_LM = "sequence-to-sequence language model"
# Files of `jaxpipe.models` that are no architecture's, and those whose architecture's name has a dash.
SHARED = frozenset({"config", "decoder", "encoder", "registry", "table"})
DASHED = {"deberta_v2": "deberta-v2", "xlm_roberta": "xlm-roberta"}


@dataclass(frozen=True)
class Architecture:
    """What is known of one ``model_type``.

    Attributes:
        config: its config class.
        heads: module class of each head; the class names are those of ``architectures`` in config.json.
        base: attribute under which a head holds the base model, and the prefix of its weights' names.
        ignored: patterns (for `re.fullmatch`, after the base prefix) of weights that checkpoints hold and
            nothing reads: buffers saved as weights.
        renamed: pairs of a pattern of a name in old checkpoints and its replacement (as of `re.sub`).
        optional: attributes of the base model that a checkpoint may lack as a whole, such as a pooler.
        other_heads: patterns, as `ignored`, of the weights of heads that are not built, where a module of the
            same name is; they are reported, not refused.
        tied: name of a head's weight -> name of the weight that it is one with where ``tie_word_embeddings`` says
            so, both without the base prefix.
        copies: name of a weight that checkpoints may hold once more -> name of the weight that it always is one
            with, both without the base prefix.
        head_optional: attributes of a head that a checkpoint may lack, such as a bias that is zero in most.
        fused: experts that checkpoints may hold as one tensor (E, n F, D), as Transformers 5 has them in memory: a
            pattern of its current name -> the names, for `re.sub` and with ``{e}`` for the expert, of the n tensors
            (F, D) of each expert.
        gguf: how GGUF files hold it, None where they do not.
    """

    config: type[ModelConfig]
    heads: Mapping[str, type[Any]]
    base: str
    ignored: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    optional: tuple[str, ...] = ()
    other_heads: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    head_optional: tuple[str, ...] = ()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gguf: GGUFSpec | None = None

    @property
    def model_type(self) -> str:
        """The Hub's name of the architecture."""
        return self.config.model_type


@dataclass
class _Registry:
    architectures: dict[str, Architecture] = field(default_factory=dict)


_registry = _Registry()


def register(architecture: Architecture) -> Architecture:
    """Adds an architecture; its file calls this last."""
    _registry.architectures[architecture.model_type] = architecture
    return architecture


def model_types() -> list[str]:
    """Returns every ``model_type`` that is supported: each has a file of its name in `jaxpipe.models`, which is not
    imported for that.
    """
    import jaxpipe.models

    files = {module.name for module in pkgutil.iter_modules(jaxpipe.models.__path__)} - SHARED
    return sorted({DASHED.get(name, name) for name in files} | set(_registry.architectures))


def architecture(model_type: str | None, *, file: str = "config.json") -> Architecture:
    """Returns the architecture of a ``model_type``.

    Raises:
        ConfigError: there is none of that name; the message lists those that are supported.
    """
    if model_type and model_type not in _registry.architectures:
        name = f"jaxpipe.models.{str(model_type).replace('-', '_')}"
        if re.fullmatch(r"[\w-]+", str(model_type)) and importlib.util.find_spec(name):
            importlib.import_module(name)
    if model_type not in _registry.architectures:
        known = model_types()
        found = f"model_type {model_type!r} is not supported" if model_type else "there is no key 'model_type'"
        raise ConfigError(
            f"{file}: {found}; supported: {', '.join(known)}.{nearest(str(model_type), known)} "
            "docs/adding_a_model.md says how one is added."
        )
    return _registry.architectures[model_type]


def gguf_spec(name: str) -> GGUFSpec | None:
    """Returns how GGUF files of ``general.architecture`` `name` are read, or None where that is not known."""
    # Most have the name of the model type, whose file alone is imported then.
    types = sorted(model_types(), key=lambda model_type: model_type != name)
    specs = (architecture(model_type).gguf for model_type in types)
    return next((spec for spec in specs if spec is not None and spec.architecture == name), None)
