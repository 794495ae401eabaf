"""How many tokens a second does `model.generate` decode, beside a bare JAX loop and Transformers on torch?

Random weights of real shapes. On an H100:
    python benchmarks/decode.py --shape llama-3.1-8b --dtype bfloat16 --work 1x128x256 --work 32x128x128
On CPU:
    python benchmarks/decode.py --shape smollm2-135m --dtype float32 --work 1x64x64
Work is batch x prompt x new tokens. See benchmarks/README.md for what is counted.
"""

import argparse
import statistics
import time
from typing import Any

from harness import COUNTED, DISCARDED, Worker, spread, write

PEERS = {
    "bare jax loop": ("bare_decode.py", {}),
    "transformers eager": ("transformers_decode.py", {"cache": "dynamic"}),
    "transformers static": ("transformers_decode.py", {"cache": "static"}),
}


def measure(workers: dict[str, Worker], ceiling: Worker, work: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Times one kind of work on every worker, round by round."""
    batch, prompt, new = work
    first: dict[str, float] = {}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
    bandwidth = []
    for index in range(DISCARDED + rounds):
        for name, worker in workers.items():
            start = time.perf_counter()
            # The longer one first: Transformers' static cache only grows.
            whole = worker.ask(batch=batch, prompt=prompt, new=new)["seconds"]
            one = worker.ask(batch=batch, prompt=prompt, new=1)["seconds"]
            if index == 0:
                first[name] = time.perf_counter() - start
            elif index >= DISCARDED:
                seconds[name].append((one, whole))
        bandwidth.append(ceiling.ask()["bytes_per_s"] / 1e9)
    results: dict[str, Any] = {"ceiling_gb_per_s": spread(bandwidth[DISCARDED:], 1)}
    for name, pairs in seconds.items():
        decode = [batch * (new - 1) / (whole - one) for one, whole in pairs]
        results[name] = {
            "decode_tokens_per_s": spread(decode, 2),
            "total_tokens_per_s": spread([batch * new / whole for _, whole in pairs], 2),
            "one_token_s": spread([one for one, _ in pairs]),
            "first_calls_s": round(first[name], 2),
        }
    ours = results["jaxpipe"]["decode_tokens_per_s"]["median"]
    results["jaxpipe"]["roof_tokens_per_s"] = round(roof(workers["jaxpipe"].info, work, bandwidth[DISCARDED:]), 1)
    results["jaxpipe"]["of_roof"] = round(ours / results["jaxpipe"]["roof_tokens_per_s"], 3)
    for name in workers:
        if name != "jaxpipe":
            results[name]["jaxpipe_is_faster_by"] = round(ours / results[name]["decode_tokens_per_s"]["median"], 2)
    read = read_bytes(workers["jaxpipe"].info, batch) * ours / batch / 1e9
    results["jaxpipe"]["weights_read_of_ceiling"] = round(read / results["ceiling_gb_per_s"]["median"], 3)
    return results


def read_bytes(info: dict[str, Any], batch: int) -> float:
    """Returns the bytes of weights that a step reads; rows are taken to choose different experts."""
    left_out = info["expert_bytes"] * (1 - min(batch * info["chosen_part"], 1))
    return info["read_bytes"] - left_out


def roof(info: dict[str, Any], work: tuple[int, int, int], bandwidth: list[float]) -> float:
    """Returns the tokens a second at which weights, and keys and values half way, are read at the copy's bandwidth."""
    batch, prompt, new = work
    read = read_bytes(info, batch) + batch * (prompt + new / 2) * info["cache_bytes_per_token"]["plain"]
    return batch * statistics.median(bandwidth) * 1e9 / read


def main() -> None:
    """Runs every work on every worker and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device-map", default=None)
    parser.add_argument("--work", action="append", required=True, help="batch x prompt x new, such as 1x128x256")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--memory", type=float, default=0.3, help="of the device, for each worker that runs JAX")
    parser.add_argument("--rounds", type=int, default=COUNTED)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    settings = {"shape": arguments.shape, "dtype": arguments.dtype}
    # The workers share the device's memory; JAX would take three quarters of it for itself.
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": str(arguments.memory)}
    ours = {**settings, "device_map": arguments.device_map}
    workers = {"jaxpipe": Worker("jaxpipe_decode.py", ours, share)}
    for name in arguments.peers:
        script, more = PEERS[name]
        workers[name] = Worker(script, {**settings, **more}, share)
    platform = {"platform": workers["jaxpipe"].info["platform"]}
    ceiling = Worker("bandwidth.py", platform, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})
    info = {name: worker.info for name, worker in workers.items()}
    results: dict[str, Any] = {}
    for work in arguments.work:
        batch, prompt, new = (int(part) for part in work.split("x"))
        results[work] = measure(workers, ceiling, (batch, prompt, new), arguments.rounds)
        record = {**settings, "workers": info, "work": results}
        write(arguments.output, record, workers["jaxpipe"].info["device"])
    for worker in (*workers.values(), ceiling):
        worker.close()


if __name__ == "__main__":
    main()
