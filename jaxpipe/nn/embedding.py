"""Embedding tables."""

import jax
from flax import nnx

from jaxpipe.kernels.few_rows import lookup, table_product
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout import Direct

Array = jax.Array


class Embedding(nnx.Module):
    """A table (entries, D); indices must be in range, which callers check before they compile anything.

    Args:
        axis: logical name of the entries, ``"vocab"`` for tokens.
    """

    def __init__(self, init: Init, entries: int, width: int, *, axis: str | None = None):
        shape = (entries, width)
        self.embedding = init.param((axis, "embed"), shape, Direct("weight", shape))

    def __call__(self, ids: Array) -> Array:
        return lookup(self.embedding[...], ids)  # (B, T, D)

    def attend(self, x: Array) -> Array:
        """Logits of x (..., D) against every entry: the tied head."""
        return table_product(x, self.embedding[...])
