"""Histories of ragged rows, as the oracle's processors take them and as ours do, for tests of processors."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpipe.generation.step import StepState

VOCAB = 37


class Histories:
    """Random histories of few different tokens, so that n-grams come again.

    Args:
        prompts: number of tokens of each row's prompt.
        step: number of new tokens.
        seed: of the tokens.
        width: to which prompts are padded.
        tokens: number of different tokens.
    """

    def __init__(self, prompts: list[int], step: int, seed: int = 0, width: int = 12, tokens: int = 3):
        rng = np.random.default_rng(seed)
        self.rows = [rng.integers(3, 3 + tokens, n + step) for n in prompts]
        self.prompts, self.step, self.width = prompts, step, width

    @property
    def state(self) -> StepState:
        """Prompts on the left, new tokens in common slots, then slots that are not written."""
        slots = self.width + self.step + 5
        tokens, valid = np.full((len(self.rows), slots), 4, np.int32), np.zeros((len(self.rows), slots), bool)
        for i, (row, n) in enumerate(zip(self.rows, self.prompts, strict=True)):
            columns = [*range(n), *range(self.width, self.width + self.step)]
            tokens[i, columns], valid[i, columns] = row, True
        lengths = jnp.asarray(self.prompts, jnp.int32)
        return StepState(jnp.asarray(tokens), jnp.asarray(valid), lengths, jnp.int32(self.step))

    def by_row(self, make: Any, scores: np.ndarray) -> np.ndarray:
        """Calls an oracle's processor for each row alone, so that it sees no padding.

        Args:
            make: of the row's index and its prompt's length, returns the processor.
            scores: (B, V).
        """
        import torch

        return np.concatenate(
            [
                make(i, n)(torch.tensor(row)[None], torch.tensor(scores[i : i + 1])).numpy()
                for i, (row, n) in enumerate(zip(self.rows, self.prompts, strict=True))
            ]
        )


def scores_of(kind: str, rows: int = 3, vocab: int = VOCAB) -> np.ndarray:
    """Random scores (rows, vocab) float32, with ties, -inf, all equal, or NaN and infinities."""
    rng = np.random.default_rng(len(kind))
    scores = rng.normal(0, 3, (rows, vocab)).astype(np.float32)
    if kind == "ties":
        scores = np.round(scores)
    if kind == "masked":
        scores[:, ::3] = -np.inf
    if kind == "flat":
        scores[:] = 0.5
    if kind == "invalid":
        scores[:, ::3], scores[:, 1::5], scores[:, 2::7] = np.nan, np.inf, -np.inf
    return scores


def assert_same(ours: Any, theirs: np.ndarray, in_any_order: bool = False) -> None:
    """Asserts that the same scores are -inf and the others equal to 1e-6; or so once sorted."""
    ours = np.asarray(ours)
    if in_any_order:
        ours, theirs = np.sort(ours), np.sort(theirs)
    assert (np.isneginf(ours) == np.isneginf(theirs)).all()
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
