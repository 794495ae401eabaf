"""Settings of every test run: 8 CPU devices, no network, no compile cache left behind."""

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

# Before anything imports jax: the flags are read when its backend starts. JAX_NUM_CPU_DEVICES wins over XLA_FLAGS.
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Compilations are counted by tests, so none may come from an earlier run.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ["JAXPIPE_COMPILE_CACHE"] = "off"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Threads of torch; with two workers on two cores more only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _gpu_asked_for(config: pytest.Config) -> bool:
    mark = config.option.markexpr or ""
    named = any("tests/gpu" in str(argument).replace(os.sep, "/") for argument in config.args)
    return named or ("gpu" in mark and "not gpu" not in mark)


def pytest_configure(config: pytest.Config) -> None:
    if not _gpu_asked_for(config):
        os.environ["JAX_PLATFORMS"] = "cpu"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _gpu_asked_for(config):
        return
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        config.hook.pytest_deselected(items=on_gpu)
        items[:] = [item for item in items if item not in on_gpu]


@pytest.fixture(scope="session", autouse=True)
def _devices() -> None:
    """Fails at once, with the reason, where a test process does not have its 8 CPU devices."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        import jax

        assert len(jax.devices()) == 8, f"Tests need 8 CPU devices; JAX found {jax.devices()}."


# Linux gives a process 65,530 mappings; every executable on a CPU takes several, and without one LLVM crashes.
_MAPPINGS, _MOST_MAPPINGS, _BETWEEN = Path("/proc/self/maps"), 30_000, 8
_tests = count(1)


@pytest.fixture(autouse=True)
def _few_mappings() -> Iterator[None]:
    """Forgets all executables after a test where there are too many for the process."""
    yield
    if next(_tests) % _BETWEEN or not _MAPPINGS.exists():
        return
    if _MAPPINGS.read_bytes().count(b"\n") > _MOST_MAPPINGS:
        import jax

        jax.clear_caches()
