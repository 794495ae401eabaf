"""Comparison of results with those of an oracle."""

import math


def assert_same(got, wanted, where="result", tolerance=1e-4):
    """Asserts that types, keys and their order, texts and integers are equal, and floats close."""
    assert type(got) is type(wanted), f"{where}: {type(got)} and {type(wanted)}"
    if isinstance(wanted, dict):
        assert list(got) == list(wanted), where
        for key in wanted:
            assert_same(got[key], wanted[key], f"{where}[{key!r}]", tolerance)
    elif isinstance(wanted, list):
        assert len(got) == len(wanted), where
        for index, (a, b) in enumerate(zip(got, wanted, strict=True)):
            assert_same(a, b, f"{where}[{index}]", tolerance)
    elif isinstance(wanted, float):
        assert math.isclose(got, wanted, rel_tol=tolerance, abs_tol=tolerance), f"{where}: {got} and {wanted}"
    else:
        assert got == wanted, where
