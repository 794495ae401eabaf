"""The checkpoints that parity tests share."""

from tests.parity.harness import made  # noqa: F401
