"""Every architecture and head puts out what Transformers does."""

import copy
from collections.abc import Callable

import numpy as np
import pytest

from tests.parity.cases import BASE, SEQUENCE_CLASSIFICATION, Case, params
from tests.parity.harness import PADDINGS, Made, batch, check_outputs, positions_of

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("case", params())
def test_padded_anywhere(case: Case, made: Callable[[Case], Made]):
    checkpoint = made(case)
    for padding in PADDINGS:
        ids, mask = batch(case, padding)
        given = {"input_ids": ids, "attention_mask": mask}
        check_outputs(checkpoint.ours(**given), checkpoint.oracle(**given), mask)


@pytest.mark.parametrize("case", params())
def test_without_a_mask(case: Case, made: Callable[[Case], Made]):
    checkpoint = made(case)
    ids, mask = batch(case, "none")
    check_outputs(checkpoint.ours(ids), checkpoint.oracle(input_ids=ids), mask)


@pytest.mark.parametrize("case", params())
def test_the_same_positions_given_to_both(case: Case, made: Callable[[Case], Made]):
    checkpoint = made(case)
    for padding in ("left", "both"):
        ids, mask = batch(case, padding)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions_of(mask)}
        check_outputs(checkpoint.ours(**given), checkpoint.oracle(**given), mask)
    ids, mask = batch(case, "right")
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions_of(mask) + 17}
    check_outputs(checkpoint.ours(**given), checkpoint.oracle(**given), mask)


@pytest.mark.parametrize("case", params())
def test_hidden_states_and_attentions(case: Case, made: Callable[[Case], Made]):
    checkpoint = made(case)
    for padding in ("left", "right"):
        ids, mask = batch(case, padding)
        given = {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True, "output_attentions": True}
        check_outputs(checkpoint.ours(**given), checkpoint.oracle(**given), mask)


@pytest.mark.parametrize("case", [case for case in params() if case.values[0].token_types])
def test_token_types(case: Case, made: Callable[[Case], Made]):
    checkpoint = made(case)
    ids, mask = batch(case, "right")
    types = np.random.default_rng(0).integers(0, checkpoint.ours.config.limits()["token_type_ids"], ids.shape)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    check_outputs(checkpoint.ours(**given), checkpoint.oracle(**given), mask)


@pytest.mark.parametrize("case", params())
def test_save_and_load(case: Case, made: Callable[[Case], Made], tmp_path):
    """What is saved is what was loaded, bit for bit, and Transformers reads it."""
    import transformers

    checkpoint = made(case)
    ids, mask = batch(case, "right")
    checkpoint.ours.save_pretrained(tmp_path)
    again = type(checkpoint.model).from_pretrained(tmp_path)
    for name, weight in checkpoint.model.state_dict().items():
        assert np.array_equal(again.state_dict()[name].numpy(), weight.numpy()), name
    check_outputs(checkpoint.ours(ids, mask), Made(case, again.eval(), tmp_path).oracle(input_ids=ids), mask)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    ignored = {"transformers_version", "architectures", "_name_or_path", "dtype"}
    for key, value in checkpoint.model.config.to_dict().items():
        assert key in ignored or config.to_dict()[key] == value, key
    reloaded = checkpoint.load(tmp_path)
    for ours, saved in zip(checkpoint.ours.functional()[1].items(), reloaded.functional()[1].items(), strict=True):
        assert ours[0] == saved[0]
        assert np.array_equal(*(np.asarray(x[1]) for x in (ours, saved))), ours[0]


@pytest.mark.parametrize("case", params())
def test_bfloat16(case: Case, made: Callable[[Case], Made]):
    """In half precision: no further from float32 than the oracle is, and the same best tokens where it matters."""
    checkpoint = made(case)
    ids, mask = batch(case, "right")
    ours = checkpoint.load(dtype="bfloat16")
    found = np.asarray(ours(ids, mask)[0], np.float32)
    exact = checkpoint.oracle(input_ids=ids, attention_mask=mask)[0].numpy()
    half = Made(case, copy.deepcopy(checkpoint.model).bfloat16(), checkpoint.directory)
    theirs = half.oracle(input_ids=ids, attention_mask=mask)[0].float().numpy()
    assert ours.dtype.name == "bfloat16"
    if case.head != SEQUENCE_CLASSIFICATION:
        found, exact, theirs = (x[mask.astype(bool)] for x in (found, exact, theirs))
    noise = np.abs(theirs - exact)
    assert np.abs(found - exact).mean() <= 2 * noise.mean()
    if case.head not in (BASE, SEQUENCE_CLASSIFICATION):
        first, second = np.sort(exact, axis=-1)[:, ::-1][:, :2].T
        clear = first - second > 3 * noise.max(axis=-1)
        assert clear.mean() > 0.05
        assert np.array_equal(found.argmax(-1)[clear], exact.argmax(-1)[clear])
