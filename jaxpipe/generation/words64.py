"""Arithmetic of 64-bit words on devices that have words of 32 bits: a word is a pair of uint32 arrays, low and high."""

import jax
import jax.numpy as jnp

Array = jax.Array
Word = tuple[Array, Array]


def halves(number: int) -> tuple[int, int]:
    """Returns the low and high half of a number of 64 bits, negative ones as two's complements."""
    return number & 0xFFFFFFFF, number >> 32 & 0xFFFFFFFF


def add(a: Word, b: Word) -> Word:
    """Returns a + b, modulo 2 ** 64; the words broadcast."""
    low = a[0] + b[0]
    return low, a[1] + b[1] + (low < b[0]).astype(jnp.uint32)


def multiply(a: Word, factor: int) -> Word:
    """Returns a * factor, modulo 2 ** 64."""
    low, high = halves(factor)
    return a[0] * jnp.uint32(low), _upper(a[0], low) + a[0] * jnp.uint32(high) + a[1] * jnp.uint32(low)


def _upper(x: Array, factor: int) -> Array:
    """The upper 32 bits of x * factor, from products of 16 bits."""
    x0, x1 = x & 0xFFFF, x >> 16
    f0, f1 = jnp.uint32(factor & 0xFFFF), jnp.uint32(factor >> 16)
    middle = x1 * f0 + (x0 * f0 >> 16)
    other = x0 * f1 + (middle & 0xFFFF)
    return x1 * f1 + (middle >> 16) + (other >> 16)


def remainder(a: Word, divisor: int) -> Array:
    """Returns the remainder, at least 0, of a number with a sign in two's complement; uint32.

    Args:
        a: the word.
        divisor: from 1 to 2 ** 24.
    """
    if divisor & (divisor - 1) == 0:
        return a[0] & jnp.uint32(divisor - 1)
    rest = a[1] % jnp.uint32(divisor)
    for shift in (24, 16, 8, 0):
        rest = (rest * jnp.uint32(256) + (a[0] >> shift & 0xFF)) % jnp.uint32(divisor)
    # A negative number is the word less 2 ** 64.
    less = jnp.uint32(-(2**64) % divisor)
    return jnp.where(a[1] >> 31 == 1, (rest + less) % jnp.uint32(divisor), rest)
