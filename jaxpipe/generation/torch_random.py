"""The draws of torch's generator on the CPU that watermarks are made of, on the host and without torch.

The generator is MT19937, seeded by the lowest 32 bits of its seed, as numpy's `RandomState` is (Matsumoto and Nishimura
1998, doi 10.1145/272991.272995). What is drawn with it follows torch's ``aten/src/ATen/native/TensorFactories.cpp``
(``randperm``: a Fisher-Yates shuffle that takes the remainder of one word for each place) and
``aten/src/ATen/core/DistributionsHelper.h`` (``randint``: the remainder of one word).
"""

import numpy as np


def words(seed: int, count: int) -> np.ndarray:
    """Returns the first `count` words of a generator, (count,) uint32."""
    return np.random.RandomState(seed & 0xFFFFFFFF).randint(0, 2**32, size=count, dtype=np.uint32)


def randint(seed: int, high: int, count: int) -> np.ndarray:
    """Returns ``torch.randint(0, high, (count,))``, (count,) int64, for `high` below 2 ** 28."""
    return (words(seed, count) % np.uint32(high)).astype(np.int64)


def swaps(seed: int, size: int, count: int) -> np.ndarray:
    """Returns the places with which the first `count` places of a shuffle of `size` are swapped, in turn, int64."""
    steps = np.arange(min(count, size - 1), dtype=np.uint32)
    return (words(seed, len(steps)) % (np.uint32(size) - steps)).astype(np.int64) + steps


def randperm(seed: int, size: int, count: int | None = None) -> np.ndarray:
    """Returns the first `count` entries of ``torch.randperm(size)``, all if None, int64.

    The shuffle is worked out at once. At step i place i gets what place j(i) >= i holds, and j(i) what place i held.
    A place holds what the latest step that aimed at it has put there, which is what that step found at its own place.
    """
    count = size if count is None else count
    target = swaps(seed, size, count)
    steps = np.arange(len(target))
    # The latest earlier step with the same target, -1 where there is none.
    order = np.argsort(target, kind="stable")
    same = target[order[1:]] == target[order[:-1]]
    before = np.full(len(target), -1)
    before[order[1:][same]] = order[:-1][same]
    # The latest step before i that aimed at place i; the last to write wins.
    last = np.full(size, -1)
    last[target] = steps
    aimed = last[: len(target)]
    aimed = np.where(aimed == steps, before, aimed)
    # What step i finds at its own place goes back, from step to step, to a place that held its own number.
    found = np.where(aimed < 0, steps, aimed)
    while not np.array_equal(found, found[found]):
        found = found[found]
    drawn = np.where(before < 0, target, found[before])
    if count < size:
        return drawn
    left = np.ones(size, bool)
    left[drawn] = False
    return np.append(drawn, np.flatnonzero(left))


def is_among_first(seed: int, size: int, count: int, value: int) -> bool:
    """Tells whether a value is among the first `count` entries of ``torch.randperm(size)``."""
    target = swaps(seed, size, count)
    place, step = value, 0
    while True:
        # It gets to its final place when a step aims at where it is, and moves on when that place's own step comes.
        aims = np.flatnonzero(target[step : place + 1] == place)
        if len(aims):
            return True
        if place >= len(target):
            return place < count  # the last place of all is never swapped
        place, step = int(target[place]), place + 1
