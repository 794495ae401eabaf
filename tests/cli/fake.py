"""A pipeline without a model: quick, and what it answers shows how it was called."""

import os
import signal
import sys
from typing import Any


class FakePipeline:
    """Answers ``item|seed|index``; an item "bad" raises, an item "kill" ends the process when ``DEADLY`` is set."""

    _pipeline_calls_generate = True

    def __init__(self, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.calls: list[dict[str, Any]] = []

    def __call__(self, inputs: Any, *, batch_size: int = 1, item_offset: int = 0, seed: int | None = None) -> Any:
        self.calls.append({"inputs": inputs, "batch_size": batch_size, "item_offset": item_offset, "seed": seed})
        many = isinstance(inputs, list) and not (inputs and isinstance(inputs[0], dict))
        items = inputs if many else [inputs]
        outputs = [self._one(item, item_offset + number, seed) for number, item in enumerate(items)]
        return outputs if many else outputs[0]

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


if __name__ == "__main__":
    import jaxpipe.pipelines
    from jaxpipe.cli import app

    jaxpipe.pipelines.pipeline = Factory()  # type: ignore[assignment]
    app(sys.argv[1:], prog_name="jaxpipe")
