"""Tiny random checkpoints of the oracle, made when a test asks for one, and how outputs are compared."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpipe import auto
from jaxpipe.model import PreTrainedModel
from tests.parity.cases import Case

TOLERANCE = 1e-4
PADDINGS = ("none", "right", "left", "both")


@dataclass(frozen=True, eq=False)
class Made:
    """A checkpoint of a case.

    Attributes:
        model: the oracle's model.
        directory: where it is saved.
    """

    case: Case
    model: Any
    directory: Path

    @cached_property
    def ours(self) -> PreTrainedModel:
        """The same model here, on the default device."""
        return self.load()

    def load(self, directory: Path | None = None, **kwargs: Any) -> PreTrainedModel:
        """Loads the checkpoint, or another one, with the case's head."""
        return getattr(auto, self.case.head).from_pretrained(directory or self.directory, **kwargs)

    def oracle(self, **inputs: Any) -> Any:
        """Calls the oracle with numpy arrays."""
        import torch

        with torch.no_grad():
            return self.model(**{k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items()})

    def oracle_greedy(self, ids: np.ndarray, mask: np.ndarray, **kwargs: Any) -> np.ndarray:
        """Generates greedily with the oracle."""
        import torch

        ids, mask = (torch.tensor(x) for x in (ids, mask))
        return self.model.generate(ids, attention_mask=mask, do_sample=False, **kwargs).numpy()


def randomise(model: Any, seed: int) -> None:
    """Gives norms and biases random values too; initialised with ones and zeros they would hide mistakes."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (not name.endswith("bias")))


def make(case: Case, directory: Path) -> Made:
    """Makes the oracle's random model of a case and saves it."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    seed = zlib.crc32(str(case).encode())
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(case.model_type, **case.config)
    model = getattr(transformers, case.head).from_config(config, attn_implementation="eager").eval()
    randomise(model, seed)
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(directory)
    return Made(case, model, directory)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Made]:
    """Makes the checkpoint of a case, once a session."""
    known: dict[Case, Made] = {}

    def get(case: Case) -> Made:
        if case not in known:
            known[case] = make(case, tmp_path_factory.mktemp("parity") / str(case))
        return known[case]

    return get


def batch(case: Case, padding: str, rows: int = 3, tokens: int = 23) -> tuple[np.ndarray, np.ndarray]:
    """Returns random ids (B, T) and a mask (B, T) with ragged rows; padding tokens are random too."""
    rng = np.random.default_rng(zlib.crc32(f"{case}{padding}".encode()))
    ids = rng.integers(3, case.config["vocab_size"], (rows, tokens))
    mask = np.ones((rows, tokens), np.int64)
    for row in range(1, rows):
        cut = 3 * row
        if padding in ("left", "both"):
            mask[row, :cut] = 0
        if padding in ("right", "both"):
            mask[row, -cut - 1 :] = 0
    return ids, mask


def positions_of(mask: np.ndarray) -> np.ndarray:
    """Positions of each row's own tokens, as `generate` counts them."""
    return np.maximum(np.cumsum(mask, axis=1) - 1, 0)


def check_close(found: Any, wanted: Any, keep: np.ndarray | None = None, what: str = "") -> None:
    """Asserts that all values agree to 1e-4, relative to the largest where it exceeds 1.

    Args:
        keep: (B, T) mask of the positions that count; all if None.
    """
    found, wanted = np.asarray(found, np.float32), np.asarray(wanted, np.float32)
    assert found.shape == wanted.shape, what
    if keep is not None:
        found, wanted = found[keep.astype(bool)], wanted[keep.astype(bool)]
    bound = TOLERANCE * max(1.0, float(np.abs(wanted).max()))
    assert np.isfinite(found).all(), what
    worst = float(np.abs(found - wanted).max())
    assert worst <= bound, f"{what}: differs by {worst}, allowed {bound}"


def check_outputs(found: Any, wanted: Any, mask: np.ndarray) -> None:
    """Compares every field of two outputs on the positions that are not padding."""
    fields = {name for name in found if name != "cache"}
    # Decoders of the oracle put out an empty tuple where they have no cross-attention.
    other = ("past_key_values", "cache")
    assert fields == {name for name, value in wanted.items() if name not in other and len(value)}
    for name in sorted(fields):
        ours, theirs = found[name], wanted[name]
        if not isinstance(ours, tuple):
            check_close(ours, theirs, mask if ours.ndim == 3 else None, name)
            continue
        assert len(ours) == len(theirs), name
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if name == "attentions":  # (B, H, T, S) -> (B, T, H, S), of the queries that count
                a, b = (np.moveaxis(np.asarray(x), 1, 2) for x in (a, b))
            check_close(a, b, mask, f"{name}[{i}]")
