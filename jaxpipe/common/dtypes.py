"""Names of array dtypes, as configurations and users write them."""

from typing import Any

import jax.numpy as jnp
import numpy as np

DTYPES: dict[str, Any] = {
    "float32": jnp.float32,
    "bfloat16": jnp.bfloat16,
    "float16": jnp.float16,
    "float64": jnp.float64,
}
ALIASES = {"fp32": "float32", "float": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}


def to_dtype(value: Any) -> np.dtype:
    """Returns the numpy dtype of a jnp dtype or of its name (``"bfloat16"``, ``"torch.bfloat16"``, ``"bf16"``).

    Raises:
        ValueError: the value names no floating-point dtype that weights can have.
    """
    name = value if isinstance(value, str) else getattr(value, "name", None) or getattr(value, "__name__", str(value))
    name = str(name).removeprefix("torch.")
    name = ALIASES.get(name, name)
    if name not in DTYPES:
        raise ValueError(f"dtype={value!r} is not a dtype of weights; give one of {', '.join(DTYPES)}, or 'auto'.")
    return np.dtype(DTYPES[name])
