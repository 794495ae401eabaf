"""Shapes of batches: how long rows are padded, and how many of them run at once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxpipe.generation.buckets import batch_bucket, length_bucket
from jaxpipe.sharding.memory import free_device_bytes
from jaxpipe.sharding.mesh import data_degree

# Padded tokens of a batch on one device: enough to fill it. More gain nothing, and on a CPU fall out of its caches.
_CPU_TOKENS = 1024
_ACCELERATOR_TOKENS = 16_384
# The share of the free memory that a batch's activations may take.
_MEMORY_SHARE = 0.25
# Padded lengths between two powers of two: more waste less, and cost more compilations.
_STEPS = 4
_CPU_STEPS = 8
# Batches from which on a finer choice of lengths is worth its compilations, the second on a CPU.
_MANY = 8
_VERY_MANY = 64
_SHORTEST = 16


def _step(length: int, steps: int) -> int:
    below = 1 << (max(length, 2) - 1).bit_length() >> 1
    return max(8, below // steps)


def fine_length(length: int, steps: int) -> int:
    """Returns the least multiple of 8 that is at least ``length``, 16, and one of ``steps`` lengths between two
    powers of two.
    """
    step = _step(length, steps)
    return max(-(-length // step) * step, _SHORTEST)


@dataclass
class Sizing:
    """The shapes that a pipeline's batches take.

    Attributes:
        tokens: padded tokens of a batch, where no batch size is asked for.
        parts: number of parts that the mesh cuts a batch into.
        steps: the most padded lengths between two powers of two.
        limit: number of positions that the model has learned, or None.
        seen: lengths that full batches had.
    """

    tokens: int
    parts: int = 1
    steps: int = _STEPS
    limit: int | None = None
    seen: set[int] = field(default_factory=set)

    def coarse(self, length: int) -> int:
        """Returns the padded length of few rows: a power of two, so that there are few compilations."""
        return self._within_limit(length, length_bucket(length))

    def fine(self, batches: int) -> Callable[[int], int] | None:
        """Returns what gives the padded length of a row among many, or None where ``batches`` are too few for it.

        A length that no call had before takes the shape of one a little longer that is compiled already.
        """
        if batches < _MANY:
            return None
        steps = self.steps if batches >= _VERY_MANY else min(self.steps, _STEPS)
        before = sorted(self.seen)

        def padded(length: int) -> int:
            wanted = self._within_limit(length, fine_length(length, steps))
            longest = wanted + 2 * _step(wanted, steps)
            found = next((seen for seen in before if wanted <= seen <= longest), wanted)
            self.seen.add(found)
            return found

        return padded

    def rows(self, length: int) -> int:
        """Returns the number of rows of a full batch of a padded length: a power of two times ``parts``."""
        rows = max(self.tokens // (max(length, 1) * self.parts), 1)
        return (1 << rows.bit_length() - 1) * self.parts

    def size(self, count: int, full: int) -> int:
        """Returns the size that ``count`` rows are padded to, where a full batch has ``full``."""
        return min(batch_bucket(count, self.parts), -(-max(count, full) // self.parts) * self.parts)

    def _within_limit(self, length: int, padded: int) -> int:
        """No more positions than the model has, where the tokens themselves fit."""
        return padded if self.limit is None or self.limit < length else min(padded, self.limit)


def sizing_of(model: Any) -> Sizing:
    """Returns the shapes that suit a model, the platform that it is on and its free memory.

    Args:
        model: a `PreTrainedModel`; of another object what it lacks is not asked.
    """
    mesh, config = getattr(model, "mesh", None), getattr(model, "config", None)
    limit = None if config is None else config.longest_input()
    if mesh is None:
        return Sizing(_CPU_TOKENS, limit=limit)
    device, parts = mesh.devices.flat[0], data_degree(mesh)
    if device.platform == "cpu":
        return Sizing(_CPU_TOKENS * parts, parts, _CPU_STEPS, limit)
    free = free_device_bytes(device)
    tokens = _ACCELERATOR_TOKENS
    if free is not None:
        tokens = min(tokens, max(int(free * _MEMORY_SHARE) // _bytes_per_token(config), 1))
    return Sizing(tokens * parts, parts, limit=limit)


def _bytes_per_token(config: Any) -> int:
    """An upper estimate of what a token takes at the widest place: an MLP beside attention, or logits in float32."""
    width = getattr(config, "hidden_size", 1024)
    vocabulary = getattr(config, "vocab_size", 0)
    return 4 * max(32 * width, 3 * vocabulary)
