"""Keys and values in 8 bits, with one scale for each token and head."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxpipe.sharding.rules import constrain

Array = jax.Array

# The greatest magnitude of each type that keys and values can be kept in.
GREATEST = {"int8": 127.0, "float8_e4m3fn": 448.0}


def scale_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the type of the scales where the computation is in `dtype`; float16 would lose small ones."""
    return jnp.dtype(jnp.bfloat16 if dtype == jnp.bfloat16 else jnp.float32)


def quantize(x: Array, dtype: jnp.dtype, scales: jnp.dtype) -> tuple[Array, Array]:
    """Brings keys or values to 8 bits, symmetrically over the width of each head.

    Args:
        x: (B, T, K, h).
        dtype: int8 or float8_e4m3fn.
        scales: type of the scales.

    Returns:
        x in `dtype`, and the scales (B, T, K) by which it is multiplied to get x back. What is not finite in x makes
        its scale so.
    """
    greatest = GREATEST[dtype.name]
    x = x.astype(jnp.float32)
    scale = (jnp.max(jnp.abs(x), axis=-1) / greatest).astype(scales)
    # Divided by the scale as it is kept, so that its rounding costs nothing.
    divided = x / jnp.maximum(scale.astype(jnp.float32), jnp.finfo(jnp.float32).tiny)[..., None]
    divided = jnp.clip(divided, -greatest, greatest)
    if jnp.issubdtype(dtype, jnp.integer):
        divided = jnp.round(divided)
    return divided.astype(dtype), scale


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantizedKVLayer:
    """Keys and values (B, S, K, h) of one layer in 8 bits, and their scales (B, S, K); see `quantize`.

    Attention reads them as they are: a key's scale multiplies its scores, a value's scale its probabilities. int8 is
    updated in place everywhere; float8_e4m3fn is not on CPU, where XLA computes with it in float16.
    """

    keys: Array
    values: Array
    key_scales: Array
    value_scales: Array

    @classmethod
    def empty(
        cls, shape: tuple[int, int, int], widths: tuple[int, int], dtype: jnp.dtype, stored: str
    ) -> "QuantizedKVLayer":
        """Makes a layer of `shape` (B, S, K) whose keys and values have `widths`, for a computation in `dtype`."""
        keys, values = (jnp.zeros((*shape, width), stored) for width in widths)
        scales = jnp.zeros(shape, scale_dtype(dtype))
        return cls(_shard(keys), _shard(values), _shard(scales), _shard(scales))

    def write(self, keys: Array, values: Array, slot: Array) -> "QuantizedKVLayer":
        """Writes keys and values (B, T, K, h) into the slots from `slot` on, the same for all rows."""
        new_keys, key_scales = quantize(keys, self.keys.dtype, self.key_scales.dtype)
        new_values, value_scales = quantize(values, self.values.dtype, self.value_scales.dtype)
        return QuantizedKVLayer(
            _put(self.keys, new_keys, slot),
            _put(self.values, new_values, slot),
            _put(self.key_scales, key_scales, slot),
            _put(self.value_scales, value_scales, slot),
        )

    @property
    def scales(self) -> tuple[Array, Array]:
        """Of keys and of values, (B, S, K) each."""
        return self.key_scales, self.value_scales


def _put(x: Array, new: Array, slot: Array) -> Array:
    return _shard(jax.lax.dynamic_update_slice_in_dim(x, new, slot, axis=1))


def _shard(x: Array) -> Array:
    return constrain(x, "batch", None, "kv_heads", *(None,) * (x.ndim - 3))
