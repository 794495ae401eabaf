"""What do the engine's extras cost or gain: prompt lookup, 8-bit caches, streaming, compilation, the host's part?

Random weights of real shapes. On an H100:
    python benchmarks/engine.py --shape llama-3.1-8b --dtype bfloat16 --output benchmarks/results/engine_h100.json
"""

import argparse
import tempfile
from typing import Any

from harness import COUNTED, DISCARDED, Worker, spread, write

LOOKUP = "prompt_lookup_num_tokens"
PARTS = ("lookup", "cache", "stream", "compile", "host")


def pairs(worker: Worker, work: dict[str, Any], forms: dict[str, dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Times forms of the same work in turns, the first call of each discarded; decode alone, in tokens a second."""
    found: dict[str, list[float]] = {name: [] for name in forms}
    last: dict[str, dict[str, Any]] = {}
    for index in range(rounds + 1):
        for name, form in forms.items():
            last[name] = worker.ask(**work, **form)
            one = worker.ask(**{**work, "new": 1}, **form)
            if index:
                tokens = work["batch"] * (work["new"] - 1)
                found[name].append(tokens / (last[name]["seconds"] - one["seconds"]))
    results: dict[str, Any] = {name: {"decode_tokens_per_s": spread(values, 2)} for name, values in found.items()}
    plain, *others = results
    for name in others:
        ratio = results[name]["decode_tokens_per_s"]["median"] / results[plain]["decode_tokens_per_s"]["median"]
        results[name]["of_plain"] = round(ratio, 3)
    for name, answer in last.items():
        results[name] |= {"peak_bytes": answer["peak_bytes"], "distinct_tokens": answer["distinct"]}
    return results


def lookup(settings: dict[str, Any], memory: dict[str, str], rounds: int) -> dict[str, Any]:
    """Prompt lookup and plain decoding, of text that repeats itself every 32 tokens and of text that never does."""
    work, forms = {"batch": 1, "prompt": 256, "new": 256}, {"plain": {}, "lookup": {LOOKUP: 10}}
    results: dict[str, Any] = {"work": work, "settings": forms["lookup"]}
    for name, cycle in {"repetitive": 32, "not repetitive": None}.items():
        worker = Worker("jaxpipe_decode.py", {**settings, "cycle": cycle}, memory)
        results[name] = pairs(worker, work, forms, rounds)
        worker.close()
    return results


def stream(worker: Worker, rounds: int) -> dict[str, Any]:
    """The same tokens, streamed and not."""
    work = {"batch": 1, "prompt": 128, "new": 256}
    return {"work": work, **pairs(worker, work, {"plain": {}, "streamed": {"stream": True}}, rounds)}


def cache(settings: dict[str, Any], work: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Decode over a long cache in 16 and in 8 bits, each in a process of its own, for its peak of memory.

    Rounds are parts of one call's decode, since the prompts take longer to read than the tokens to write.
    """
    results: dict[str, Any] = {"work": work}
    quantised = {"cache_implementation": "quantized", "cache_config": {"dtype": "int8"}}
    parts = DISCARDED + rounds
    for name, form in {"plain": {}, "int8": quantised}.items():
        worker = Worker("jaxpipe_decode.py", settings, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"})
        answer = worker.ask(**{**work, "new": parts * work["new"] + 1}, **form, parts=parts)
        decoded = work["batch"] * work["new"]
        counted = [decoded / seconds for seconds in answer["decode"][DISCARDED:]]
        results[name] = {"decode_tokens_per_s": spread(counted, 2), "peak_bytes": answer["peak_bytes"]}
        tokens = work["batch"] * (work["prompt"] + parts * work["new"])
        results[name]["cache_bytes"] = worker.info["cache_bytes_per_token"][name] * tokens
        worker.close()
    plain, int8 = (results[name]["decode_tokens_per_s"]["median"] for name in ("plain", "int8"))
    results["int8"]["of_plain"] = round(int8 / plain, 3)
    return results


def compilation(settings: dict[str, Any], memory: dict[str, str]) -> dict[str, Any]:
    """The first call of a process with an empty compile cache, and of another one after it."""
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in ("cold", "warm"):
            worker = Worker("jaxpipe_decode.py", settings, {**memory, "JAX_COMPILATION_CACHE_DIR": directory})
            first, second = (worker.ask(batch=1, prompt=128, new=32)["seconds"] for _ in range(2))
            results[name] = {"first_call_s": round(first, 2), "second_call_s": round(second, 4)}
            worker.close()
    return results


def host(worker: Worker, rounds: int) -> dict[str, Any]:
    """What a call takes beyond its two jitted functions, from the user's ids to the answer as a numpy array: checks,
    placing, fetching and what is around them. Calls follow one another, as those of a server do.
    """
    results: dict[str, Any] = {"work": {"batch": 1, "prompt": 128, "new": 8}}
    times = worker.ask(**results["work"], host=10 * rounds + DISCARDED)["call_and_alone"][DISCARDED:]
    whole, alone = zip(*times, strict=True)
    results["whole_call_ms"] = spread([1e3 * seconds for seconds in whole])
    results["functions_alone_ms"] = spread([1e3 * seconds for seconds in alone])
    results["host_ms"] = spread([1e3 * (call - own) for call, own in times])
    return results


def main() -> None:
    """Runs the parts and writes the record after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--long", default="32x8064x64", help="work of the part cache: batch x prompt x new a round")
    parser.add_argument("--rounds", type=int, default=COUNTED)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    settings = {"shape": arguments.shape, "dtype": arguments.dtype}
    memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"}
    results: dict[str, Any] = {}

    def record(part: str, found: dict[str, Any]) -> None:
        results[part] = found
        write(arguments.output, {**settings, "parts": results}, device)

    worker = Worker("jaxpipe_decode.py", settings, memory)
    device = worker.info["device"]
    if "stream" in arguments.parts:
        record("stream", stream(worker, arguments.rounds))
    if "host" in arguments.parts:
        record("host", host(worker, arguments.rounds))
    worker.close()
    if "lookup" in arguments.parts:
        record("lookup", lookup(settings, memory, arguments.rounds))
    if "compile" in arguments.parts:
        record("compile", compilation(settings, memory))
    if "cache" in arguments.parts:
        batch, prompt, new = (int(part) for part in arguments.long.split("x"))
        record("cache", cache(settings, {"batch": batch, "prompt": prompt, "new": new}, arguments.rounds))


if __name__ == "__main__":
    main()
