"""Answers as people read them in a terminal."""

import json
from typing import Any

from rich.console import Console

from jaxpipe.cli.record import plain

_PREVIEW = 8
# Where records of tasks that write have their text.
_TEXTS = ("generated_text", "summary_text", "translation_text")


def console(stderr: bool = False) -> Console:
    """A console that prints a model's words as they are: no markup, no colours guessed from them, no wrapping."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=True)


def answer_text(output: Any) -> str:
    """The part of a pipeline's output that answers: the reply of a chat, the text of a generation, else JSON."""
    records = output if isinstance(output, list) else [output]
    texts = [_record_text(record) for record in records]
    if texts and all(text is not None for text in texts):
        return "\n".join(str(text) for text in texts)
    shape = _shape(output)
    if shape is not None:
        return f"array of shape {shape}: {', '.join(f'{number:.4f}' for number in _first(output))}, ..."
    return json.dumps(output, ensure_ascii=False, indent=2, default=plain)


def prompt_text(item: Any) -> str:
    """What was asked: the last message of a chat, else the item itself."""
    if isinstance(item, list) and item and isinstance(item[-1], dict):
        return _content(item[-1].get("content"))
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False, default=plain)


def _record_text(record: Any) -> str | None:
    key = next((key for key in _TEXTS if key in record), None) if isinstance(record, dict) else None
    if key is None:
        return None
    generated = record[key]
    if isinstance(generated, list) and generated and isinstance(generated[-1], dict):
        return _content(generated[-1].get("content"))
    return str(generated)


def _content(content: Any) -> str:
    """The text of a message, whose content may be a list of typed parts."""
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content).strip()
    return "" if content is None else str(content)


def _shape(output: Any) -> tuple[int, ...] | None:
    """The shape of an array or of equally nested lists of numbers, None for anything else or anything small."""
    shape = getattr(output, "shape", None)
    if shape is None:
        sizes: list[int] = []
        inner = output
        while isinstance(inner, list) and inner:
            sizes.append(len(inner))
            inner = inner[0]
        shape = tuple(sizes) if isinstance(inner, int | float) and not isinstance(inner, bool) else ()
    total = 1
    for size in shape:
        total *= size
    return tuple(shape) if shape and total > _PREVIEW else None


def _first(output: Any) -> list[float]:
    """The first numbers of an array or of nested lists."""
    while len(output) and hasattr(output[0], "__len__"):
        output = output[0]
    return [float(number) for number in output[:_PREVIEW]]
