"""Loading needs little more memory than the weights take."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from load_memory import measure

MEBIBYTE = 2**20


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        pytest.param("float32", "float32", marks=pytest.mark.full),
        ("bfloat16", "float32"),
        pytest.param("float32", "bfloat16", marks=pytest.mark.full),
    ],
)
def test_memory_beyond_the_weights_is_bounded(stored: str, dtype: str) -> None:
    found = measure(width=512, features=20_000, vocabulary=60_000, stored=stored, dtype=dtype)
    # The largest array is 59 to 117 MiB, so that copies of it stand out from what the process needs anyway.
    assert found["beyond"] <= 2.2 * found["largest_array"] + 32 * MEBIBYTE, found
