"""The plan that places a model's weights: a mesh, and a sharding for every weight, before any array exists."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxpipe.common.errors import PlacementError
from jaxpipe.common.logging import info_once
from jaxpipe.sharding.device_map import Request, read_device_map
from jaxpipe.sharding.memory import available_bytes, format_bytes, parse_max_memory, usable_devices
from jaxpipe.sharding.mesh import Device, make_mesh
from jaxpipe.sharding.rules import split_dimensions, to_spec
from jaxpipe.sharding.table import collapse_layers, plan_table

# Part of a device's memory that "auto" leaves free: activations, logits, collectives' buffers and XLA's workspace,
# which a plan made before compiling cannot count.
RESERVE = 0.10


@dataclass(frozen=True)
class Weight:
    """An array of a model before it exists.

    Attributes:
        path: its name in the module, such as ``model.layers.0.mlp.down_proj.kernel``.
        shape: its dimensions.
        dtype: what it is stored in on the device.
        axes: logical axis of each dimension, None where it is never split.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[str | None, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class ShardingPlan:
    """Where a model's weights lie; prints as a table.

    Attributes:
        mesh: the mesh, all axes Auto.
        shardings: sharding of every weight, by path.
        tensor_degree: devices along the mesh axis ``tensor``.
        device_map: as asked.
        bytes_per_device: of the weights.
        cache_bytes_per_device: that are left for the KV cache.
        available_per_device: of the smallest device, before loading; None where it does not tell.
        notes: what is worth knowing, such as weights that do not divide; each also logged at INFO.
        weights: the weights, in the model's order.
    """

    mesh: Mesh
    shardings: dict[str, NamedSharding]
    tensor_degree: int
    device_map: Any
    bytes_per_device: int
    cache_bytes_per_device: int
    available_per_device: int | None
    notes: tuple[str, ...]
    weights: tuple[Weight, ...]

    def __str__(self) -> str:
        return plan_table(self)


@dataclass(frozen=True)
class Demand:
    """What a model needs on every device of a mesh with these axis sizes."""

    sizes: dict[str, int]
    weight_bytes: int
    cache_bytes: int

    @property
    def total(self) -> int:
        """Bytes per device."""
        return self.weight_bytes + self.cache_bytes

    def fits(self, available: int | None) -> bool:
        """Whether a device with this much memory holds it and the reserve; one that does not tell is trusted."""
        return available is None or self.total <= (1 - RESERVE) * available

    def __str__(self) -> str:
        axes = " x ".join(f"{name}={size}" for name, size in self.sizes.items())
        return (
            f"{axes}: {format_bytes(self.weight_bytes)} of weights + {format_bytes(self.cache_bytes)} of KV cache "
            f"= {format_bytes(self.total)} per device"
        )


class Footprint:
    """The memory of one model: what the devices of any mesh need."""

    def __init__(
        self, weights: Callable[[int], Sequence[Weight]], cache_bytes: Callable[[int], int] | None = None
    ) -> None:
        self.weights = functools.cache(lambda degree: tuple(weights(degree)))
        self.cache_bytes = cache_bytes or (lambda degree: 0)

    def demand(self, sizes: dict[str, int]) -> Demand:
        """Counts what every device of a mesh with these axis sizes holds, whole copies included."""
        degree = sizes.get("tensor", 1)
        count = sum(weight.nbytes // split_degree(weight, sizes) for weight in self.weights(degree))
        return Demand(sizes, count, self.cache_bytes(degree))

    def bfloat16(self) -> "Footprint":
        """The same model with its wider floating-point weights and its cache halved to bfloat16, where any is wider."""

        def narrow(degree: int) -> list[Weight]:
            return [replace(w, dtype=np.dtype(jnp.bfloat16)) if is_wide(w) else w for w in self.weights(degree)]

        return Footprint(narrow, lambda degree: self.cache_bytes(degree) // 2)


def is_wide(weight: Weight) -> bool:
    """Whether bfloat16 would be smaller."""
    return jnp.issubdtype(weight.dtype, jnp.floating) and np.dtype(weight.dtype).itemsize > 2


def split_degree(weight: Weight, sizes: Mapping[str, int]) -> int:
    """Returns the number of distinct shards of a weight on a mesh with these axis sizes."""
    placed, _ = split_dimensions(weight.axes, weight.shape, sizes)
    return math.prod(sizes[name] for names in placed for name in names)


def make_plan(
    weights: Callable[[int], Sequence[Weight]],
    *,
    device_map: Any = None,
    mesh: Mesh | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
    cache_bytes: Callable[[int], int] | None = None,
    devices: Sequence[Device] | None = None,
) -> ShardingPlan:
    """Chooses a mesh and a sharding for every weight; makes no array.

    ``"auto"`` takes the smallest tensor degree that fits, and puts the other devices on ``data``; where none fits,
    the weights also go over ``fsdp``. In several processes the free memory may differ between hosts: give
    ``max_memory`` or mesh axes there, so that every process reaches the same plan.

    Args:
        weights: tensor degree -> the model's weights; packed projections change their shape with it.
        device_map: None (the default device), ``"auto"`` (also ``"balanced"``, ``"balanced_low_0"``,
            ``"sequential"``), a device (string, ordinal, ``jax.Device``, ``{"": device}``), or sizes of mesh axes
            ``{"data": 2, "tensor": -1}``.
        mesh: a ready mesh, instead of ``device_map``.
        max_memory: ordinal of a device -> bytes or ``"10GiB"``; once one is named, ``"auto"`` and mesh axes use no
            other. ``"cpu"`` bounds the CPU devices together; there is no offloading to it.
        cache_bytes: tensor degree -> bytes of the KV cache on EACH device, repeated heads counted.
        devices: the devices to choose among; None: all of the default backend.

    Raises:
        PlacementError: an argument is wrong, or the model does not fit; the message shows the arithmetic.
    """
    request = read_device_map(device_map, mesh, devices)
    bounds, host = parse_max_memory(max_memory, request.devices)
    footprint = Footprint(weights, cache_bytes)
    notes = list(request.notes)
    if request.devices[0].platform != "cpu" and host is not None:
        notes.append("max_memory['cpu'] is not used: weights are not offloaded to the host.")
    if request.mesh is not None:
        chosen = request.mesh
        available = available_bytes(tuple(chosen.devices.flat), bounds, host)
    else:
        usable = usable_devices(request.devices, bounds, host)
        if request.sizes is not None:
            chosen = make_mesh(request.sizes, usable)
            available = available_bytes(tuple(chosen.devices.flat), bounds, host)
        else:
            available = available_bytes(usable, bounds, host)
            sizes, reasons = choose_sizes(footprint, len(usable), available, usable[0].platform)
            chosen = make_mesh(sizes, usable)
            notes += reasons
        notes += _count_notes(chosen, request, len(usable))
    asked = "mesh" if mesh is not None else f"device_map={device_map!r}"
    return _build(footprint, chosen, available, device_map, asked, notes)


def _count_notes(chosen: Mesh, request: Request, usable: int) -> Iterator[str]:
    if chosen.size < usable:
        yield f"The mesh takes {chosen.size} of {usable} {request.devices[0].platform} devices."
    if usable < len(request.devices):
        yield f"max_memory leaves {usable} of {len(request.devices)} {request.devices[0].platform} devices."


def _build(
    footprint: Footprint, mesh: Mesh, available: int | None, device_map: Any, asked: str, notes: list[str]
) -> ShardingPlan:
    """Puts every weight on the mesh, which must hold at least the weights; a cache may turn out smaller."""
    demand = footprint.demand(dict(mesh.shape))
    if available is not None and demand.weight_bytes > available:
        platform = mesh.devices.flat[0].platform
        raise PlacementError(
            f"The model does not fit {asked}: {demand}, but {format_bytes(available)} are available on each of "
            f"{mesh.size} {platform} device(s). {would_fit(footprint, mesh.size, available)}"
        )
    if not demand.fits(available):
        notes.append(
            f"Tight: {demand}, of {format_bytes(available or 0)} available; long inputs or large batches may not fit."
        )
    degree = mesh.shape.get("tensor", 1)
    shardings: dict[str, NamedSharding] = {}
    for weight in footprint.weights(degree):
        placed, undivided = split_dimensions(weight.axes, weight.shape, mesh.shape)
        shardings[weight.path] = NamedSharding(mesh, to_spec(placed))
        notes += [f"{collapse_layers(weight.path)} {reason}" for reason in undivided.values()]
    notes = list(dict.fromkeys(notes))
    for note in notes:
        info_once(note)
    return ShardingPlan(
        mesh, shardings, degree, device_map, demand.weight_bytes, demand.cache_bytes, available, tuple(notes),
        footprint.weights(degree),
    )  # fmt: skip


def choose_sizes(
    footprint: Footprint, count: int, available: int | None, platform: str
) -> tuple[dict[str, int], list[str]]:
    """Chooses the sizes of the mesh axes for ``"auto"``.

    Args:
        footprint: of the model.
        count: number of devices; all are used.
        available: bytes of the smallest device, or None where it does not tell.
        platform: of the devices, for messages.

    Returns:
        The sizes, and the reasons as notes.

    Raises:
        PlacementError: no split of the weights over the devices fits.
    """
    tried: list[Demand] = []
    for sizes in candidates(count):
        demand = footprint.demand(sizes)
        if demand.fits(available):
            notes = [f"Does not fit: {tried[0]}; available {format_bytes(available or 0)}."] if tried else []
            if available is None and count > 1:
                notes.append(
                    f"The {platform} devices do not tell their memory, so the weights are not split; give max_memory= "
                    "or mesh axes if they do not fit."
                )
            return sizes, notes
        tried.append(demand)
    best = min(tried, key=lambda demand: demand.total)
    assert available is not None  # else the first candidate fits
    raise PlacementError(
        f"The model does not fit on {count} {platform} device(s). Needed at the best split, {best}. Available: "
        f"{format_bytes(available)} on each device, of which {format_bytes((1 - RESERVE) * available)} can be used "
        f"({RESERVE:.0%} are kept for activations). {would_fit(footprint, count, available)}"
    )


def candidates(count: int) -> Iterator[dict[str, int]]:
    """Yields the sizes of mesh axes that ``"auto"`` tries on this number of devices, the best first.

    More copies of the model serve more rows at once, so the tensor degree rises only as memory asks. Weights over
    ``fsdp`` are gathered at each use, so that comes last; it splits the widths that do not divide by heads.
    """
    divisors = [degree for degree in range(1, count + 1) if count % degree == 0]
    for degree in divisors:
        yield {"data": count // degree, "tensor": degree}
    for degree in reversed(divisors[:-1]):
        yield {"fsdp": count // degree, "tensor": degree}


def would_fit(footprint: Footprint, count: int, available: int) -> str:
    """Says in a sentence or two what would fit where ``count`` devices with this much memory do not hold the model."""
    advice = []
    narrow = footprint.bfloat16()
    if any(is_wide(weight) for weight in footprint.weights(1)):
        best = min((narrow.demand(sizes) for sizes in candidates(count)), key=lambda demand: demand.total)
        verdict = "fits with device_map='auto'" if best.fits(available) else "is still too much"
        advice.append(f"dtype='bfloat16' would need {format_bytes(best.total)} per device, which {verdict}.")
    enough = next((n for n in (count * 2**i for i in range(9)) if _some_fit(footprint, n, available)), None)
    if enough == count:
        advice.append("With device_map='auto' it fits on all of these devices.")
    elif enough is not None:
        advice.append(f"It would fit on {enough} devices of this size.")
    smallest = min(footprint.demand(sizes).total for sizes in candidates(count))
    smallest = format_bytes(smallest / (1 - RESERVE))
    advice.append(f"{count} device(s) would need {smallest} each; max_memory= sets the bound.")
    return "What would fit: " + " ".join(advice)


def _some_fit(footprint: Footprint, count: int, available: int) -> bool:
    return any(footprint.demand(sizes).fits(available) for sizes in candidates(count))
