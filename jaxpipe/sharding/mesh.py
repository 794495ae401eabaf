"""Making meshes, entering them, and the sharding of batches."""

import contextlib
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxpipe.common.errors import PlacementError, nearest
from jaxpipe.sharding.rules import MESH_AXES, RULES, named_sharding

Device: TypeAlias = Any  # jax.Device, which is untyped


def complete_sizes(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Checks the sizes of mesh axes against a number of devices, and replaces -1 by what the others leave.

    Args:
        sizes: mesh axis -> devices along it, at least 1; -1 at most once.
        count: number of devices there are.

    Returns:
        The sizes in the order of `MESH_AXES`.

    Raises:
        PlacementError: an axis or size is wrong, or more devices are asked for than there are.
    """
    for name, size in sizes.items():
        if name not in MESH_AXES:
            raise PlacementError(
                f"{name!r} is not a mesh axis; mesh axes are {', '.join(MESH_AXES)}.{nearest(str(name), MESH_AXES)}"
            )
        if not is_integer(size) or (size < 1 and size != -1):
            raise PlacementError(f"Mesh axis {name}={size!r}: expected a number of devices, or -1 for the rest.")
    asked = " x ".join(f"{name}={size}" for name, size in sizes.items())
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise PlacementError(f"{asked}: only one mesh axis can be -1 (the rest).")
    known = math.prod(size for size in sizes.values() if size != -1)
    if known > count:
        raise PlacementError(f"{asked} takes {known} devices, but there are {count}.")
    complete = {name: count // known if size == -1 else int(size) for name, size in sizes.items()}
    return {name: complete[name] for name in MESH_AXES if name in complete}


def is_integer(value: object) -> bool:
    """Whether a value is a whole number, of Python or numpy, and no bool."""
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Device] | None = None) -> Mesh:
    """Makes a mesh whose axes the compiler partitions (``AxisType.Auto``), in the order of `MESH_AXES`.

    Args:
        sizes: mesh axis -> devices along it; -1 once for the rest. Their product may be less than the devices:
            then the first ones are used.
        devices: ``jax.devices()`` if None, which in several processes is every process's devices.

    Raises:
        PlacementError: an axis or size is wrong, or more devices are asked for than there are.
    """
    devices = jax.devices() if devices is None else devices
    complete = complete_sizes(sizes or {"data": 1}, len(devices))
    used = list(devices)[: math.prod(complete.values())]
    names = tuple(complete)
    return jax.make_mesh(tuple(complete.values()), names, axis_types=(AxisType.Auto,) * len(names), devices=used)


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[Mesh]:
    """Sets the mesh for the jitted calls inside the context; the one place that does.

    Raises:
        RuntimeError: entered while JAX traces a function (jit, grad, vmap, eval_shape).
    """
    try:
        context = jax.set_mesh(mesh)
    except ValueError as error:
        raise RuntimeError(
            "A model was called inside a function that JAX is tracing (jit, grad, vmap or eval_shape), where its mesh "
            "cannot be set. Call the pure function there: fn, weights = model.functional()."
        ) from error
    with context:
        yield mesh


def data_degree(mesh: Mesh) -> int:
    """Returns the number of parts that a batch is split into on ``mesh``: a good multiple for batch sizes."""
    return math.prod(mesh.shape.get(name, 1) for name in RULES["batch"])


def batch_sharding(mesh: Mesh, batch_size: int, ndim: int) -> NamedSharding:
    """Returns the sharding of an array whose first dimension is the batch.

    Args:
        mesh: the mesh of the model.
        batch_size: length of the first dimension; split over data x fsdp if divisible, else replicated.
        ndim: number of dimensions; 0 gives a replicated scalar.
    """
    axes = ("batch", *(None,) * (ndim - 1))[:ndim]
    return named_sharding(axes, (batch_size, *(1,) * (ndim - 1))[:ndim], mesh)
