"""``jaxpipe env``: what a bug report needs."""

import importlib.metadata
import os
import platform
import sys
from typing import Any

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml_dtypes", "safetensors", "huggingface_hub",
    "tokenizers", "jinja2", "gguf", "pydantic", "typer", "rich", "pyarrow",
)  # fmt: skip
# A prefix may take in access tokens, so variables are named one by one or begin with a prefix below.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT")
PREFIXES = ("JAX_", "JAXPIPE_", "XLA_PYTHON_", "NCCL_")


def collect() -> dict[str, Any]:
    """Versions, machine, devices and settings, as plain JSON; devices that fail to start are said to have."""
    from jaxpipe import __version__
    from jaxpipe.sharding.memory import host_bytes

    return {
        "jaxpipe": __version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_available_bytes": host_bytes(),
        "packages": {name: _version(name) for name in PACKAGES},
        **_devices(),
        "compile_cache": _compile_cache(),
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if name in VARIABLES or name.startswith(PREFIXES)
        },
    }


def as_text(facts: dict[str, Any]) -> str:
    """The facts as lines to paste in a report."""
    from jaxpipe.sharding.memory import format_bytes

    lines = [f"{name:<18} {facts[name]}" for name in ("jaxpipe", "python", "system", "cpus")]
    if facts["memory_available_bytes"] is not None:
        lines += [f"{'memory available':<18} {format_bytes(facts['memory_available_bytes'])}"]
    lines += [f"{name:<18} {version or 'not installed'}" for name, version in facts["packages"].items()]
    lines += [f"{'compile cache':<18} {facts['compile_cache']}"]
    if "devices_error" in facts:
        lines += [f"{'devices':<18} none: {facts['devices_error']}"]
    for device in facts["devices"]:
        memory = device["memory_bytes"]
        size = f", {format_bytes(memory)}" if memory else ""
        used = f" ({format_bytes(device['memory_used_bytes'])} used)" if device["memory_used_bytes"] else ""
        lines += [f"{'device ' + str(device['id']):<18} {device['platform']}: {device['kind']}{size}{used}"]
    lines += [f"{name:<18} {value}" for name, value in facts["variables"].items()]
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        return {"devices": [], "devices_error": str(error)}
    found = []
    for device in devices:
        stats = device.memory_stats() or {} if device.process_index == jax.process_index() else {}
        found.append(
            {
                "id": device.id,
                "platform": device.platform,
                "kind": device.device_kind,
                "memory_bytes": stats.get("bytes_limit"),
                "memory_used_bytes": stats.get("bytes_in_use"),
            }
        )
    return {"devices": found, "processes": jax.process_count()}


def _compile_cache() -> str:
    import jax

    from jaxpipe.common.compile_cache import use_compile_cache

    return use_compile_cache() or "off" if jax.config.values["jax_enable_compilation_cache"] else "off"
