"""Feed-forward blocks that several architectures share."""

from collections.abc import Callable

import jax
from flax import nnx

from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import GateUp, Linear

Array = jax.Array


class GatedMLP(nnx.Module):
    """``down(act(gate(x)) * up(x))`` (Shazeer, 2020), gate and up read as one array."""

    def __init__(self, init: Init, width: int, features: int, act: Callable[[Array], Array], *, bias: bool = False):
        self.gate_up_proj = GateUp(init, width, features, bias=bias)
        self.down_proj = Linear(init, features, width, bias=bias, axes=("mlp", "embed"))
        self.act = act

    def __call__(self, x: Array) -> Array:
        gate, up = self.gate_up_proj(x)
        return self.down_proj(self.act(gate) * up)
