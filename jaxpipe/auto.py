"""Auto classes: from the name of a checkpoint, or a config, to a model of the asked head."""

import dataclasses
from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar, overload

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.checkpoint.build import Blueprint, build, fit, from_seed, from_source
from jaxpipe.checkpoint.fused import split_fused
from jaxpipe.checkpoint.names import Match
from jaxpipe.checkpoint.redrawn import redraw
from jaxpipe.checkpoint.resolve import Checkpoint, resolve
from jaxpipe.checkpoint.source import TensorSource
from jaxpipe.checkpoint.tying import settle_tying
from jaxpipe.common.dtypes import to_dtype
from jaxpipe.common.errors import CheckpointError, nearest
from jaxpipe.common.logging import info_once, logger
from jaxpipe.generation.config import GenerationConfig
from jaxpipe.model import PreTrainedModel
from jaxpipe.models import registry
from jaxpipe.models.config import ModelConfig

HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder", "variant")
# Accepted for the sake of code written for Transformers; each has no effect here, for the reason given.
WITHOUT_EFFECT = {
    "low_cpu_mem_usage": "weights always go straight to their devices",
    "trust_remote_code": "code of a repository is never run",
    "use_safetensors": "safetensors are read where there are any",
    "weights_only": "nothing that stands in a pickle is ever run",
    "use_fast": "tokenizers always are",
    "offload_folder": "weights are not offloaded",
    "offload_state_dict": "weights always go straight to their devices",
}
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")


class AutoConfig:
    """Configurations by ``model_type``."""

    @classmethod
    def for_model(cls, model_type: str, **values: Any) -> ModelConfig:
        """Makes a config of a type from its keys; keys that are left out have the type's defaults.

        Raises:
            ConfigError: the type is not supported, or a value is wrong.
        """
        file = f"AutoConfig.for_model({model_type!r})"
        return registry.architecture(model_type, file=file).config.from_dict(values, file=file)

    @classmethod
    def from_pretrained(cls, name_or_path: str | PathLike[str] | Checkpoint, **kwargs: Any) -> ModelConfig:
        """Reads the config.json of a checkpoint, or the metadata of a GGUF file.

        Args:
            name_or_path: see `checkpoint.resolve.resolve`.
            kwargs: its arguments; all others override keys of the config.

        Raises:
            CheckpointError: there is no such checkpoint, or no config in it.
            ConfigError: the type or a key is not supported.
        """
        checkpoint = resolve(name_or_path, **{k: kwargs.pop(k) for k in HUB_ARGUMENTS if k in kwargs})
        values, file = read_config(checkpoint)
        model_type = values.get("model_type")
        return registry.architecture(model_type, file=file).config.from_dict(_overridden(values, kwargs), file=file)


def _overridden(values: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A config's keys with the caller's; a number of labels takes the place of names that are not as many."""
    merged = {**values, **kwargs}
    labels = kwargs.get("num_labels")
    if labels is not None and "id2label" not in kwargs and len(values.get("id2label") or ()) != labels:
        merged |= {"id2label": None, "label2id": None}
    return merged


def read_config(checkpoint: Checkpoint) -> tuple[dict[str, Any], str]:
    """Returns the keys of a checkpoint's config and the name of the file that they come from."""
    if checkpoint.gguf:
        from jaxpipe.checkpoint.gguf import GGUFFile

        return GGUFFile(checkpoint.gguf).config(), str(checkpoint.gguf)
    values = checkpoint.read_json("config.json")
    if values is None:
        raise CheckpointError(
            f"{checkpoint.name!r} has no config.json; give a directory or repository that holds one, or a .gguf file."
        )
    return values, str(checkpoint.file("config.json"))


class _AutoModel:
    """Base of the Auto classes of models."""

    head: ClassVar[str]

    @overload
    @classmethod
    def from_pretrained(
        cls, name_or_path: str | PathLike[str] | Checkpoint, *, output_loading_info: bool = False, **kwargs: Any
    ) -> PreTrainedModel: ...
    @overload
    @classmethod
    def from_pretrained(
        cls, name_or_path: str | PathLike[str] | Checkpoint, *, output_loading_info: bool, **kwargs: Any
    ) -> Any: ...
    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | PathLike[str] | Checkpoint,
        *,
        config: ModelConfig | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device_map: Any = None,
        mesh: jax.sharding.Mesh | None = None,
        max_memory: Mapping[Any, Any] | None = None,
        matmul_precision: str | None = None,
        attn_implementation: str | None = None,
        generation_config: GenerationConfig | None = None,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Loads a checkpoint; every weight goes straight to its devices.

        Args:
            name_or_path: a Hub id, a directory, a ``.gguf`` file, or ``package://NAME/path``.
            config: used instead of the checkpoint's own.
            dtype: of the weights and the computation; ``"auto"`` (the default) for the checkpoint's own,
                which on CPU means float32.
            torch_dtype: the older name of `dtype`.
            device_map: None for the default device, ``"auto"``, a device, or sizes of mesh axes such as
                ``{"data": 2, "tensor": 4}``; see `sharding.plan.make_plan`.
            mesh: a ready mesh, instead of `device_map`.
            max_memory: bounds per device, such as ``{0: "10GiB"}``.
            matmul_precision: such as ``"default"``; None gives float32 models full precision.
            attn_implementation: accepted names map to the one dispatcher.
            generation_config: used instead of the checkpoint's own.
            output_loading_info: also return a dict of ``missing_keys``, ``unexpected_keys``,
                ``mismatched_keys`` and ``error_msgs``.
            ignore_mismatched_sizes: draw weights at random whose shape in the checkpoint is another one, such as those
                of a classifier for other labels, instead of raising; a warning lists them.
            kwargs: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``,
                ``subfolder``, ``variant``; other names override keys of the config.

        Raises:
            CheckpointError: a file is missing or damaged.
            ConfigError: the architecture or a key of its config is not supported.
            WeightsError: the weights do not make up the model; lists all that is wrong.
            PlacementError: the model does not fit.
        """
        checkpoint = resolve(name_or_path, **{k: kwargs.pop(k) for k in HUB_ARGUMENTS if k in kwargs})
        _say_without_effect(kwargs, attn_implementation)
        if config is None:
            values, file = read_config(checkpoint)
            architecture = registry.architecture(values.get("model_type"), file=file)
            _check_overrides(kwargs, architecture)
            config = architecture.config.from_dict(_overridden(values, kwargs), file=file)
        else:
            architecture = registry.architecture(config.model_type)
            _check_overrides(kwargs, None)
        source = split_fused(checkpoint.weights(), architecture)
        config = settle_tying(config.get_text_config(), architecture, source)
        wanted = _dtype(dtype if dtype is not None else torch_dtype, config, source, device_map, mesh)
        blueprint = Blueprint(architecture, cls.head, config, wanted)
        blueprint, found = fit(blueprint, source, checkpoint.name, ignore_mismatched=ignore_mismatched_sizes)
        source = redraw(source, found, blueprint, checkpoint.name)
        _say_unexpected(found, checkpoint.name, blueprint)
        built = build(
            blueprint,
            from_source(source, found),
            matmul_precision,
            device_map=device_map,
            mesh=mesh,
            max_memory=max_memory,
        )
        source.close()
        model = PreTrainedModel(
            config,
            cls.head,
            built,
            name_or_path=checkpoint.name,
            generation_config=generation_config or GenerationConfig.from_pretrained(checkpoint),
            checkpoint=checkpoint,
        )
        return (model, _loading_info(blueprint, found)) if output_loading_info else model

    @classmethod
    def from_config(
        cls,
        config: ModelConfig,
        *,
        dtype: Any = None,
        torch_dtype: Any = None,
        device_map: Any = None,
        mesh: jax.sharding.Mesh | None = None,
        max_memory: Mapping[Any, Any] | None = None,
        matmul_precision: str | None = None,
        seed: int = 0,
    ) -> PreTrainedModel:
        """Makes a model with random weights, drawn on the mesh without a copy on the host.

        Args:
            config: see `AutoConfig.for_model`.
            dtype: ``"auto"`` (the default) is the config's, else float32.
            seed: of the weights; they do not depend on the mesh.
            torch_dtype, device_map, mesh, max_memory, matmul_precision: as in `from_pretrained`.
        """
        config = config.get_text_config()
        wanted = _dtype(dtype if dtype is not None else torch_dtype, config, None, device_map, mesh)
        blueprint = Blueprint(registry.architecture(config.model_type), cls.head, config, wanted)
        built = build(
            blueprint, from_seed(seed), matmul_precision, device_map=device_map, mesh=mesh, max_memory=max_memory
        )
        return PreTrainedModel(config, cls.head, built)


class AutoModel(_AutoModel):
    """The base model, without a head."""

    head = registry.BASE


class AutoModelForCausalLM(_AutoModel):
    """A decoder with a language-model head."""

    head = registry.CAUSAL_LM


class AutoModelForSeq2SeqLM(_AutoModel):
    """An encoder-decoder with a language-model head."""

    head = registry.SEQ2SEQ_LM


class AutoModelForMaskedLM(_AutoModel):
    """An encoder with a masked-language-model head."""

    head = registry.MASKED_LM


class AutoModelForSequenceClassification(_AutoModel):
    """A model with a classification head over whole sequences."""

    head = registry.SEQUENCE_CLASSIFICATION


class AutoModelForTokenClassification(_AutoModel):
    """A model with a classification head over every token."""

    head = registry.TOKEN_CLASSIFICATION


class AutoModelForQuestionAnswering(_AutoModel):
    """A model that marks where in its input an answer begins and ends."""

    head = registry.QUESTION_ANSWERING


def _dtype(
    asked: Any, config: ModelConfig, source: TensorSource | None, device_map: Any, mesh: jax.sharding.Mesh | None
) -> np.dtype:
    """Settles ``dtype="auto"``: the config's, else the first floating-point weight's; on CPU float32."""
    if asked is not None and asked != "auto":
        return to_dtype(asked)
    stored = config.dtype
    if stored is None and source is not None:
        floats = (info.dtype for info in source.infos.values() if jnp.issubdtype(info.dtype, jnp.floating))
        stored = next((dtype.name for dtype in floats if dtype.itemsize in (2, 4)), None)
    wanted = to_dtype(stored or "float32")
    if wanted.itemsize < 4 and _platform(device_map, mesh) == "cpu":
        info_once(
            f"dtype='auto': the weights are {wanted}; on CPU they are kept in float32, which is the fastest there. "
            f"Pass dtype={wanted.name!r} to halve the memory."
        )
        return np.dtype(np.float32)
    return wanted


def _platform(device_map: Any, mesh: jax.sharding.Mesh | None) -> str:
    if mesh is not None:
        return mesh.devices.flat[0].platform
    if isinstance(device_map, jax.Device):
        return device_map.platform
    if isinstance(device_map, str) and device_map.split(":")[0] == "cpu":
        return "cpu"
    return jax.default_backend()


def _say_without_effect(kwargs: dict[str, Any], attn_implementation: str | None) -> None:
    for name, reason in WITHOUT_EFFECT.items():
        if kwargs.pop(name, None) is not None:
            info_once(f"{name} is accepted and has no effect: {reason}.")
    if attn_implementation is not None:
        if attn_implementation not in ATTENTION:
            raise ValueError(
                f"attn_implementation={attn_implementation!r} is not known; accepted: {', '.join(ATTENTION)}, all of "
                "which mean the fastest kernel that the device has."
            )
        info_once(f"attn_implementation={attn_implementation!r}: the fastest kernel that the device has is used.")


def _check_overrides(kwargs: Mapping[str, Any], architecture: registry.Architecture | None) -> None:
    accepted = {*architecture.config.keys(), "num_labels"} if architecture else set()
    for name in kwargs:
        if name not in accepted:
            known = [*HUB_ARGUMENTS, *WITHOUT_EFFECT, *accepted, "dtype", "device_map", "mesh", "max_memory", "config"]
            raise TypeError(f"from_pretrained got an unknown argument {name!r}.{nearest(name, known)}")


def _say_unexpected(found: Match, where: str, blueprint: Blueprint) -> None:
    if found.unexpected:
        logger.warning("%s: %s does not use %s.", where, blueprint.name, _by_module(found.unexpected))
    if blueprint.without and blueprint.head == registry.BASE:
        absent = ", ".join(blueprint.without)
        logger.warning("%s: the checkpoint has no %s; what it would put out is None.", where, absent)


def _by_module(names: list[str]) -> str:
    """Lists names of weights; those of one outermost module as one, where they are many."""
    roots: dict[str, list[str]] = {}
    for name in sorted(names):
        roots.setdefault(name.split(".")[0], []).append(name)
    parts = [[f"{root}.* ({len(own)} weights)"] if len(own) > 8 else own for root, own in roots.items()]
    return ", ".join(name for part in parts for name in part)


def _loading_info(blueprint: Blueprint, found: Match) -> dict[str, Any]:
    whole = dataclasses.replace(blueprint, without=())
    missing = {n for e in whole.entries() for n in e.tensors} - {n for e in blueprint.entries() for n in e.tensors}
    return {
        "missing_keys": missing,
        "unexpected_keys": set(found.unexpected),
        "mismatched_keys": set(found.mismatched),
        "error_msgs": [],
    }
