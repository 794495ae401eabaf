"""A pipeline without a model: quick, and what it answers shows how it was called."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from jaxpipe.cli import app


class FakePipeline:
    """Answers ``item|seed|index``; an item "bad" raises, an item "kill" ends the process when ``DEADLY`` is set."""

    _pipeline_calls_generate = True

    def __init__(self, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, inputs: Any, *, batch_size: int | None = None, item_offset: int = 0, seed: int | None = None
    ) -> Any:
        items = list(inputs.items)
        self.calls.append({"inputs": items, "batch_size": batch_size, "item_offset": item_offset, "seed": seed})
        return (self._one(item, item_offset + number, seed) for number, item in enumerate(items))

    def check_item(self, item: Any, where: str) -> Any:
        if item is None:
            raise TypeError(f"{where} is None")
        return item

    def _one(self, item: Any, index: int, seed: int | None) -> Any:
        if item == "kill" and os.environ.get("DEADLY"):
            os.kill(os.getpid(), getattr(signal, os.environ["DEADLY"]))
        if item == "bad":
            raise ValueError("this row is bad")
        if isinstance(item, list):
            reply = {"role": "assistant", "content": f"You said: {item[-1]['content']}"}
            return [{"generated_text": [*item, reply]}]
        return [{"generated_text": f"{item}|{seed}|{index}"}]


class Factory:
    """Stands in for ``jaxpipe.pipelines.pipeline`` and remembers what it made."""

    def __init__(self) -> None:
        self.made: list[FakePipeline] = []
        self.arguments: list[dict[str, Any]] = []

    def __call__(self, task: str, model: Any = None, tokenizer: Any = None, dtype: Any = None, **rest: Any) -> Any:
        known = ("revision", "device_map", "model_kwargs")
        self.arguments.append({"task": task, "model": model, "tokenizer": tokenizer, "dtype": dtype, **rest})
        self.made.append(FakePipeline({key: value for key, value in rest.items() if key not in known}))
        return self.made[-1]


def run(*arguments: str, code: int = 0):
    """``jaxpipe run c.yaml`` in the working directory; it must end with ``code``."""
    result = CliRunner().invoke(app, ["run", "c.yaml", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    import jaxpipe.pipelines

    jaxpipe.pipelines.pipeline = Factory()  # type: ignore[assignment]
    app(sys.argv[1:], prog_name="jaxpipe")
