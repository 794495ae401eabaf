"""Worker: the machine's own ceiling, bytes a second. On a GPU a copy (read and written), on CPU one thread reading."""

import json
import sys
import time

import numpy as np
from harness import serve

settings = json.loads(sys.argv[1])

if settings["platform"] == "cpu":
    values = np.random.default_rng(0).integers(0, 2**62, 2**26)

    def answer() -> dict[str, float]:
        """Sums 512 MiB."""
        start = time.perf_counter()
        values.sum()
        return {"bytes_per_s": values.nbytes / (time.perf_counter() - start)}

else:
    import jax
    import jax.numpy as jnp

    array = jax.random.normal(jax.random.key(0), (2**28,), jnp.float32)
    copy = jax.jit(jnp.copy)
    copy(array).block_until_ready()

    def answer() -> dict[str, float]:
        """Copies 1 GiB ten times."""
        start = time.perf_counter()
        for _ in range(10):
            out = copy(array)
        out.block_until_ready()
        return {"bytes_per_s": 10 * 2 * array.nbytes / (time.perf_counter() - start)}


serve({"ready": True}, answer)
