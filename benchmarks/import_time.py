"""Seconds that ``import jaxpipe`` adds to Python's own start: ``python benchmarks/import_time.py``.

Runs of both are interleaved, so that a machine that grows busy slows both, and medians are compared.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path


def seconds(code: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    return time.perf_counter() - begin


def measure(rounds: int) -> dict[str, float]:
    statements = {"python": "pass", "jaxpipe": "import jaxpipe", "pipeline": "from jaxpipe import pipeline"}
    for code in statements.values():
        seconds(code)  # the first run compiles bytecode
    runs = [{name: seconds(code) for name, code in statements.items()} for _ in range(rounds)]
    medians = {name: statistics.median(run[name] for run in runs) for name in statements}
    return {
        "python_start_s": round(medians["python"], 4),
        "import_jaxpipe_s": round(medians["jaxpipe"] - medians["python"], 4),
        "import_pipeline_s": round(medians["pipeline"] - medians["python"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", help="a JSON file, e.g. benchmarks/results/import_time.json")
    options = parser.parse_args()
    record = {
        "benchmark": "import_time",
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "machine": platform.platform(),
        **measure(options.rounds),
    }
    text = json.dumps(record, indent=2)
    print(text)
    if options.output:
        Path(options.output).write_text(text + "\n")


if __name__ == "__main__":
    main()
