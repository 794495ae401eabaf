"""A module taken apart for `jax.jit`: a static graph, a flat list of weights, and the mesh they lie on."""

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from jaxpipe.kernels.compute import tracing_for

Leaves = list[jax.Array]


@dataclass(frozen=True)
class Functional:
    """What a jitted function needs of a module. The leaves are an argument of it, the rest is closed over.

    Attributes:
        graph: `nnx.GraphDef` of the module.
        tree: of the module's state over the leaves.
        mesh: that the leaves lie on.
        dtype: of the computation.
        matmul_precision: None for float32 at its full precision; see `kernels.compute.tracing_for`.
    """

    graph: Any
    tree: Any
    mesh: Mesh
    dtype: Any
    matmul_precision: str | None = None

    def module(self, leaves: Leaves) -> Any:
        """Puts the module together again around `leaves`."""
        return nnx.merge(self.graph, jax.tree.unflatten(self.tree, leaves))

    def call(self, leaves: Leaves, *args: Any, **kwargs: Any) -> Any:
        """Calls the module; for use inside a jitted function."""
        with tracing_for(self.mesh.devices.flat[0].platform, self.dtype, self.matmul_precision):
            return self.module(leaves)(*args, **kwargs)
