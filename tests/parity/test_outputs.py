"""Every architecture and head puts out what Transformers does."""

import copy
from collections.abc import Callable

import numpy as np
import pytest

from jaxpipe.checkpoint.safetensors import SafetensorsFile
from tests.parity.cases import BASE, SEQUENCE_CLASSIFICATION, Case, params
from tests.parity.harness import PADDINGS, Made, batch, check_outputs, given, plain, positions_of

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("case", params())
def test_padded_anywhere(case: Case, made: Callable[[Case], Made]):
    checkpoint = made(case)
    for padding in PADDINGS:
        ids, mask = batch(case, padding)
        inputs = given(case, ids, mask)
        check_outputs(checkpoint.ours(**inputs), checkpoint.oracle(**inputs), mask)


@pytest.mark.parametrize("case", params(core=True))
def test_without_a_mask(case: Case, made: Callable[[Case], Made]):
    checkpoint = made(case)
    ids, mask = batch(case, "none")
    inputs = given(case, ids)
    check_outputs(checkpoint.ours(**inputs), checkpoint.oracle(**inputs), mask)


@pytest.mark.parametrize("case", [case for case in params(core=True) if not case.values[0].seq2seq])
def test_the_same_positions_given_to_both(case: Case, made: Callable[[Case], Made]):
    checkpoint = made(case)
    for padding in ("left", "both"):
        ids, mask = batch(case, padding)
        inputs = {**given(case, ids, mask), "position_ids": positions_of(mask)}
        check_outputs(checkpoint.ours(**inputs), checkpoint.oracle(**inputs), mask)
    ids, mask = batch(case, "right")
    inputs = {**given(case, ids, mask), "position_ids": positions_of(mask) + 17}
    check_outputs(checkpoint.ours(**inputs), checkpoint.oracle(**inputs), mask)


@pytest.mark.parametrize("case", params(core=True))
def test_hidden_states_and_attentions(case: Case, made: Callable[[Case], Made]):
    checkpoint = made(case)
    for padding in ("left", "right"):
        ids, mask = batch(case, padding)
        asked = {"output_hidden_states": True, "output_attentions": not case.sdpa}
        inputs = {**given(case, ids, mask), **asked}
        check_outputs(checkpoint.ours(**inputs), checkpoint.oracle(**inputs), mask)


@pytest.mark.parametrize("case", [case for case in params(first_head=True) if case.values[0].token_types])
def test_token_types(case: Case, made: Callable[[Case], Made]):
    checkpoint = made(case)
    ids, mask = batch(case, "right")
    types = np.random.default_rng(0).integers(0, checkpoint.ours.config.limits()["token_type_ids"], ids.shape)
    inputs = {**given(case, ids, mask), "token_type_ids": types}
    check_outputs(checkpoint.ours(**inputs), checkpoint.oracle(**inputs), mask)


@pytest.mark.parametrize("case", params(first_head=True))
def test_save_and_load(case: Case, made: Callable[[Case], Made], tmp_path):
    """What is saved is what was loaded, bit for bit, and Transformers reads it."""
    import transformers

    checkpoint = made(case)
    ids, mask = batch(case, "right")
    checkpoint.ours.save_pretrained(tmp_path)
    again = type(checkpoint.model).from_pretrained(tmp_path, **plain(case))
    # Names on disk may be others than those in the oracle's memory.
    file, theirs = (SafetensorsFile(folder / "model.safetensors") for folder in (tmp_path, checkpoint.directory))
    for name in file.infos:
        assert np.array_equal(file.read(name), theirs.read(name)), name
    inputs = given(case, ids, mask)
    check_outputs(checkpoint.ours(**inputs), Made(case, again.eval(), tmp_path).oracle(**inputs), mask)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    ignored = {"transformers_version", "architectures", "_name_or_path", "dtype"}
    for key, value in checkpoint.model.config.to_dict().items():
        assert key in ignored or config.to_dict()[key] == value, key
    reloaded = checkpoint.load(tmp_path)
    for ours, saved in zip(checkpoint.ours.functional()[1].items(), reloaded.functional()[1].items(), strict=True):
        assert ours[0] == saved[0]
        assert np.array_equal(*(np.asarray(x[1]) for x in (ours, saved))), ours[0]


@pytest.mark.parametrize("case", params(core=True))
def test_bfloat16(case: Case, made: Callable[[Case], Made]):
    """In half precision: no further from float32 than the oracle is, and the same best tokens where it matters."""
    checkpoint = made(case)
    # Enough rows that noise has a mean, where a row has but a few scores.
    ids, mask = batch(case, "none", rows=64) if case.head == SEQUENCE_CLASSIFICATION else batch(case, "right")
    ours = checkpoint.load(dtype="bfloat16")
    inputs = given(case, ids, mask)
    found = np.asarray(ours(**inputs)[0], np.float32)
    exact = checkpoint.oracle(**inputs)[0].numpy()
    half = Made(case, copy.deepcopy(checkpoint.model).bfloat16(), checkpoint.directory)
    theirs = half.oracle(**inputs)[0].float().numpy()
    assert ours.dtype.name == "bfloat16"
    if case.head != SEQUENCE_CLASSIFICATION:
        kept = inputs.get("decoder_attention_mask", mask).astype(bool)
        found, exact, theirs = (x[kept] for x in (found, exact, theirs))
    noise = np.abs(theirs - exact)
    assert np.abs(found - exact).mean() <= 2 * noise.mean()
    if case.head not in (BASE, SEQUENCE_CLASSIFICATION) and exact.ndim == 2 and exact.shape[-1] > 1:
        first, second = np.sort(exact, axis=-1)[:, ::-1][:, :2].T
        clear = first - second > 3 * noise.max(axis=-1)
        assert clear.mean() > 0.05
        assert np.array_equal(found.argmax(-1)[clear], exact.argmax(-1)[clear])
