"""Pipelines of the user's own in a checkpoint: what `save_pretrained` notes of them, and what loading makes of it.

The note is Transformers' key ``custom_pipelines`` of config.json: names of the task, the class and the Auto classes.
The class itself is not stored, and none that a checkpoint brings is run: it has to be registered in the process that
loads.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpipe.common.logging import logger
from jaxpipe.pipelines.registry import SUPPORTED_TASKS, check_task

KEY = "custom_pipelines"


def note_pipeline(directory: Path, pipe: Any) -> None:
    """Adds a pipeline's task to the config.json of a saved model, where it was registered by the user."""
    path = directory / "config.json"
    tasks = _tasks_of(pipe)
    if tasks and path.is_file():
        config = {**json.loads(path.read_text(encoding="utf-8")), KEY: tasks}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _tasks_of(pipe: Any) -> dict[str, dict[str, Any]]:
    """The notes of the tasks that a pipeline's class is registered for: its own task's, else all of them."""
    entries = {task: entry for task, entry in SUPPORTED_TASKS.items() if entry["impl"] is type(pipe)}
    if pipe.task in entries:
        entries = {pipe.task: entries[pipe.task]}
    # A class of jaxpipe, registered under one more name, is still that of its first task.
    if not all(entry.get("registered") for entry in entries.values()):
        return {}
    return {task: _note(entry) for task, entry in entries.items()}


def _note(entry: Mapping[str, Any]) -> dict[str, Any]:
    impl = entry["impl"]
    names = [item if isinstance(item, str) else item.__name__ for item in entry["model_class"]]
    note: dict[str, Any] = {"impl": f"{impl.__module__.rpartition('.')[2]}.{impl.__name__}", "pt": names}
    if entry["default"]:
        note["default"] = {"model": list(entry["default"][0])}
    return note if entry["type"] is None else {**note, "type": entry["type"]}


def noted_tasks(source: Any) -> dict[str, dict[str, Any]]:
    """Returns the notes in the config of a checkpoint or of a loaded model, by task; none where there are none."""
    if hasattr(source, "read_json"):
        found = (source.read_json("config.json") or {}).get(KEY)
    else:
        found = getattr(getattr(source, "config", None), KEY, None)
    if not isinstance(found, Mapping):
        return {}
    return {str(task): dict(note) for task, note in found.items() if isinstance(note, Mapping)}


def only_task(noted: Mapping[str, Any], where: str) -> str | None:
    """Returns the task that is noted, None where none is.

    Raises:
        RuntimeError: there are several.
    """
    if len(noted) > 1:
        raise RuntimeError(f"The config of {where} names several tasks, {sorted(noted)}; give one as task=.")
    return next(iter(noted), None)


def entry_of(task: str, noted: Mapping[str, Any], pipeline_class: type | None, where: str) -> Mapping[str, Any]:
    """Returns the registry's entry of a task; of one that is only noted, an entry with ``pipeline_class``.

    Raises:
        KeyError: the task is neither registered nor noted.
        ValueError: it is noted, not registered, and no ``pipeline_class`` is given.
    """
    try:
        entry = check_task(task)[1]
    except KeyError:
        if task not in noted:
            raise
        return _noted_entry(task, noted[task], pipeline_class, where)
    wanted = str(noted.get(task, {}).get("impl", "")).rpartition(".")[2]
    found = getattr(entry["impl"], "__name__", None)
    if wanted and pipeline_class is None and wanted != found:
        logger.warning("%s was saved by a pipeline %s; the task %r is registered with %s.", where, wanted, task, found)
    return entry


def _noted_entry(task: str, note: Mapping[str, Any], pipeline_class: type | None, where: str) -> dict[str, Any]:
    import jaxpipe.auto

    impl, names = str(note.get("impl", "")), note.get("pt") or []
    names = [names] if isinstance(names, str) else [str(name) for name in names]
    known = [name for name in names if name.startswith("AutoModel") and hasattr(jaxpipe.auto, name)]
    if pipeline_class is None:
        class_name = impl.rpartition(".")[2] or "YourPipeline"
        model_class = f", model_class={known[0]}" if known else ""
        raise ValueError(
            f"{where} was saved by a pipeline for the task {task!r}, {impl or 'of unknown class'}, which is not "
            f"registered in this process; jaxpipe runs no code of a checkpoint. Import the class, then "
            f"PIPELINE_REGISTRY.register_pipeline({task!r}, pipeline_class={class_name}{model_class}); or pass "
            "pipeline_class=; or give another task=."
        )
    return {"impl": pipeline_class, "model_class": tuple(known), "default": (), "type": note.get("type")}
