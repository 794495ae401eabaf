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
from tests.parity.cases import POSITIONS_FROM_IDS, SEQUENCE_CLASSIFICATION, Case

TOLERANCE = 1e-4
PADDINGS = ("none", "right", "left", "both")


def plain(case: Case) -> dict[str, str]:
    """Arguments that bring the oracle to its plain code; torch's grouped kernels take no odd sizes."""
    return {"attn_implementation": "sdpa" if case.sdpa else "eager", "experts_implementation": "eager"}


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

        self._forget()
        with torch.no_grad():
            return self.model(**{k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items()})

    def _forget(self) -> None:
        """Makes the oracle forget the frequencies of the longest input so far, which dynamic rope keeps for others."""
        import torch

        if "dynamic" in str(self.case.config.get("rope_parameters")):
            with torch.no_grad():
                self.model(torch.ones((1, 1), dtype=torch.int64))

    def oracle_greedy(self, ids: np.ndarray, mask: np.ndarray, **kwargs: Any) -> np.ndarray:
        """Generates greedily with the oracle."""
        import torch

        self._forget()
        ids, mask = (torch.tensor(x) for x in (ids, mask))
        return self.model.generate(ids, attention_mask=mask, do_sample=False, **kwargs).numpy()


def randomise(model: Any, seed: int) -> None:
    """Gives norms and biases random values too; initialised with ones and zeros they would hide mistakes."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or name.endswith("norm.weight"):
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (not name.endswith("bias")))
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):  # learned all the same
                buffer.copy_(torch.randn_like(buffer) * 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("logits_bias"):
                buffer.copy_(torch.randn_like(buffer))


def untie(model: Any) -> None:
    """Gives the oracle's model a head of its own, as the checkpoints of some types have that it always makes tied."""
    import torch

    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.4)


def make(case: Case, directory: Path) -> Made:
    """Makes the oracle's random model of a case and saves it."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    seed = zlib.crc32(str(case).encode())
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(case.model_type, **case.config)
    model = getattr(transformers, case.head).from_config(config, **plain(case)).eval()
    randomise(model, seed)
    if case.seq2seq and case.config.get("tie_word_embeddings") is False and hasattr(model, "lm_head"):
        untie(model)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=case.config.get("decoder_start_token_id"),
    )
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
    if case.model_type in POSITIONS_FROM_IDS and padding != "right":
        # The padding token where there is padding, and in the midst of the last row.
        ids[mask == 0] = ids[-1, tokens // 2] = case.config["pad_token_id"]
    return ids, mask


def decoder_mask(rows: int, tokens: int = 11) -> np.ndarray:
    """A mask (B, T) of what the decoder of an encoder-decoder reads."""
    mask = np.ones((rows, tokens), np.int64)
    mask[1::3, -4:] = 0
    mask[2::3, :2] = 0
    return mask


def given(case: Case, ids: np.ndarray, mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Inputs of a call, of an encoder-decoder's decoder too."""
    inputs = {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask}
    if not case.seq2seq:
        if case.classifier and mask is not None:  # the oracle tells padding by the padding token
            ids[mask == 0] = case.config["pad_token_id"]
        return inputs
    if case.head == SEQUENCE_CLASSIFICATION:  # by the state of each row's last end token
        kept = np.ones_like(ids) if mask is None else mask
        ids[np.arange(len(ids)), ids.shape[1] - 1 - kept[:, ::-1].argmax(axis=1)] = case.config["eos_token_id"]
        return inputs
    own = decoder_mask(len(ids))
    rng = np.random.default_rng(zlib.crc32(f"{case}{len(ids)}".encode()))
    inputs["decoder_input_ids"] = rng.integers(3, case.config["vocab_size"], own.shape)
    return inputs if mask is None else {**inputs, "decoder_attention_mask": own}


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
    other = ("past_key_values", "cache_params", "cache")
    assert fields == {name for name, value in wanted.items() if name not in other and len(value)}
    for name in sorted(fields):
        ours, theirs = found[name], wanted[name]
        if not isinstance(ours, tuple):
            by_token = ours.ndim == 3 or name in ("start_logits", "end_logits")
            check_close(ours, theirs, _kept(ours, mask) if by_token else None, name)
            continue
        assert len(ours) == len(theirs), name
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if name.endswith("attentions"):  # (B, H, T, S) -> (B, T, H, S), of the queries that count
                a, b = (np.moveaxis(np.asarray(x), 1, 2) for x in (a, b))
            check_close(a, b, _kept(a, mask), f"{name}[{i}]")


def _kept(found: Any, mask: np.ndarray) -> np.ndarray:
    """The mask of the tokens that an output (B, T, ...) is of: the encoder's, or the decoder's of other length."""
    return mask if found.shape[1] == mask.shape[1] else decoder_mask(len(mask))
