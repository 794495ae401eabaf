"""A function run on every device's own shards, where the compiler could not split it by itself."""

import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import AxisType, PartitionSpec, get_abstract_mesh

from jaxpipe.sharding.rules import Axes, split_dimensions, to_spec

Array = jax.Array


def over_shards(
    f: Callable[..., Array],
    arrays: Sequence[tuple[Array, Axes]],
    out_axes: Axes,
    *,
    offset_of: str,
    summed: Sequence[str],
) -> Array:
    """Calls ``f(offset, *shards)`` on every device of the mesh that is set, with its shard of each array.

    Where no mesh is set or nothing is split, f gets the arrays themselves.

    Args:
        f: returns a part of the output, which is summed over the shards of the axes `summed`.
        arrays: each with the logical axis of every dimension, None where f needs it whole.
        out_axes: of the output, which is as large in these dimensions as the first array.
        offset_of: the logical axis, of one dimension of the arrays, whose first index of the shard f is given.
        summed: logical axes of dimensions that f contracts.
    """
    mesh = get_abstract_mesh()
    # Inside another shard_map some axes are manual, under a caller's own mesh some may be explicit: not ours to split.
    sizes = {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto
    }
    placed = [split_dimensions(axes, x.shape, sizes)[0] for x, axes in arrays]
    by_axis: dict[str, tuple[str, ...]] = {}
    sizes_of: dict[str, int] = {}
    for (x, axes), names in zip(arrays, placed, strict=True):
        for axis, mesh_axes, dimension in zip(axes, names, x.shape, strict=True):
            if axis is not None:
                by_axis[axis], sizes_of[axis] = mesh_axes, dimension
    if not any(by_axis.values()):
        return f(0, *(x for x, _ in arrays))
    split = by_axis[offset_of]
    step = sizes_of[offset_of] // math.prod(sizes[name] for name in split)
    over = tuple(dict.fromkeys(name for axis in summed for name in by_axis[axis]))

    def local(*shards: Array) -> Array:
        offset = jax.lax.axis_index(split) * step if split else 0
        part = f(offset, *shards)
        return jax.lax.psum(part, over) if over else part

    in_specs = tuple(to_spec(names) for names in placed)
    out_spec: PartitionSpec = to_spec([by_axis[axis] if axis is not None else () for axis in out_axes])
    run = jax.shard_map(local, in_specs=in_specs, out_specs=out_spec, axis_names=set(sizes))
    return run(*(x for x, _ in arrays))
