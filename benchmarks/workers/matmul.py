"""Worker: the machine's own ceiling of a matrix product, operations a second. Settings: dtype."""

import json
import sys
import time

import jax
import jax.numpy as jnp
from harness import serve

settings = json.loads(sys.argv[1])
# As large as it takes to reach the ceiling, and so many times that the host does not count.
size, times = (4096, 1) if jax.default_backend() == "cpu" else (8192, 10)
a, b = (jax.random.normal(jax.random.key(i), (size, size), settings["dtype"]) for i in range(2))
# As in a model whose float32 means float32.
product = jax.jit(lambda a, b: jnp.dot(a, b, precision="highest" if a.dtype == jnp.float32 else None))
product(a, b).block_until_ready()


def answer() -> dict[str, float]:
    """Multiplies two square matrices."""
    start = time.perf_counter()
    jax.block_until_ready([product(a, b) for _ in range(times)])
    return {"flop_per_s": times * 2 * size**3 / (time.perf_counter() - start)}


serve({"ready": True}, answer)
