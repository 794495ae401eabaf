"""Shape buckets: every size that enters a jitted function is rounded up to one of few values.

A size that was not seen before costs a compilation of seconds; a padded size costs compute and memory at every
call. Up to 512 positions the padding is cheap beside a compilation, so buckets double. Above 512 each doubling is
cut in four equal steps (512, 640, 768, 896, 1024, 1280, ...), which keeps the waste below a quarter of what was
asked for while adding only four buckets a doubling: 30 length buckets span 16 to 32,768. All lengths are
multiples of 8, which attention kernels and matrix units ask for. Batches double throughout, since a row of padding
in a small batch is nearly free where decoding is bound by reading the weights.
"""

_FINE_FROM = 512
_STEPS_PER_DOUBLING = 4
_CACHE_MINIMUM = 64

# A cache is made at once up to this many slots, and otherwise begins with this much room for new tokens.
_GROWS_FROM = 1024
_FIRST_ROOM = 256


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def length_bucket(n: int, minimum: int = 16) -> int:
    """Returns the bucket of a sequence length.

    Args:
        n: number of positions, at least 0.
        minimum: the smallest bucket, rounded up to a multiple of 8.

    Returns:
        The least bucket that holds ``n`` positions: a multiple of 8, a power of two up to 512, above that less
        than 25 % larger than ``n``.

    Raises:
        ValueError: ``n`` is negative.
    """
    if n < 0:
        raise ValueError(f"A sequence length is at least 0, not {n}.")
    n = max(n, 1)
    if n <= _FINE_FROM:
        bucket = _power_of_two(n)
    else:
        step = _power_of_two(n) // (2 * _STEPS_PER_DOUBLING)
        bucket = -(-n // step) * step
    return max(bucket, -(-minimum // 8) * 8)


def cache_bucket(n: int) -> int:
    """Returns the bucket of a key-value cache: `length_bucket` of ``n`` positions (prompt and new tokens), at least 64.

    Raises:
        ValueError: ``n`` is negative.
    """
    return length_bucket(n, minimum=_CACHE_MINIMUM)


def cache_stages(width: int, slots: int) -> tuple[int, ...]:
    """Returns the lengths that a cache has one after another while it fills.

    A step reads every slot, filled or not, so a long cache begins small and doubles when it is full. Calls that differ
    in their number of new tokens share the executables of the stages that they have in common, and what ends early
    compiles no more than it reached.

    Args:
        width: slots that the prompts take.
        slots: of the cache that holds all new tokens too, a `cache_bucket`.

    Returns:
        Ascending lengths; the last is ``slots``.
    """
    stages = [min(slots, max(_GROWS_FROM, cache_bucket(width + _FIRST_ROOM)))]
    while stages[-1] < slots:
        stages.append(min(2 * stages[-1], slots))
    return tuple(stages)


def batch_bucket(n: int, multiple: int = 1) -> int:
    """Returns the bucket of a batch size.

    Args:
        n: number of rows, at least 1.
        multiple: number of parts that the mesh cuts a batch into (data degree times fsdp degree).

    Returns:
        The least power of two that holds ``n`` rows; from ``multiple`` rows on, the least power of two times
        ``multiple``, so that every device gets the same number of rows. A smaller batch is replicated, not cut.

    Raises:
        ValueError: ``n`` or ``multiple`` is below 1.
    """
    if n < 1 or multiple < 1:
        raise ValueError(f"A batch has at least 1 row and 1 part, not {n} rows and {multiple} parts.")
    if n < multiple:
        return min(_power_of_two(n), multiple)
    return _power_of_two(-(-n // multiple)) * multiple
