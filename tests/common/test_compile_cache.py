"""The persistent compile cache is private and the user's choice wins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = """
import jax
from jaxpipe.common.compile_cache import use_compile_cache
print(use_compile_cache(), jax.config.values["jax_compilation_cache_dir"])
"""


def cache_of(home: Path, **variables: str) -> list[str]:
    environment = {k: v for k, v in os.environ.items() if "CACHE" not in k} | {"HOME": str(home), **variables}
    run = subprocess.run([sys.executable, "-c", SHOW], env=environment, text=True, stdout=subprocess.PIPE, check=True)
    return run.stdout.split()


def test_it_is_made_private(tmp_path: Path) -> None:
    directory = tmp_path / ".cache" / "jaxpipe" / "xla"
    assert cache_of(tmp_path) == [str(directory)] * 2
    assert directory.stat().st_mode & 0o777 == 0o700


def test_the_users_directory_wins(tmp_path: Path) -> None:
    own = str(tmp_path / "own")
    assert cache_of(tmp_path, JAX_COMPILATION_CACHE_DIR=own) == [own, own]
    assert cache_of(tmp_path, JAXPIPE_COMPILE_CACHE=own) == [own, own]
    assert not (tmp_path / ".cache").exists()


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    assert cache_of(tmp_path, JAXPIPE_COMPILE_CACHE="off") == ["None", "None"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_directory_that_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o777)
    assert cache_of(tmp_path, JAXPIPE_COMPILE_CACHE=str(directory)) == ["None", "None"]
