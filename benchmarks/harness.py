"""Workers in processes of their own, rounds that take turns, and the record of a run."""

import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DISCARDED, COUNTED = 3, 5


class Worker:
    """A process that answers one JSON line with another.

    Args:
        script: below ``workers/``.
        settings: its one argument, as JSON.
        variables: of its environment, beside this process's.
    """

    def __init__(self, script: str, settings: dict[str, Any], variables: dict[str, str] | None = None):
        command = [sys.executable, str(HERE / "workers" / script), json.dumps(settings)]
        paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(variables or {})}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.info = self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and returns the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"A worker ended with status {self._process.wait()}: {self._process.args}")

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(info: dict[str, Any], answer: Any) -> None:
    """The worker's side: says that it is ready, then answers every request by ``answer(**request)``."""
    print(json.dumps(info), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


def spread(values: list[float], digits: int = 4) -> dict[str, float]:
    """Returns median, minimum and maximum."""
    rounded = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in rounded.items()}


def versions() -> dict[str, str]:
    """Returns the versions of what a result depends on, where installed."""
    names = ("jaxpipe", "jax", "jaxlib", "flax", "torch", "transformers", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write(path: str, results: dict[str, Any], device: str) -> None:
    """Writes a result with its origin."""
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": device,
        "versions": versions(),
        **results,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))
