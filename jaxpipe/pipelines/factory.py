"""`pipeline`: from a task and a model to a ready pipeline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpipe.checkpoint.resolve import Checkpoint, resolve
from jaxpipe.common.dtypes import to_dtype
from jaxpipe.common.logging import info_once, logger, warn_once
from jaxpipe.pipelines.custom import entry_of, noted_tasks, only_task
from jaxpipe.pipelines.registry import (
    check_task,
    default_model,
    get_supported_tasks,
    infer_task,
    model_classes,
)

_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder", "variant")
_PLACEMENT = ("device_map", "mesh", "max_memory")
# Arguments of from_pretrained that may stand beside model_kwargs as well as in it.
_MODEL = (*_PLACEMENT, "attn_implementation", "low_cpu_mem_usage", "matmul_precision")
_OTHER_INPUTS = ("feature_extractor", "image_processor", "video_processor", "processor")


def pipeline(
    task: str | None = None,
    model: Any = None,
    config: Any = None,
    tokenizer: Any = None,
    revision: str | None = None,
    use_fast: bool = True,
    token: str | bool | None = None,
    device: Any = None,
    device_map: Any = None,
    dtype: Any = "auto",
    trust_remote_code: bool | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    pipeline_class: type | None = None,
    **kwargs: Any,
) -> Any:
    """Makes a pipeline.

    Args:
        task: a task or alias of `get_supported_tasks`; None: what the model's config.json says it is for: the task of
            the registered pipeline that saved it, else what its architecture tells.
        model: Hub id, directory, .gguf file, ``package://`` path or a loaded model; None: the task's default.
        config: a config, or the name of one, instead of the model's.
        tokenizer: a tokenizer, its name, or a pair (name, arguments); None: the model's.
        revision: branch, tag or commit of the model's repository.
        use_fast: accepted; tokenizers are always fast ones.
        token: for the Hub.
        device: a device, its name (``"cpu"``, ``"gpu:1"``, ``"cuda:1"``) or ordinal; -1 is the CPU.
        device_map: ``"auto"``, a device, or mesh axes such as ``{"data": 2, "tensor": 4}``.
        dtype: of the weights: a jnp dtype, its name, or ``"auto"`` for the checkpoint's own; ``torch_dtype`` is the
            same.
        trust_remote_code: accepted; code of a repository is never run.
        model_kwargs: more arguments of ``from_pretrained``.
        pipeline_class: a subclass of `Pipeline` instead of the task's own.
        **kwargs: ``mesh``, ``max_memory``, ``attn_implementation``; Hub arguments (``cache_dir``,
            ``local_files_only``, ``force_download``, ``subfolder``, ``variant``); ``assistant_model``, a loaded model
            or the name of one that proposes tokens to the model (see `generate`); ``batch_size``,
            ``progress_bar``; and defaults of the parameters of calls.

    Returns:
        A `Pipeline`.

    Raises:
        KeyError: the task is unknown.
        ValueError: the model was saved by a pipeline of the user's own, which is not registered.
        RuntimeError: there is neither task nor model, a tokenizer without model, or the task cannot be told.
        ValueError: an argument is wrong or given twice.
        OSError: the checkpoint is missing or damaged.
    """
    _check_framework(kwargs)
    if task is None and model is None:
        raise RuntimeError(f"pipeline() needs a task or a model. The tasks are {get_supported_tasks()}.")
    if model is None and tokenizer is not None:
        raise RuntimeError("tokenizer= is given without model=; it may not fit the task's default model. Give both.")
    # A task that is not registered may be one that the model's config names.
    entry = None if task is None or (model is not None and not _is_known(task)) else check_task(task)[1]
    if model is None and task is not None and entry is not None:
        model, default_revision = default_model(task, entry)
        revision = default_revision if revision is None else revision
        logger.warning("No model was given for %s; using %s.", task, model)
    given = dict(model_kwargs or {})
    hub: dict[str, Any] = {}
    _move(_HUB, kwargs, given, {"revision": revision, "token": token}, into=hub)
    _move(_MODEL, kwargs, given, {"device_map": device_map}, into=given)
    _settle_dtype(dtype, kwargs, given)
    _settle_device(device, given)
    loaded = not isinstance(model, (str, Path, Checkpoint))
    checkpoint = None if loaded else _resolved(model, hub, task, entry)
    if task is None or entry is None:
        task, entry = _noted_or_inferred(model if loaded else checkpoint, task, pipeline_class, loaded)
    chosen = pipeline_class if pipeline_class is not None else (entry or {})["impl"]
    ready = _check_loaded(model, given) if loaded else _load_model(checkpoint, config, entry or {}, hub, given, task)
    if trust_remote_code:
        warn_once("trust_remote_code= has no effect: jaxpipe never runs code of a repository.")
    if not use_fast:
        info_once("use_fast= has no effect: tokenizers are always fast ones.")
    if getattr(chosen, "_load_tokenizer", None) is not False:
        local = {name: value for name, value in hub.items() if name in ("token", "cache_dir", "local_files_only")}
        kwargs["tokenizer"] = _load_tokenizer(tokenizer, checkpoint, ready, chosen, local)
    if isinstance(kwargs.get("assistant_model"), (str, Path)):
        _load_assistant(kwargs, ready, hub)
    return chosen(model=ready, task=task, **kwargs)


def _check_framework(kwargs: dict[str, Any]) -> None:
    """Refuses what belongs to other frameworks, or to tasks with other inputs than text."""
    framework = kwargs.pop("framework", None)
    if framework not in (None, "jax", "flax"):
        raise ValueError(
            f"framework={framework!r}: jaxpipe computes with JAX, and arrays go in and out as numpy or jax arrays. "
            "Leave framework= out."
        )
    kwargs.pop("modelcard", None)
    for name in _OTHER_INPUTS:
        if kwargs.pop(name, None) is not None:
            raise ValueError(f"{name}= is given, but the tasks {get_supported_tasks()} take text; give tokenizer=.")


def _move(
    names: tuple[str, ...], kwargs: dict[str, Any], given: dict[str, Any], named: Mapping[str, Any], *, into: Any
) -> None:
    """Moves arguments of ``names`` from where they were given to ``into``; each may be given once.

    Raises:
        ValueError: an argument is given both to pipeline() and in model_kwargs.
    """
    for name in names:
        outside = kwargs.pop(name, named.get(name))
        inside = given.pop(name, None)
        if outside is not None and inside is not None:
            raise ValueError(f"{name} is given twice: as {name}={outside!r} and in model_kwargs={{...}}; give one.")
        value = inside if outside is None else outside
        if value is not None:
            into[name] = value


def _settle_dtype(dtype: Any, kwargs: dict[str, Any], given: dict[str, Any]) -> None:
    """Leaves one ``dtype`` in ``given``, from the four places where it may stand."""
    places = {
        "dtype=": None if isinstance(dtype, str) and dtype == "auto" else dtype,
        "torch_dtype=": kwargs.pop("torch_dtype", None),
        "model_kwargs['dtype']": given.pop("dtype", None),
        "model_kwargs['torch_dtype']": given.pop("torch_dtype", None),
    }
    found = {place: value for place, value in places.items() if value is not None}
    if len(found) > 1:
        raise ValueError(f"The dtype is given more than once: {' and '.join(found)}; give one.")
    value = next(iter(found.values()), "auto")
    given["dtype"] = value if isinstance(value, str) and value == "auto" else to_dtype(value)


def _settle_device(device: Any, given: dict[str, Any]) -> None:
    if device is None:
        return
    if given.get("device_map") is not None or given.get("mesh") is not None:
        other = "device_map" if given.get("device_map") is not None else "mesh"
        raise ValueError(f"device={device!r} and {other}= both say where the model goes; give one.")
    given["device_map"] = "cpu" if device == -1 and not isinstance(device, bool) else device


def _is_known(task: str) -> bool:
    try:
        check_task(task)
    except KeyError:
        return False
    return True


def _resolved(model: Any, hub: Mapping[str, Any], task: str | None, entry: Mapping[str, Any] | None) -> Checkpoint:
    try:
        return resolve(model, **hub)
    except OSError:
        if task is not None and entry is None:
            # Without a config that names it, an unknown task is what is wrong first.
            check_task(task)
        raise


def _noted_or_inferred(
    source: Any, task: str | None, pipeline_class: type | None, loaded: bool
) -> tuple[str, Mapping[str, Any]]:
    """Returns the task, as given, as the config of the model names it or as its architecture tells, and its entry."""
    noted = noted_tasks(source)
    where = f"the model {type(source).__name__}" if loaded else repr(source.name)
    if task is None:
        task = only_task(noted, where) or _inferred_task(source, loaded)
    return task, entry_of(task, noted, pipeline_class, where)


def _inferred_task(source: Any, loaded: bool) -> str:
    """Returns the task of a checkpoint.

    Raises:
        RuntimeError: it cannot be told.
    """
    if loaded:
        raise RuntimeError(f"The task of a loaded {type(source).__name__} is not known; give task=.")
    if source.gguf is not None:
        return "text-generation"
    architectures = (source.read_json("config.json") or {}).get("architectures") or []
    task = infer_task(architectures)
    if task is None:
        raise RuntimeError(
            f"The task of {source.name!r} cannot be told from the architectures {architectures} in its config.json; "
            f"give task=, one of {get_supported_tasks()}."
        )
    logger.info("The task of %s is %s, by its architectures %s.", source.name, task, architectures)
    return task


def _load_model(
    checkpoint: Any, config: Any, entry: Mapping[str, Any], hub: Mapping[str, Any], given: dict[str, Any], task: str
) -> Any:
    classes = model_classes(entry)
    if not classes:
        raise ValueError(f"The task {task!r} was registered without model_class=; give a loaded model as model=.")
    if isinstance(config, (str, Path)):
        from jaxpipe.auto import AutoConfig

        config = AutoConfig.from_pretrained(config, **{name: hub[name] for name in hub if name != "revision"})
    if config is not None:
        given = {**given, "config": config}
    refused: list[str] = []
    for number, auto in enumerate(classes):
        try:
            return auto.from_pretrained(checkpoint, **given)
        except ValueError as error:
            # A model type that one Auto class lacks may be one that another has.
            if number == len(classes) - 1 and not refused:
                _point_to_task(error, checkpoint, task, classes)
                raise
            refused.append(f"{getattr(auto, '__name__', auto)}: {error}")
    raise ValueError(f"{checkpoint.name!r} could not be loaded for {task!r}:\n" + "\n".join(refused))


def _load_assistant(kwargs: dict[str, Any], model: Any, hub: Mapping[str, Any]) -> None:
    """Loads the assistant model that `kwargs` names to where the model lies, in its dtype; and its tokenizer, where
    the size of its vocabulary is another.
    """
    from jaxpipe import auto
    from jaxpipe.tokenization import AutoTokenizer

    where = {name: value for name, value in hub.items() if name in ("token", "cache_dir", "local_files_only")}
    has_encoder = getattr(model.config, "is_encoder_decoder", False)
    loader = auto.AutoModelForSeq2SeqLM if has_encoder else auto.AutoModelForCausalLM
    name = kwargs["assistant_model"]
    assistant = loader.from_pretrained(name, dtype=model.dtype, mesh=model.mesh, **where)
    kwargs["assistant_model"] = assistant
    if kwargs.get("assistant_tokenizer") is None and assistant.config.vocab_size != model.config.vocab_size:
        kwargs["assistant_tokenizer"] = AutoTokenizer.from_pretrained(name, **where)


def _point_to_task(error: ValueError, checkpoint: Checkpoint, task: str, classes: tuple[Any, ...]) -> None:
    """Adds to a refused checkpoint's error for which task it is, where that is another than the one asked for."""
    config = {} if checkpoint.gguf is not None else checkpoint.read_json("config.json") or {}
    architectures = config.get("architectures") or []
    meant = "text-generation" if checkpoint.gguf is not None else infer_task(architectures)
    if meant is not None and model_classes(check_task(meant)[1]) != classes:
        error.add_note(f"The checkpoint {checkpoint.name!r} is for the task {meant!r}, not for {task!r}.")


def _check_loaded(model: Any, given: Mapping[str, Any]) -> Any:
    """Returns a loaded model after checking that nothing asks for it to be loaded otherwise.

    Raises:
        ValueError: an argument would need the model to be loaded again.
    """
    if not callable(model):
        raise TypeError(f"model= takes a name, a path or a loaded model, not {type(model).__name__} {model!r}.")
    asked = dict(given)
    dtype = asked.pop("dtype")
    if not isinstance(dtype, str) and to_dtype(model.dtype) != dtype:
        raise ValueError(f"dtype={dtype.name} is given, but the model is loaded in {to_dtype(model.dtype).name}.")
    device_map = asked.pop("device_map", None)
    if device_map is not None and not _lies_there(model, device_map):
        raise ValueError(
            f"device or device_map {device_map!r} is given, but the model is loaded on {model.mesh.devices.size} "
            f"device(s), the first of which is {model.mesh.devices.flat[0]}; pass device_map= to from_pretrained."
        )
    for name, value in asked.items():
        if value is not None and name != "low_cpu_mem_usage":
            raise ValueError(f"{name}= is given, but the model is loaded already; pass it to from_pretrained.")
    return model


def _lies_there(model: Any, device_map: Any) -> bool:
    """Whether a loaded model lies where it is asked for; "auto" leaves that open."""
    from jaxpipe.sharding.device_map import AUTOMATIC, find_device

    if isinstance(device_map, str) and device_map in AUTOMATIC:
        return True
    if isinstance(device_map, Mapping):
        return {axis: size for axis, size in model.mesh.shape.items() if size > 1} == {
            axis: size for axis, size in device_map.items() if size > 1
        }
    return list(model.mesh.devices.flat) == [find_device(device_map)]


def _load_tokenizer(tokenizer: Any, checkpoint: Any, model: Any, chosen: Any, arguments: dict[str, Any]) -> Any:
    from jaxpipe.tokenization import AutoTokenizer

    if isinstance(tokenizer, tuple):
        if len(tokenizer) != 2 or not isinstance(tokenizer[1], Mapping):
            raise ValueError(f"tokenizer= takes a tokenizer, a name or a pair (name, arguments), not {tokenizer!r}.")
        tokenizer, arguments = tokenizer[0], {**arguments, **tokenizer[1]}
    if isinstance(tokenizer, (str, Path)):
        return AutoTokenizer.from_pretrained(tokenizer, **arguments)
    if tokenizer is not None:
        return tokenizer
    required = getattr(chosen, "_load_tokenizer", None) is True
    if checkpoint is None:
        name = getattr(model, "name_or_path", None) or getattr(getattr(model, "config", None), "_name_or_path", None)
        if not name:
            if required:
                raise ValueError("The tokenizer of a loaded model without name_or_path is not known; give tokenizer=.")
            return None
        checkpoint = name
    try:
        return AutoTokenizer.from_pretrained(checkpoint, **arguments)
    except OSError:
        if required:
            raise
        return None
