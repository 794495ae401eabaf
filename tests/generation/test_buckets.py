import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpipe.generation.buckets import batch_bucket, cache_bucket, length_bucket


@given(st.integers(0, 300_000))
def test_length_bucket_holds_the_length_with_bounded_waste(n: int) -> None:
    bucket = length_bucket(n)
    assert bucket >= n and bucket % 8 == 0
    assert length_bucket(bucket) == bucket
    assert bucket <= length_bucket(n + 1)
    assert bucket <= (max(1.25 * n, 512) if n > 512 else max(2 * n, 16))


def test_length_buckets_are_few() -> None:
    buckets = sorted({length_bucket(n) for n in range(32_769)})
    assert len(buckets) == 30
    assert buckets[:9] == [16, 32, 64, 128, 256, 512, 640, 768, 896]


def test_length_minimum_is_a_multiple_of_8() -> None:
    assert length_bucket(1, minimum=1) == 8
    assert length_bucket(0, minimum=20) == 24
    assert cache_bucket(1) == 64


@given(st.integers(1, 5000), st.integers(1, 24))
def test_batch_bucket_is_cut_evenly_once_it_can_be(n: int, multiple: int) -> None:
    bucket = batch_bucket(n, multiple)
    assert n <= bucket <= batch_bucket(n + 1, multiple)
    assert batch_bucket(bucket, multiple) == bucket
    if n >= multiple:
        assert bucket % multiple == 0
        assert (bucket // multiple) & (bucket // multiple - 1) == 0


def test_batch_buckets_double() -> None:
    assert [batch_bucket(n) for n in (1, 2, 3, 4, 5, 9, 33)] == [1, 2, 4, 4, 8, 16, 64]
    assert [batch_bucket(n, 4) for n in (1, 3, 4, 5, 9)] == [1, 4, 4, 8, 16]


def test_sizes_below_their_range_are_errors() -> None:
    with pytest.raises(ValueError, match="-1"):
        length_bucket(-1)
    with pytest.raises(ValueError, match="0 rows"):
        batch_bucket(0)
