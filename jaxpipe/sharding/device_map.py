"""Reading ``device_map`` and ``mesh``: which devices are asked for, and on what mesh."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from jaxpipe.common.errors import PlacementError
from jaxpipe.sharding.mesh import Device, is_integer, make_mesh
from jaxpipe.sharding.rules import MESH_AXES

AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")
FORMS = (
    f"None, {', '.join(map(repr, AUTOMATIC))}, a device ('cpu', 'gpu', 'cuda:1', 'tpu:0', an ordinal or a jax.Device), "
    "or mesh axes such as {'data': 2, 'tensor': 4}"
)


@dataclass(frozen=True)
class Request:
    """What ``device_map`` or ``mesh`` asks for.

    Attributes:
        devices: the devices that may be used, and that the ordinals of ``max_memory`` count.
        mesh: the mesh asked for, or None.
        sizes: the sizes of mesh axes asked for, or None. Without mesh and sizes, the planner picks.
        notes: what the user should know.
    """

    devices: tuple[Device, ...]
    mesh: Mesh | None = None
    sizes: dict[str, int] | None = None
    notes: tuple[str, ...] = ()


def read_device_map(device_map: Any, mesh: Mesh | None, devices: Sequence[Device] | None) -> Request:
    """Reads the forms of ``device_map`` and ``mesh``.

    Args:
        device_map: one of the forms of the public contract.
        mesh: a ready mesh with axes among `MESH_AXES`, instead of ``device_map``.
        devices: the devices to choose among; None: all of the default backend.

    Raises:
        PlacementError: both are given, or a form, device or axis is wrong.
    """
    if mesh is not None:
        if device_map is not None:
            raise PlacementError(f"Both device_map={device_map!r} and mesh= are given; give one.")
        return _read_mesh(mesh)
    if isinstance(device_map, Mapping):
        if list(device_map) == [""]:  # Transformers' spelling of "everything on this device"
            return read_device_map(device_map[""], None, devices)
        _check_axes(device_map)
        return Request(tuple(devices or default_devices()), sizes=dict(device_map))
    if isinstance(device_map, str) and device_map in AUTOMATIC:
        notes = () if device_map == "auto" else (f"device_map={device_map!r} is planned as 'auto'.",)
        return Request(tuple(devices or default_devices()), notes=notes)
    device = find_device(device_map, devices)
    pool = tuple(devices or jax.devices(device.platform))
    return Request(pool, mesh=make_mesh({"data": 1}, [device]))


def default_devices() -> list[Device]:
    """Returns all devices of the default backend, that of ``jax_default_device`` where it is configured."""
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    if default is None:
        return jax.devices()
    return jax.devices(default if isinstance(default, str) else default.platform)


def find_device(device: Any, devices: Sequence[Device] | None = None) -> Device:
    """Returns the device that a string, an ordinal, a ``jax.Device`` or None (the default device) means.

    Raises:
        PlacementError: it means none, or one that is not there.
    """
    if isinstance(device, jax.Device):
        return device
    if device is None:
        default = jax.config.jax_default_device  # type: ignore[attr-defined]
        if devices:
            return devices[0]
        if default is None or isinstance(default, str):
            return jax.local_devices(backend=default)[0]
        return default
    if is_integer(device):
        return _pick(devices or default_devices(), int(device), device)
    match = re.fullmatch(r"([a-z]+)(?::(\d+))?", device) if isinstance(device, str) else None
    if match is None:
        raise PlacementError(f"device_map={device!r} is not understood; expected {FORMS}.")
    try:
        found = jax.devices(match[1])
    except RuntimeError as error:
        raise PlacementError(
            f"device_map={device!r}: JAX has no {match[1]!r} devices here; its default devices are "
            f"{', '.join(map(str, jax.devices()[:8]))}. Expected {FORMS}."
        ) from error
    return _pick(found, int(match[2] or 0), device)


def _pick(devices: Sequence[Device], ordinal: int, asked: Any) -> Device:
    if not 0 <= ordinal < len(devices):
        raise PlacementError(
            f"device_map={asked!r}: there is no such device; there are {len(devices)} {devices[0].platform} devices, "
            f"0 to {len(devices) - 1}."
        )
    return devices[ordinal]


def _check_axes(device_map: Mapping[Any, Any]) -> None:
    """Tells a map of modules to devices from sizes of mesh axes; `complete_sizes` checks the latter."""
    if not device_map:
        raise PlacementError(f"device_map={{}} is empty; expected {FORMS}.")
    strange = [key for key in device_map if key not in MESH_AXES]
    if any(_like_modules(key, device_map[key]) for key in strange):
        raise PlacementError(
            f"device_map={dict(device_map)!r} maps modules to devices, as Transformers does. Here every layer is split "
            f"over all devices instead: give 'auto', or the sizes of mesh axes ({', '.join(MESH_AXES)}), "
            "such as {'data': 2, 'tensor': 4}."
        )


def _like_modules(key: Any, value: Any) -> bool:
    return not isinstance(key, str) or key == "" or "." in key or not is_integer(value) or value == 0


def _read_mesh(mesh: Mesh) -> Request:
    if not isinstance(mesh, Mesh):
        raise PlacementError(f"mesh= takes a jax.sharding.Mesh, not {type(mesh).__name__}; sizes go to device_map=.")
    strange = [name for name in mesh.axis_names if name not in MESH_AXES]
    if strange:
        raise PlacementError(f"mesh= has the axes {mesh.axis_names}; of these {strange} are not among {MESH_AXES}.")
    devices = tuple(mesh.devices.flat)
    pool = tuple(jax.devices(devices[0].platform))
    if all(kind == AxisType.Auto for kind in mesh.axis_types):
        return Request(pool, mesh=mesh)
    automatic = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    return Request(pool, mesh=automatic, notes=("The axes of mesh= are used with AxisType.Auto.",))
