"""Positions that are added to embeddings: learned, and sinusoids (Vaswani et al., 2017; arXiv 1706.03762)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.nn.embedding import Embedding
from jaxpipe.nn.init import Init

Array = jax.Array
BASE = 10_000.0


def places(ids: Array, position_ids: Array | None) -> Array:
    """Returns the tokens' places in their rows, (1 or B, T) int32: the columns of ids (B, T) if none are given."""
    return jnp.arange(ids.shape[1], dtype=jnp.int32)[None] if position_ids is None else position_ids


class LearnedPositions(Embedding):
    """A table of positions behind two entries that nothing reads, which were the padding's in fairseq."""

    UNUSED = 2

    def __init__(self, init: Init, positions: int, width: int):
        super().__init__(init, positions + self.UNUSED, width)

    def __call__(self, ids: Array, position_ids: Array | None = None) -> Array:
        return super().__call__(places(ids, position_ids) + self.UNUSED)  # (1 or B, T, D)


@dataclass(frozen=True)
class SinusoidalPositions:
    """Sines of all frequencies, then their cosines, as Marian and Pegasus have them.

    Attributes:
        width: D; an odd one has one sine more.
    """

    width: int

    def __call__(self, ids: Array, position_ids: Array | None) -> Array:
        """Returns (1 or B, T, D) float32."""
        half = -(-self.width // 2)
        inverse = BASE ** (-2 * np.arange(half) / self.width)  # radians per position, float64
        # The oracle's table is made in float64. A frequency of 12 bits times a position is exact in float32, and
        # what the frequency lacks makes a small angle.
        coarse = (inverse.astype(np.float32).view(np.uint32) & 0xFFFFF000).view(np.float32)
        fine = (inverse - coarse).astype(np.float32)
        place = places(ids, position_ids)[..., None].astype(jnp.float32)
        a, b = place * coarse, place * fine  # (1 or B, T, D/2)
        sine = jnp.sin(a) * jnp.cos(b) + jnp.cos(a) * jnp.sin(b)
        cosine = jnp.cos(a) * jnp.cos(b) - jnp.sin(a) * jnp.sin(b)
        return jnp.concatenate([sine, cosine[..., : self.width // 2]], axis=-1)


@dataclass(frozen=True)
class PaddedSinusoidalPositions:
    """Sines, then cosines, counted from behind the padding token's id; that token has none and does not count.

    M2M-100 has them so. Frequencies and angles are rounded to float32, as the model was trained.

    Attributes:
        width: D; of an odd one the last is 0.
        padding: id of the padding token.
    """

    width: int
    padding: int

    def __call__(self, ids: Array, position_ids: Array | None) -> Array:
        """Returns (B, T, D) float32 of ids (B, T)."""
        half = self.width // 2
        step = np.float32(np.log(BASE) / (half - 1))
        inverse = np.exp(np.arange(half, dtype=np.float32) * -step)
        token = ids != self.padding
        count = jnp.cumsum(token, axis=1) if position_ids is None else position_ids + 1
        angle = (count + self.padding)[..., None].astype(jnp.float32) * inverse  # (B, T, D/2)
        x = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, self.width - 2 * half)))
        return jnp.where(token[..., None], x, 0.0)
