"""The table that a sharding plan prints."""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax.sharding import PartitionSpec

from jaxpipe.sharding.memory import format_bytes

if TYPE_CHECKING:
    from jaxpipe.sharding.plan import ShardingPlan

NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def collapse_layers(path: str) -> str:
    """Replaces the numbers of layers in a weight's path by ``*``: ``layers.3.norm`` -> ``layers.*.norm``."""
    return NUMBER.sub("*", path)


def plan_table(plan: "ShardingPlan") -> str:
    """Renders a plan as text: the mesh, bytes per device, a row for every kind of weight, the notes."""
    mesh = plan.mesh
    axes = " x ".join(f"{name}={size}" for name, size in mesh.shape.items())
    available = "unknown" if plan.available_per_device is None else format_bytes(plan.available_per_device)
    head = [
        ("mesh", f"{axes} on {mesh.size} {mesh.devices.flat[0].platform} device{'s' if mesh.size > 1 else ''}"),
        ("weights", f"{format_bytes(plan.bytes_per_device)} per device of {available} available"),
        ("KV cache", f"{format_bytes(plan.cache_bytes_per_device)} per device"),
    ]
    rows = [("weight", "count", "shape", "dtype", "spec", "total", "per device"), *_rows(plan)]
    parts = [align(head), align(rows, right=(1, 5, 6))]
    if plan.notes:
        parts.append("\n".join(f"- {note}" for note in plan.notes))
    return "\n\n".join(parts)


def _rows(plan: "ShardingPlan") -> list[tuple[str, ...]]:
    kinds: dict[tuple[str, tuple[int, ...], str, PartitionSpec], list[str]] = {}
    for weight in plan.weights:
        spec = plan.shardings[weight.path].spec
        kind = (collapse_layers(weight.path), weight.shape, np.dtype(weight.dtype).name, spec)
        kinds.setdefault(kind, []).append(weight.path)
    rows = []
    for (_, shape, dtype, spec), paths in kinds.items():
        count, itemsize = len(paths), np.dtype(dtype).itemsize
        shard = plan.shardings[paths[0]].shard_shape(shape)
        rows.append(
            (
                name_of(paths),
                str(count),
                " x ".join(map(str, shape)) or "scalar",
                dtype,
                spec_text(spec),
                format_bytes(count * math.prod(shape) * itemsize),
                format_bytes(count * math.prod(shard) * itemsize),
            )
        )
    return rows


def name_of(paths: Sequence[str]) -> str:
    """Writes paths that differ in their numbers alone as one: ``layers.{0..31}.norm``, ``*`` where some are absent."""
    numbers = list(zip(*(map(int, NUMBER.findall(path)) for path in paths), strict=True))
    names = iter(numbers)

    def write(_: re.Match[str]) -> str:
        values = sorted(set(next(names)))
        if len(values) == 1:
            return str(values[0])
        return f"{{{values[0]}..{values[-1]}}}" if values == list(range(values[0], values[-1] + 1)) else "*"

    return NUMBER.sub(write, paths[0])


def spec_text(spec: PartitionSpec) -> str:
    """Writes a PartitionSpec for people: ``replicated``, or ``fsdp, -, tensor`` with a dash where nothing splits."""
    if not any(spec):
        return "replicated"
    return ", ".join("-" if not axis else "+".join(axis) if isinstance(axis, tuple) else axis for axis in spec)


def align(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Lays out rows of text in columns two spaces apart; the columns in ``right`` are aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = [[row[i].rjust(w) if i in right else row[i].ljust(w) for i, w in enumerate(widths)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in cells)
