"""Memory of devices: what is free, and what ``max_memory`` allows."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from jaxpipe.common.errors import PlacementError
from jaxpipe.sharding.mesh import Device, is_integer

UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


def format_bytes(count: float) -> str:
    """Writes a number of bytes in binary units with three digits: ``"1.50 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1023.5 or unit == "TiB":
            break
        count /= 1024
    digits = 0 if unit == "B" or count >= 100 else 1 if count >= 10 else 2
    return f"{count:.{digits}f} {unit}"


def parse_bytes(value: object, argument: str) -> int:
    """Reads an amount of memory: a number of bytes, or a string with a unit such as ``"10GiB"`` or ``"1.5 GB"``.

    Raises:
        PlacementError: it is neither, or negative; the message names ``argument``.
    """
    if is_integer(value) and int(value) >= 0:  # type: ignore[call-overload]
        return int(value)  # type: ignore[call-overload]
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        if match and (match[2] or "B") in UNITS:
            return int(float(match[1]) * UNITS[match[2] or "B"])
    raise PlacementError(
        f"{argument}={value!r} is not an amount of memory; give a number of bytes, or a string such as '10GiB' "
        f"(units: {', '.join(UNITS)})."
    )


def parse_max_memory(
    max_memory: Mapping[int | str, int | str] | None, devices: Sequence[Device]
) -> tuple[dict[Device, int], int | None]:
    """Reads ``max_memory={0: "10GiB", 1: 123456, "cpu": "30GB"}``, as Transformers takes it.

    Args:
        max_memory: ordinal of a device -> what it may hold; ``"cpu"``: what all CPU devices together may hold.
            As in Transformers, once an ordinal is named the devices that are not named are not used; neither are
            those of 0 bytes.
        devices: the devices that the ordinals count.

    Returns:
        Bytes of each device named, and the bytes of the host or None.

    Raises:
        PlacementError: a key names no device, or a value is not an amount of memory.
    """
    bounds: dict[Device, int] = {}
    host: int | None = None
    for key, value in (max_memory or {}).items():
        amount = parse_bytes(value, f"max_memory[{key!r}]")
        if key == "cpu":
            host = amount
        elif is_integer(key) and 0 <= int(key) < len(devices):
            bounds[devices[int(key)]] = amount
        else:
            platform = devices[0].platform
            raise PlacementError(
                f"max_memory names the device {key!r}, which is not there; the keys are the ordinals "
                f"0 to {len(devices) - 1} of the {platform} devices, and 'cpu'."
            )
    return bounds, host


def usable_devices(devices: Sequence[Device], bounds: Mapping[Device, int], host: int | None) -> list[Device]:
    """Returns the devices that ``max_memory`` lets a plan use; arguments as `parse_max_memory` gives them.

    Raises:
        PlacementError: none is left.
    """
    usable = [device for device in devices if not bounds or bounds.get(device, 0) > 0]
    if usable and devices[0].platform != "cpu" and not bounds and host is not None:
        usable = []
    if not usable:
        raise PlacementError(
            f"max_memory leaves no {devices[0].platform} device to use; name some of 0 to {len(devices) - 1}, "
            "or ask for the CPU by device_map='cpu'."
        )
    return usable


def available_bytes(devices: Sequence[Device], bounds: Mapping[Device, int], host: int | None) -> int | None:
    """Returns the bytes that each of these devices can still take: those of the smallest one, as shards are equal.

    A bound of ``max_memory`` is taken as it stands. CPU devices share the host's memory in equal parts. Devices of
    other processes are taken to be like those of this one.

    Args:
        devices: the devices that take part.
        bounds: bytes of the devices that ``max_memory`` names.
        host: bytes of the host by ``max_memory``; None: what the host has free.

    Returns:
        Bytes, or None where a device does not tell and ``max_memory`` does not either.
    """
    local = [device for device in devices if device.process_index == jax.process_index()]
    amounts = [bounds[device] for device in devices if device in bounds]
    for device in local:
        if device in bounds:
            continue
        if device.platform == "cpu":
            free = host_bytes() if host is None else host
            amount = None if free is None else free // sum(other.platform == "cpu" for other in local)
        else:
            amount = free_device_bytes(device)
        if amount is None:
            return None
        amounts.append(amount)
    return min(amounts, default=None)


def free_device_bytes(device: Device) -> int | None:
    """Returns the bytes of a GPU or TPU that JAX may still allocate, or None where its allocator does not tell."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return max(0, stats["bytes_limit"] - stats.get("bytes_in_use", 0))


def host_bytes() -> int | None:
    """Returns the bytes of the host's memory that are available to this process, or None where nothing tells."""
    amounts = [amount for amount in (_system_bytes(), _cgroup_bytes()) if amount is not None]
    return min(amounts, default=None)


def _system_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    if meminfo.exists():
        match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        if match:
            return int(match[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system
        return None


def _cgroup_bytes(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """What the control groups (version 1 or 2) around this process leave of their limits."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    amounts = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, usage, cache = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit = root / "memory", "memory.limit_in_bytes"
            usage, cache = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        # A limit may stand at any level above; inside a container the path may not exist, but the root does.
        folder = base / path.lstrip("/")
        for level in (folder, *folder.parents):
            if level == base or base in level.parents:
                amounts.append(_cgroup_level(level, limit, usage, cache))
    return min((amount for amount in amounts if amount is not None), default=None)


def _cgroup_level(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    try:
        bound, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        if not bound.isdigit():  # "max"
            return None
        # Pages of files that nobody reads now count as used, but go when memory is needed.
        match = re.search(rf"^{cache} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
        return max(0, int(bound) - used + (int(match[1]) if match else 0))
    except (OSError, ValueError):
        return None
