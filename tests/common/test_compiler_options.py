"""Which options are set, and that the user's win."""

import pytest

from jaxpipe.common.compiler_options import many_rows


def test_options_are_for_gpus_only() -> None:
    assert many_rows("cpu") == {} == many_rows("tpu")


def test_the_users_flags_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x")
    assert many_rows("gpu") == {"xla_gpu_enable_triton_gemm": False}
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x --xla_gpu_enable_triton_gemm=true")
    assert many_rows("gpu") == {}
