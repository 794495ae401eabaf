from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from jaxpipe.common.errors import PlacementError
from jaxpipe.sharding import memory
from jaxpipe.sharding.memory import available_bytes, format_bytes, parse_bytes, parse_max_memory, usable_devices


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (123456, 123456), (0, 0), ("17", 17), ("1KB", 1000), ("1KiB", 1024), ("2MB", 2 * 10**6), ("2 MiB", 2 * 2**20),
        ("10GB", 10**10), ("10GiB", 10 * 2**30), ("1.5GiB", 3 * 2**29), (" 1TiB ", 2**40),
    ],
)  # fmt: skip
def test_parse_bytes(value: int | str, count: int) -> None:
    assert parse_bytes(value, "max_memory[0]") == count


@pytest.mark.parametrize("value", ["", "GiB", "-1GiB", "10 gb", "10Gb", "10XB", -5, 1.5, None, True, "1e3MB"])
def test_parse_bytes_refuses(value: object) -> None:
    with pytest.raises(PlacementError, match=r"max_memory\['cpu'\]=.*units: B, KB"):
        parse_bytes(value, "max_memory['cpu']")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1536 * 2**20, "1.50 GiB"), (80 * 2**30, "80.0 GiB"),
     (500 * 2**30, "500 GiB"), (1023.9 * 2**20, "1.00 GiB"), (5000 * 2**40, "5000 TiB")],
)  # fmt: skip
def test_format_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


def test_max_memory_names_devices_by_ordinal() -> None:
    devices = jax.devices()
    bounds, host = parse_max_memory({0: "1MB", 3: 5, 4: 0, "cpu": "30GB"}, devices)
    assert bounds == {devices[0]: 10**6, devices[3]: 5, devices[4]: 0}
    assert host == 30 * 10**9
    assert usable_devices(devices, bounds, host) == [devices[0], devices[3]]
    assert usable_devices(devices, *parse_max_memory({"cpu": 10}, devices)) == devices
    assert usable_devices(devices, *parse_max_memory(None, devices)) == devices


@pytest.mark.parametrize("key", [8, -1, "cuda:0", "disk", "0", 1.0, True])
def test_max_memory_of_unknown_devices(key: object) -> None:
    with pytest.raises(PlacementError, match=r"which is not there.*0 to 7 of the cpu devices, and 'cpu'"):
        parse_max_memory({key: "1GB"}, jax.devices())  # type: ignore[dict-item]


def test_no_device_left() -> None:
    with pytest.raises(PlacementError, match="leaves no cpu device"):
        usable_devices(jax.devices(), *parse_max_memory({0: 0}, jax.devices()))
    with pytest.raises(PlacementError, match="device_map='cpu'"):
        usable_devices([gpu(None)], {}, 10**9)


def gpu(stats: dict | None, process: int = 0) -> SimpleNamespace:
    # Hashable, as devices are.
    class Device(SimpleNamespace):
        __hash__ = object.__hash__

    return Device(platform="gpu", process_index=process, memory_stats=lambda: stats)


def test_available_of_accelerators() -> None:
    first, second = gpu({"bytes_limit": 100, "bytes_in_use": 30}), gpu({"bytes_limit": 90})
    assert available_bytes([first], {}, None) == 70
    assert available_bytes([second, first], {}, None) == 70
    assert available_bytes([second, first], {first: 80}, None) == 80
    assert available_bytes([first, gpu(None)], {}, None) is None
    assert available_bytes([first, gpu({"bytes_limit": 1}, process=1)], {}, None) == 70
    assert available_bytes([gpu({"bytes_limit": 10, "bytes_in_use": 20})], {}, None) == 0


def test_cpu_devices_share_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_bytes", lambda: 800)
    devices = jax.devices()
    assert available_bytes(devices, {}, None) == 100
    assert available_bytes(devices[:1], {}, None) == 800
    assert available_bytes(devices[:2], {}, 50) == 25
    assert available_bytes(devices[:2], {devices[0]: 7}, None) == 7
    monkeypatch.setattr(memory, "host_bytes", lambda: None)
    assert available_bytes(devices, {}, None) is None


def test_host_bytes_is_plausible() -> None:
    host = memory.host_bytes()
    assert host is not None
    assert 10**6 < host < 10**15


def test_system_bytes(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24684084 kB\nMemAvailable:   2048 kB\n")
    assert memory._system_bytes(meminfo) == 2048 * 1024
    physical = memory._system_bytes(tmp_path / "absent")
    assert physical is not None
    assert physical > 10**6


def test_cgroup_limits(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    assert memory._cgroup_bytes(tmp_path, tmp_path / "absent") is None

    def write(folder: Path, **files: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)

    membership.write_text("0::/a/b\n")
    assert memory._cgroup_bytes(tmp_path, membership) is None
    write(tmp_path / "a/b", memory__max="max\n", memory__current="5\n", memory__stat="")
    assert memory._cgroup_bytes(tmp_path, membership) is None
    write(tmp_path / "a", memory__max="1000\n", memory__current="600\n", memory__stat="inactive_file 100\n")
    assert memory._cgroup_bytes(tmp_path, membership) == 500
    membership.write_text("4:memory:/gone\n1:cpu:/\n")
    write(
        tmp_path / "memory", memory__limit_in_bytes="300", memory__usage_in_bytes="100",
        memory__stat="inactive_file 3\ntotal_inactive_file 50\n",
    )  # fmt: skip
    assert memory._cgroup_bytes(tmp_path, membership) == 250
