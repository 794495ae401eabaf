"""The checkpoints that tests on several devices share with the parity tests."""

from tests.parity.harness import made  # noqa: F401
