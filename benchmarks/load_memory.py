"""How much host memory does loading take beyond the weights themselves?

Writes a random Llama-shaped checkpoint, loads it on CPU in a fresh process, and reports the peak of that
process less the device arrays, the mapped file and what the process held before:
    python benchmarks/load_memory.py --width 2048 --vocabulary 131072 --output benchmarks/results/load_memory.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHAPE = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 2}

LOAD = """
import json, sys
from pathlib import Path

def status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024

import jax
from jaxpipe.auto import AutoModelForCausalLM
jax.block_until_ready(jax.numpy.ones(3) + 1)
before = status("VmRSS")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=sys.argv[2])
arrays = list(model.functional()[1].values())
jax.block_until_ready(arrays)
print(json.dumps({
    "before": before,
    "peak": status("VmHWM"),
    "device_arrays": sum(array.nbytes for array in arrays),
    "largest_array": max(array.nbytes for array in arrays),
    "file": Path(sys.argv[1], "model.safetensors").stat().st_size,
}))
"""


def measure(width: int, features: int, vocabulary: int, stored: str, dtype: str) -> dict[str, Any]:
    """Loads a checkpoint stored in one dtype as another; returns bytes."""
    with tempfile.TemporaryDirectory() as directory:
        config = {**SHAPE, "hidden_size": width, "intermediate_size": features, "vocab_size": vocabulary}
        make = (
            "import sys, json; from jaxpipe.auto import *; "
            "c = AutoConfig.for_model('llama', **json.loads(sys.argv[2])); "
            f"AutoModelForCausalLM.from_config(c, dtype='{stored}').save_pretrained(sys.argv[1])"
        )
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
        run = {"check": True, "env": environment, "text": True}
        subprocess.run([sys.executable, "-c", make, directory, json.dumps(config)], **run)
        loaded = subprocess.run([sys.executable, "-c", LOAD, directory, dtype], **run, stdout=subprocess.PIPE)
    found = json.loads(loaded.stdout.splitlines()[-1])
    beyond = found["peak"] - found["before"] - found["device_arrays"] - found["file"]
    return {**found, "beyond": beyond, "beyond_of_largest": round(beyond / found["largest_array"], 3)}


def main() -> None:
    """Measures and writes the record."""
    from harness import write

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--features", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=131072)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    sizes = arguments.width, arguments.features, arguments.vocabulary
    forms = [("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")]
    write(arguments.output, {f"{a} as {b}": measure(*sizes, a, b) for a, b in forms}, "cpu")


if __name__ == "__main__":
    main()
