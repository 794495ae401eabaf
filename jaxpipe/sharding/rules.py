"""Logical axes of arrays -> axes of the mesh; the only place that translates one into the other."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, get_abstract_mesh

from jaxpipe.common.errors import nearest

# Outermost first: the axes that talk most, in every layer, come last, so that they join neighbouring devices.
MESH_AXES = ("data", "fsdp", "expert", "sequence", "tensor")

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "experts": ("expert",),
}

Axes = Sequence[str | None]


def mesh_axes(axis: str | None) -> tuple[str, ...]:
    """Returns the mesh axes that split a logical axis; none for None.

    Raises:
        ValueError: the logical axis is not in `RULES`.
    """
    if axis is None:
        return ()
    if axis not in RULES:
        raise ValueError(f"Logical axis {axis!r} is not known; known are {', '.join(RULES)}.{nearest(axis, RULES)}")
    return RULES[axis]


def split_dimensions(
    axes: Axes, shape: Sequence[int], sizes: Mapping[str, int]
) -> tuple[list[tuple[str, ...]], dict[int, str]]:
    """Divides the dimensions of one array among mesh axes; a dimension takes all of its axes or none.

    Args:
        axes: logical axis of each dimension, None where it is never split.
        shape: the array's dimensions.
        sizes: mesh axis -> number of devices along it. Absent axes count as 1.

    Returns:
        The mesh axes of each dimension, and for each dimension that does not divide the reason in words.

    Raises:
        ValueError: a logical axis is not known, or there are not as many as dimensions.
    """
    if len(axes) != len(shape):
        raise ValueError(f"{len(axes)} logical axes {tuple(axes)} for an array of shape {tuple(shape)}.")
    placed: list[tuple[str, ...]] = []
    undivided: dict[int, str] = {}
    used: set[str] = set()
    for i, (axis, dimension) in enumerate(zip(axes, shape, strict=True)):
        wanted = tuple(name for name in mesh_axes(axis) if sizes.get(name, 1) > 1 and name not in used)
        if dimension % math.prod(sizes[name] for name in wanted):
            degrees = " x ".join(f"{name}={sizes[name]}" for name in wanted)
            undivided[i] = f"replicated: {dimension} is not divisible by {degrees}"
            wanted = ()
        used.update(wanted)
        placed.append(wanted)
    return placed, undivided


def to_spec(entries: Sequence[object]) -> PartitionSpec:
    """Makes a PartitionSpec in the form that JAX gives results: no trailing None, one axis without its tuple.

    Two spellings of one sharding are different keys of the jit cache.
    """
    plain = [
        (None if not entry else entry[0] if len(entry) == 1 else entry) if isinstance(entry, tuple) else entry
        for entry in entries
    ]
    while plain and plain[-1] is None:
        plain.pop()
    return PartitionSpec(*plain)


def partition_spec(axes: Axes, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> tuple[PartitionSpec, list[str]]:
    """Translates the logical axes of one array into a PartitionSpec that its shape allows.

    A mesh axis splits at most one dimension of the array, the first that asks for it.

    Args:
        axes: logical axis of each dimension, None where it is never split.
        shape: the array's dimensions.
        mesh: its axes that are absent or of size 1 are left out of the spec.

    Returns:
        The spec, and one note for each dimension that stays whole because it does not divide.

    Raises:
        ValueError: a logical axis is not known, or there are not as many as dimensions.
    """
    placed, undivided = split_dimensions(axes, shape, mesh.shape)
    return to_spec(placed), list(undivided.values())


def named_sharding(axes: Axes, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Returns the sharding on ``mesh`` of an array with these logical axes; see `partition_spec`."""
    return NamedSharding(mesh, partition_spec(axes, shape, mesh)[0])


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Tells the compiler how an activation lies on the mesh that is set; works under jit, grad and vmap.

    Returns ``x`` itself where no mesh is set, where the mesh has one device, and where no dimension that asks for
    a mesh axis divides. A dimension that does not divide is left to the compiler; None means replicated.

    Args:
        x: any shape; under vmap the shape without the mapped dimension.
        axes: logical axis of each dimension of ``x``.

    Raises:
        ValueError: a logical axis is not known, or there are not as many as dimensions.
    """
    mesh = get_abstract_mesh()
    # Inside shard_map some axes are manual, under a caller's own mesh some may be explicit: neither is ours to set.
    automatic = zip(mesh.axis_names, mesh.axis_types, strict=True)
    sizes = {name: mesh.shape[name] for name, kind in automatic if kind == AxisType.Auto}
    placed, undivided = split_dimensions(axes, x.shape, sizes)
    if math.prod(sizes.values()) == 1 or (undivided and not any(placed)):
        return x
    entries = [PartitionSpec.UNCONSTRAINED if i in undivided else names for i, names in enumerate(placed)]
    return jax.lax.with_sharding_constraint(x, to_spec(entries))
