"""How fast are prompts read: operations a second of one call that puts out one token, beside Transformers?

Random weights of real shapes. On an H100:
    python benchmarks/prefill.py --shape llama-3.1-8b --dtype bfloat16 --work 8x2048 --work 1x8064
Work is batch x prompt. What is timed is the whole of ``generate(max_new_tokens=1)``, the host's part included.
"""

import argparse
from typing import Any

from harness import COUNTED, DISCARDED, Worker, spread, write
from shapes import SHAPES

PEERS = {"bare jax": "bare_decode.py", "transformers": "transformers_decode.py"}


def operations(shape: dict[str, Any], batch: int, prompt: int) -> float:
    """Returns the operations of a prefill: matrix products, causal attention, and the head for the last token."""
    width, layers = shape["hidden_size"], shape["num_hidden_layers"]
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    head = shape.get("head_dim") or width // heads
    attention = 2 * width * head * (heads + kv_heads)
    weights = layers * (attention + 3 * width * shape["intermediate_size"])
    seen = layers * 2 * heads * head * prompt  # scores and mixing of half the keys, on the average
    return batch * (prompt * (2 * weights + seen) + 2 * width * shape["vocab_size"])


def measure(
    workers: dict[str, Worker], ceiling: Worker, shape: dict[str, Any], work: str, rounds: int
) -> dict[str, Any]:
    """Times one kind of work on every worker, round by round."""
    batch, prompt = (int(part) for part in work.split("x"))
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    rate = []
    for index in range(DISCARDED + rounds):
        for name, worker in workers.items():
            taken = worker.ask(batch=batch, prompt=prompt, new=1)["seconds"]
            if index >= DISCARDED:
                seconds[name].append(taken)
        rate.append(ceiling.ask()["flop_per_s"] / 1e12)
    needed = operations(shape, batch, prompt)
    results: dict[str, Any] = {"ceiling_tflop_per_s": spread(rate[DISCARDED:], 1)}
    for name, taken in seconds.items():
        results[name] = {"seconds": spread(taken), "tflop_per_s": spread([needed / s / 1e12 for s in taken], 1)}
    return results


def main() -> None:
    """Runs every work on every worker and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--work", action="append", required=True, help="batch x prompt, such as 8x2048")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--memory", type=float, default=0.3, help="of the device, for each worker that runs JAX")
    parser.add_argument("--rounds", type=int, default=COUNTED)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    settings = {"shape": arguments.shape, "dtype": arguments.dtype}
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": str(arguments.memory)}
    workers = {"jaxpipe": Worker("jaxpipe_decode.py", settings, share)}
    for name in arguments.peers:
        workers[name] = Worker(PEERS[name], {**settings, "cache": "dynamic"}, share)
    ceiling = Worker("matmul.py", settings, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})
    shape = SHAPES[arguments.shape]
    results = {work: measure(workers, ceiling, shape, work, arguments.rounds) for work in arguments.work}
    device = workers["jaxpipe"].info["device"]
    for worker in (*workers.values(), ceiling):
        worker.close()
    write(arguments.output, {**settings, "work": results}, device)


if __name__ == "__main__":
    main()
