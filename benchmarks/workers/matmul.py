"""Worker: the machine's own ceiling of a matrix product, operations a second. Settings: dtype."""

import json
import sys
import time

import jax
import jax.numpy as jnp
from harness import serve

settings = json.loads(sys.argv[1])
a, b = (jax.random.normal(jax.random.key(i), (4096, 4096), settings["dtype"]) for i in range(2))
# As in a model whose float32 means float32.
product = jax.jit(lambda a, b: jnp.dot(a, b, precision="highest" if a.dtype == jnp.float32 else None))
product(a, b).block_until_ready()


def answer() -> dict[str, float]:
    """Multiplies two matrices of 4096 by 4096."""
    start = time.perf_counter()
    product(a, b).block_until_ready()
    return {"flop_per_s": 2 * 4096**3 / (time.perf_counter() - start)}


serve({"ready": True}, answer)
