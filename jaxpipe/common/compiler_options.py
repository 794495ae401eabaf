"""Options of XLA that jaxpipe sets for its own jitted functions; what the user sets in XLA_FLAGS stays."""

import os
from typing import Any

# Products with many rows: cuBLAS is as fast as what XLA finds among its Triton kernels, and the search takes most of
# the compilation (BERT-base in float32 on an H100: 17.8 s with it and 1.8 s without, both run in 69 ms).
_MANY_ROWS = {"xla_gpu_enable_triton_gemm": False}


def many_rows(platform: str) -> dict[str, Any]:
    """Returns the options for a function whose matrix products all have many rows.

    Args:
        platform: of the devices, ``"cpu"``, ``"gpu"`` or ``"tpu"``.
    """
    given = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in _MANY_ROWS.items() if platform == "gpu" and f"--{name}" not in given}
