"""Feed-forward blocks that several architectures share."""

from collections.abc import Callable

import jax
from flax import nnx

from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import GateUp, Linear

Array = jax.Array


class GatedMLP(nnx.Module):
    """``down(act(gate(x)) * up(x))`` (Shazeer, 2020), gate and up read as one array.

    Args:
        bias: of all three.
        names: of gate and up in the checkpoint; see `GateUp`.
    """

    def __init__(
        self,
        init: Init,
        width: int,
        features: int,
        act: Callable[[Array], Array],
        *,
        bias: bool = False,
        names: tuple[str, ...] = ("gate_proj", "up_proj"),
    ):
        self.gate_up_proj = GateUp(init, width, features, bias=bias, names=names)
        self.down_proj = Linear(init, features, width, bias=bias, axes=("mlp", "embed"))
        self.act = act

    def __call__(self, x: Array) -> Array:
        gate, up = self.gate_up_proj(x)
        return self.down_proj(self.act(gate) * up)


class DenseMLP(nnx.Module):
    """Two projections with an activation between them, under the names that Megatron gave them.

    Args:
        bias: of both.
    """

    def __init__(self, init: Init, width: int, features: int, act: Callable[[Array], Array], *, bias: bool = True):
        self.dense_h_to_4h = Linear(init, width, features, bias=bias, axes=("embed", "mlp"))
        self.dense_4h_to_h = Linear(init, features, width, bias=bias, axes=("mlp", "embed"))
        self.act = act

    def __call__(self, x: Array) -> Array:
        return self.dense_4h_to_h(self.act(self.dense_h_to_4h(x)))
