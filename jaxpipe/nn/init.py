"""What a module needs to make its parameters: keys, dtype, and the degree that heads must divide."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.nn.layout import Layout


def initial_value(key: jax.Array, shape: tuple[int, ...], dtype: Any, initializer: str, std: float) -> jax.Array:
    """Draws the first value of a parameter: ``"normal"`` (0, std), ``"zeros"`` or ``"ones"``."""
    if initializer == "zeros":
        return jnp.zeros(shape, dtype)
    if initializer == "ones":
        return jnp.ones(shape, dtype)
    return (jax.random.normal(key, shape, jnp.float32) * std).astype(dtype)


@dataclass(frozen=True)
class Init:
    """Passed down the constructors of a model.

    Attributes:
        rngs: source of keys for random values.
        dtype: of the parameters, and so of the computation.
        head_shards: packed projections are grouped so that this number of shards divides them, if they can.
        std: standard deviation of random kernels and embeddings, the config's ``initializer_range``.
    """

    rngs: nnx.Rngs = field(default_factory=lambda: nnx.Rngs(0))
    dtype: Any = jnp.float32
    head_shards: int = 1
    std: float = 0.02

    def param(
        self,
        axes: tuple[str | None, ...],
        shape: tuple[int, ...],
        layout: Layout,
        *,
        initializer: str = "normal",
        up: int = 0,
        dtype: Any = None,
    ) -> nnx.Param[jax.Array]:
        """Makes a parameter.

        Args:
            axes: logical name of each dimension; `jaxpipe.sharding.rules` maps them onto a mesh.
            shape: of the array.
            layout: its tensors in a checkpoint, named relative to the module `up` levels above the owner.
            initializer: see `initial_value`.
            dtype: of this parameter, whatever the model's is.
        """
        return nnx.Param(
            initial_value(self.rngs.params(), shape, dtype or self.dtype, initializer, self.std),
            out_sharding=axes,
            eager_sharding=False,
            layout=layout,
            up=up,
            initializer=initializer,
            std=self.std,
        )

    def groups(self, heads: int, kv_heads: int) -> int:
        """Number of groups of a packed projection: key-value heads, repeated so that `head_shards` divides
        them; as they are where no repetition does, and the arrays are then replicated.
        """
        for groups in range(kv_heads, heads + 1, kv_heads):
            if heads % groups == 0 and groups % self.head_shards == 0:
                return groups
        return kv_heads
