"""Grouping, padding and cutting apart."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.common.outputs import BaseModelOutput, LogitsOutput
from jaxpipe.pipelines.batching import Plan, Row, collate, plan_batches, split


def row(item, length, part=0, last=True, **more):
    ids = np.arange(1, length + 1, dtype=np.int32)[None] + 10 * item
    return Row(item, part, {"input_ids": ids, "attention_mask": np.ones_like(ids), **more}, last)


def items(plans):
    return [[row.item for row in plan.rows] for plan in plans]


def joined(rows, side="right", length=0, size=0):
    plan = Plan(rows, max(length, *(row.length for row in rows)), max(size, sum(row.size for row in rows)))
    return collate(plan, pad_id=99, side=side)


def test_similar_lengths_share_a_batch_and_the_first_item_runs_first():
    rows = [row(0, 9), row(1, 2), row(2, 8), row(3, 3)]
    assert items(plan_batches(rows, lambda length: 2, int)) == [[0, 2], [1, 3]]


def test_a_batch_is_no_larger_than_asked_for():
    assert items(plan_batches([row(i, 4) for i in range(5)], lambda length: 2, int)) == [[0, 1], [2, 3], [4]]


def test_the_size_of_a_batch_may_depend_on_its_padded_length():
    rows = [row(0, 2), row(1, 2), row(2, 5), row(3, 30)]
    plans = plan_batches(rows, lambda length: max(12 // length, 1), lambda length: -(-length // 4) * 4)
    assert items(plans) == [[0, 1], [2], [3]]
    assert [(plan.length, plan.size) for plan in plans] == [(4, 2), (8, 1), (32, 1)]


def test_batches_of_one_length():
    rows = [row(0, 2), row(1, 3), row(2, 2)]
    assert items(plan_batches(rows, lambda length: 8, int, same_length=True)) == [[0, 2], [1]]


@pytest.mark.parametrize(("side", "padded"), [("right", [1, 2, 99, 99]), ("left", [99, 99, 1, 2])])
def test_padding(side, padded):
    batch = joined([row(0, 2), row(1, 4)], side)
    assert batch.inputs["input_ids"][0].tolist() == padded
    assert batch.inputs["attention_mask"][0].tolist() == [int(token != 99) for token in padded]
    assert (batch.size, batch.length) == (2, 4)


def test_buckets_repeat_the_last_row():
    batch = joined([row(0, 2), row(1, 3)], length=8, size=4)
    assert batch.inputs["input_ids"].shape == (4, 8)
    assert batch.inputs["input_ids"][3].tolist() == [11, 12, 13, 99, 99, 99, 99, 99]


def test_a_mask_is_made_where_there_is_padding_and_none_was_given():
    rows = [Row(i, 0, {"input_ids": np.ones((1, n), np.int32)}) for i, n in enumerate((1, 3))]
    assert joined(rows).inputs["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert "attention_mask" not in joined(rows[:1]).inputs


def test_fillers_by_name():
    mask = {"special_tokens_mask": np.zeros((1, 1), np.int32), "token_type_ids": np.ones((1, 1), np.int32)}
    long = {name: np.repeat(value, 3, axis=1) for name, value in mask.items()}
    inputs = joined([row(0, 1, **mask), row(1, 3, **long)]).inputs
    assert inputs["special_tokens_mask"][0].tolist() == [0, 1, 1]
    assert inputs["token_type_ids"][0].tolist() == [1, 0, 0]


def test_other_values_go_along_as_lists():
    batch = joined([row(0, 1, note="a", number=3), row(1, 1, note="b", number=4)])
    assert batch.inputs["note"] == ["a", "b"]
    assert batch.inputs["number"] == [3, 4]


def test_rows_that_do_not_fit_together():
    with pytest.raises(ValueError, match="Items 0 and 1 cannot share a batch"):
        joined([row(0, 1), row(1, 1, more=np.ones((1, 1)))])
    with pytest.raises(ValueError, match="'pixels' have the shapes"):
        joined([row(0, 1, pixels=np.ones((1, 2, 2))), row(1, 1, pixels=np.ones((1, 3, 3)))])


@pytest.mark.parametrize("side", ["right", "left"])
def test_outputs_come_back_without_padding(side):
    rows = [row(0, 2), row(1, 5)]
    batch = joined(rows, side, length=8, size=4)
    ids = jnp.asarray(batch.inputs["input_ids"])
    outputs = BaseModelOutput(
        last_hidden_state=jnp.stack([ids, ids], axis=-1),
        pooler_output=jnp.ones((4, 8)),  # as wide as the padded sequence, and not one
        hidden_states=(jnp.stack([ids] * 3, axis=-1),),
        attentions=(jnp.ones((4, 2, 8, 8)),),
    )
    for expected, got in zip(rows, split(outputs, batch), strict=True):
        assert isinstance(got, BaseModelOutput)
        assert got.last_hidden_state[0, :, 0].tolist() == expected.inputs["input_ids"][0].tolist()
        assert got.pooler_output.shape == (1, 8)
        assert got.hidden_states[0].shape == (1, expected.length, 3)
        assert got.attentions[0].shape == (1, 2, expected.length, expected.length)


def test_logits_of_tokens_lose_padding_and_logits_of_classes_do_not():
    rows = [row(0, 2), row(1, 4)]
    batch = joined(rows)
    of_tokens = list(split(LogitsOutput(logits=jnp.zeros((2, 4, 4))), batch))
    of_classes = list(split(LogitsOutput(logits=jnp.zeros((2, 4))), batch))
    assert [got.logits.shape for got in of_tokens] == [(1, 2, 4), (1, 4, 4)]
    assert [got.logits.shape for got in of_classes] == [(1, 4), (1, 4)]


def test_mappings_lists_and_what_belongs_to_no_row():
    batch = joined([row(0, 1), row(1, 1)])
    got = list(split({"a": np.array([[1], [2]]), "names": ["x", "y"], "end": 3, "nothing": None}, batch))
    assert json.dumps([{**one, "a": one["a"].tolist()} for one in got]) == json.dumps(
        [{"a": [[1]], "names": "x", "end": 3, "nothing": None}, {"a": [[2]], "names": "y", "end": 3, "nothing": None}]
    )


def test_rows_of_several_model_rows():
    two = Row(0, 0, {"input_ids": np.ones((2, 3), np.int32)})
    batch = joined([two, row(1, 3).__class__(1, 0, {"input_ids": np.ones((1, 3), np.int32)})])
    parts = list(split({"a": np.arange(3)[:, None]}, batch))
    assert [part["a"].tolist() for part in parts] == [[[0], [1]], [[2]]]
