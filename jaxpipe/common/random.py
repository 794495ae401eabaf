"""Seeds of calls that are given none."""

import os
import random
import threading

_lock = threading.Lock()
_sequence: random.Random | None = None


def set_seed(seed: int) -> None:
    """Fixes the sequence of seeds that calls without a ``seed`` draw from now on.

    Args:
        seed: any non-negative integer; the same one gives the same results call by call.

    Raises:
        ValueError: the seed is not a non-negative integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"set_seed takes a non-negative integer; it was given {seed!r}.")
    global _sequence
    with _lock:
        _sequence = random.Random(seed)


def next_seed() -> int:
    """Returns a seed in [0, 2**31): the next of the fixed sequence, else fresh entropy of the operating system."""
    with _lock:
        if _sequence is not None:
            return _sequence.getrandbits(31)
    return int.from_bytes(os.urandom(4), "little") & 0x7FFFFFFF
