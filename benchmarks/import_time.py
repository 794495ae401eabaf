"""How many seconds does ``import jaxpipe`` add to Python's own start?

    python benchmarks/import_time.py --output benchmarks/results/import_time.json

The peer is an empty program; rounds take turns, so that a machine that grows busy slows all alike. Each round's
difference to the empty program counts.
"""

import argparse
import platform
import subprocess
import sys
import time
from pathlib import Path

from harness import COUNTED, DISCARDED, spread, write

PROGRAMS = {"import jaxpipe": "import jaxpipe", "import pipeline": "from jaxpipe import pipeline"}


def seconds(code: str) -> float:
    """Runs a program in a process of its own."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3 * COUNTED)
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    empty: list[float] = []
    added: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for index in range(DISCARDED + options.rounds):
        bare = seconds("pass")
        differences = {name: seconds(code) - bare for name, code in PROGRAMS.items()}
        if index >= DISCARDED:
            empty.append(bare)
            for name, difference in differences.items():
                added[name].append(difference)
    results = {"python_start_s": spread(empty), "added_s": {name: spread(values) for name, values in added.items()}}
    write(options.output, results, platform.processor() or platform.machine())


if __name__ == "__main__":
    main()
