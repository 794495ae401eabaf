"""Linear layers: plain, gate and up in one, and the packed projections of attention."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.kernels.few_rows import product
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout import Direct, HeadsOut, Joined, PackedHeads, SplitHeads, Stacked, Transposed

Array = jax.Array


class Linear(nnx.Module):
    """``x @ kernel + bias`` with a kernel (in, out).

    Args:
        axes: logical names of the input and the output dimension.
        transposed: the checkpoint stores ``weight`` as (out, in); GPT-2's Conv1D stores (in, out).
    """

    def __init__(
        self,
        init: Init,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        axes: tuple[str | None, str | None] = ("embed", None),
        transposed: bool = True,
    ):
        shape = (inputs, outputs)
        self.kernel = init.param(axes, shape, (Transposed if transposed else Direct)("weight", shape))
        self.bias = init.param(axes[1:], (outputs,), Direct("bias", (outputs,)), initializer="zeros") if bias else None

    def __call__(self, x: Array) -> Array:
        x = product("...i,io->...o", x, self.kernel[...])
        return x if self.bias is None else x + self.bias[...]


class GateUp(nnx.Module):
    """The gate and the up projection of a gated MLP as one array (D, 2, F), read by one matmul.

    Args:
        names: the two projections' names in the checkpoint, gate first, beside this module's own; or one that holds
            both.
    """

    def __init__(
        self,
        init: Init,
        width: int,
        features: int,
        *,
        bias: bool = False,
        names: tuple[str, ...] = ("gate_proj", "up_proj"),
    ):

        def layout(kind: str, columns: int | None) -> Joined | Stacked:
            tensors = tuple(f"{n}.{kind}" for n in names)
            if len(names) == 1:
                return Joined(tensors[0], 2, features, columns)
            return Stacked(tensors, features, columns)

        self.kernel = init.param(("embed", None, "mlp"), (width, 2, features), layout("weight", width), up=1)
        zeros: dict[str, Any] = {"initializer": "zeros", "up": 1}
        self.bias = init.param((None, "mlp"), (2, features), layout("bias", None), **zeros) if bias else None

    def __call__(self, x: Array) -> tuple[Array, Array]:
        y = product("...d,dnf->...nf", x, self.kernel[...])  # (B, T, 2, F)
        if self.bias is not None:
            y = y + self.bias[...]
        return y[..., 0, :], y[..., 1, :]


class QKVProjection(nnx.Module):
    """Query, key and value projections as one array (D, G, (H/G + 2) h); see `layout.PackedHeads`.

    Args:
        names: of the projections in the checkpoint, beside this module's own: three, or one that holds all.
        transposed: the checkpoint stores (out, in), as torch's Linear does.
        packing: the layout on disk.
    """

    def __init__(
        self,
        init: Init,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        bias: bool = False,
        names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj"),
        transposed: bool = True,
        packing: type[PackedHeads] = PackedHeads,
    ):
        self.heads, self.head_dim = heads, head_dim
        self.groups = init.groups(heads, kv_heads)
        features = (heads // self.groups + 2) * head_dim

        def layout(kind: str, columns: int | None) -> PackedHeads:
            tensors = tuple(f"{n}.{kind}" for n in names)
            return packing(tensors, heads, kv_heads, self.groups, head_dim, columns, transposed)

        axes = ("embed", "kv_heads", None)
        self.kernel = init.param(axes, (width, self.groups, features), layout("weight", width), up=1)
        zeros: dict[str, Any] = {"initializer": "zeros", "up": 1}
        self.bias = init.param(axes[1:], (self.groups, features), layout("bias", None), **zeros) if bias else None

    def __call__(self, x: Array) -> tuple[Array, Array, Array]:
        """Projects x (B, T, D) to q (B, T, H, h), k (B, T, G, h) and v (B, T, G, h)."""
        y, h = product("btd,dgf->btgf", x, self.kernel[...]), self.head_dim  # (B, T, G, (H/G + 2) h)
        parts = [y[..., : -2 * h], y[..., -2 * h : -h], y[..., -h:]]
        if self.bias is not None:
            bias = self.bias[...]
            # Added to the parts, in the kernels that read them: XLA would have cuBLAS add it to the whole.
            parts = [x + b for x, b in zip(parts, (bias[:, : -2 * h], bias[:, -2 * h : -h], bias[:, -h:]), strict=True)]
        q, k, v = parts
        return q.reshape(*x.shape[:2], self.heads, h), k, v  # (B, T, H, h)


class HeadsProjection(nnx.Module):
    """Projections to the same heads as one array (D, H, n h), for queries alone, or keys and values of cross-attention.

    Args:
        names: of the n projections in the checkpoint, beside this module's own.
    """

    def __init__(
        self, init: Init, width: int, heads: int, head_dim: int, *, bias: bool = False, names: tuple[str, ...]
    ):
        self.parts = len(names)

        def layout(kind: str, columns: int | None) -> SplitHeads:
            return SplitHeads(tuple(f"{n}.{kind}" for n in names), heads, head_dim, columns)

        axes, shape = ("embed", "kv_heads", None), (heads, self.parts * head_dim)
        self.kernel = init.param(axes, (width, *shape), layout("weight", width), up=1)
        zeros: dict[str, Any] = {"initializer": "zeros", "up": 1}
        self.bias = init.param(axes[1:], shape, layout("bias", None), **zeros) if bias else None

    def __call__(self, x: Array) -> list[Array]:
        """Projects x (B, T, D) to n of (B, T, H, h)."""
        y = product("btd,dhf->bthf", x, self.kernel[...])  # (B, T, H, n h)
        if self.bias is not None:
            y = y + self.bias[...]
        return jnp.split(y, self.parts, axis=-1)


class HeadsOutProjection(nnx.Module):
    """The output projection of attention as (G, (H/G) h, D), grouped as `QKVProjection` is.

    Args:
        name: of the projection in the checkpoint, beside this module's own; None where the module has it.
    """

    def __init__(
        self,
        init: Init,
        heads: int,
        kv_heads: int,
        head_dim: int,
        width: int,
        *,
        bias: bool = False,
        transposed: bool = True,
        name: str | None = None,
    ):
        groups = init.groups(heads, kv_heads)
        shape = (groups, heads // groups * head_dim, width)
        prefix, up = ("", 0) if name is None else (f"{name}.", 1)
        self.kernel = init.param(
            ("kv_heads", None, "embed"), shape, HeadsOut(f"{prefix}weight", *shape, transposed), up=up
        )
        layout = Direct(f"{prefix}bias", (width,))
        self.bias = init.param((None,), (width,), layout, initializer="zeros", up=up) if bias else None

    def __call__(self, x: Array) -> Array:
        """Projects the heads' outputs x (B, T, H, h) to (B, T, D)."""
        kernel = self.kernel[...]
        x = x.reshape(*x.shape[:2], *kernel.shape[:2])  # (B, T, G, (H/G) h)
        x = product("btgf,gfd->btd", x, kernel, summed=2)
        return x if self.bias is None else x + self.bias[...]
