"""Batches, order, laziness and parameters, with pipelines of a user's own."""

import itertools
import json

import numpy as np
import pytest

from jaxpipe.pipelines import ChunkPipeline, KeyDataset, Pipeline


class Sums(Pipeline):
    """The running sums of a list of numbers, given as text."""

    def _sanitize_parameters(self, plus=None, times=None, digits=None, **unknown):
        if unknown:
            raise TypeError(f"unknown {sorted(unknown)}")
        forward = {} if times is None else {"times": times}
        return {} if plus is None else {"plus": plus}, forward, {} if digits is None else {"digits": digits}

    def preprocess(self, text, plus=0):
        return {"input_ids": np.array([[int(n) + plus for n in text.split()]], np.int32), "text": text}

    def _forward(self, model_inputs, times=1):
        texts = model_inputs.pop("text")
        sums = self.model(**model_inputs)["last_hidden_state"][:, :, :1]
        return {"last_hidden_state": sums * times, "text": texts}

    def postprocess(self, outputs, digits=0):
        return outputs["text"], [round(float(x), digits) for x in outputs["last_hidden_state"][0, :, 0]]


class Parts(ChunkPipeline):
    """The sum of every comma-separated part of a text; parts become rows of their own."""

    def _sanitize_parameters(self, **parameters):
        return {}, {}, {}

    def preprocess(self, text):
        for part in text.split(","):
            yield {"input_ids": np.array([[int(n) for n in part.split()]], np.int32)}

    def _forward(self, model_inputs):
        return self.model(**model_inputs)

    def postprocess(self, outputs):
        assert isinstance(outputs, list)
        return [int(part.last_hidden_state[0, -1, 0]) for part in outputs]


TEXTS = ["1 2 3", "4", "5 6", "7 8 9 10 11", "1", "2 2"]
SUMS = [("1 2 3", [1, 3, 6]), ("4", [4]), ("5 6", [5, 11]), ("7 8 9 10 11", [7, 15, 24, 34, 45]), ("1", [1])]
SUMS = [*SUMS, ("2 2", [2, 4])]


@pytest.fixture
def sums(model):
    return Sums(model, task="sums")


def test_one_item_and_lists(sums):
    assert sums("1 2 3") == SUMS[0]
    assert sums(["4"]) == [SUMS[1]]
    assert sums(tuple(TEXTS)) == sums(TEXTS) == SUMS


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 100])
def test_batches_change_nothing_and_keep_the_order(sums, batch_size):
    assert sums(TEXTS, batch_size=batch_size) == SUMS
    assert list(sums(iter(TEXTS), batch_size=batch_size)) == SUMS


def test_batches_are_run_together(sums, model):
    sums(TEXTS, batch_size=3)
    assert len(model.calls) == 2
    model.calls.clear()
    sums(TEXTS)
    assert len(model.calls) == 1
    model.calls.clear()
    sums(TEXTS, batch_size=1)
    assert len(model.calls) == 6


def test_shapes_are_buckets(sums, model):
    for count, length in itertools.product((1, 2, 3), (1, 5, 16)):
        sums([" ".join("1" * length)] * count, batch_size=count)
    assert {call["input_ids"].shape for call in model.calls} == {(1, 16), (2, 16), (3, 16)}


def test_padding_stays_below_learned_positions(model_of):
    model = model_of(limits={"position_ids": 20})
    sums = Sums(model)
    sums(" ".join("1" * 17))
    assert model.calls[-1]["input_ids"].shape == (1, 20)
    sums(" ".join("1" * 21))
    assert model.calls[-1]["input_ids"].shape == (1, 32)


def test_nothing_in_nothing_out(sums):
    assert sums([]) == []
    assert list(sums(iter([]))) == []


@pytest.mark.parametrize(("batch_size", "ahead"), [(None, 1), (1, 1), (2, 8), (4, 16)])
def test_iterators_are_read_as_results_are_asked_for(sums, batch_size, ahead):
    read = []

    def forever():
        for number in itertools.count():
            read.append(number)
            yield str(number)

    results = sums(forever(), batch_size=batch_size)
    assert read == []
    assert list(itertools.islice(results, 5)) == [(str(n), [n]) for n in range(5)]
    assert len(read) <= 4 + ahead


def test_results_can_steer_what_comes_next(sums):
    """Without batches an iterator is asked for an item only once the result before it was taken."""
    seen = []

    def conversation():
        yield "1"
        while seen[-1][1][-1] < 5:
            yield seen[-1][0] + " 1"

    for result in sums(conversation()):
        seen.append(result)
    assert [text for text, _ in seen] == ["1", "1 1", "1 1 1", "1 1 1 1", "1 1 1 1 1"]


def test_data_sets_are_lazy_and_know_their_length(sums):
    rows = [{"text": text} for text in TEXTS]
    results = sums(KeyDataset(rows, "text"), batch_size=2)
    assert len(results) == len(TEXTS)
    assert list(results) == SUMS


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_rows_of_an_item_come_back_together(model, batch_size):
    parts = Parts(model)
    texts = ["1 1,2", "3", "4 4 4,5,6 6,7", "8,9"]
    expected = [[2, 2], [3], [12, 5, 12, 7], [8, 9]]
    assert parts(texts, batch_size=batch_size) == expected
    assert list(parts(iter(texts), batch_size=batch_size)) == expected
    assert parts(texts[2]) == expected[2]


def test_rows_of_items_share_batches(model):
    Parts(model)(["1,2", "3", "4,5"], batch_size=4)
    assert [len(call["input_ids"]) for call in model.calls] == [4, 1]


def test_parameters_of_a_call_win_and_leave_the_others(model):
    sums = Sums(model, plus=1, times=2)
    assert sums("1 2")[1] == [4, 10]
    assert sums("1 2", plus=0)[1] == [2, 6]
    assert sums("1 2")[1] == [4, 10]
    with pytest.raises(TypeError, match="unknown"):
        sums("1", plsu=1)


def test_batch_size_of_the_constructor(model):
    sums = Sums(model, batch_size=2)
    sums(TEXTS)
    assert len(model.calls) == 3
    model.calls.clear()
    sums(TEXTS, batch_size=6)
    assert len(model.calls) == 1


@pytest.mark.parametrize("batch_size", [0, -1, True, 1.5, "2"])
def test_wrong_batch_sizes(sums, batch_size):
    with pytest.raises(ValueError, match="batch_size= takes a whole number"):
        sums(TEXTS, batch_size=batch_size)


@pytest.mark.parametrize("offset", [-1, "3", True])
def test_wrong_offsets(sums, offset):
    with pytest.raises(ValueError, match="item_offset="):
        sums("1", item_offset=offset)


def test_errors_name_the_item(sums):
    with pytest.raises(TypeError, match=r"inputs\[2\] is None"):
        sums(["1", "2", None])
    with pytest.raises(TypeError, match="inputs is None; the sums pipeline"):
        sums(None)
    with pytest.raises(ValueError, match="invalid literal") as error:
        sums(["1", "2", "x"])
    assert error.value.__notes__ == ["Raised for item 2 of the inputs."]


def test_lists_are_checked_before_anything_is_run(sums, model):
    with pytest.raises(TypeError):
        sums(["1", "2", None], batch_size=1)
    assert model.calls == []


def test_errors_of_the_model_name_the_items(sums, model, monkeypatch):
    def failing(self, **inputs):
        raise RuntimeError("no memory")

    monkeypatch.setattr(type(model), "__call__", failing)
    with pytest.raises(RuntimeError, match="no memory") as error:
        sums(["1", "2"])
    assert error.value.__notes__ == ["Raised for the batch with item 0, 1 of the inputs."]


def test_rows_must_be_arrays(model):
    class Lists(Sums):
        def preprocess(self, text):
            return {"input_ids": [1, 2]}

    with pytest.raises(ValueError, match="return_tensors='np'"):
        Lists(model)("1")


def test_a_subclass_says_what_it_lacks(model):
    with pytest.raises(NotImplementedError, match="Pipeline does not define _sanitize_parameters"):
        Pipeline(model)


def test_predict_and_transform(sums):
    assert sums.predict("4") == sums.transform("4") == SUMS[1]


def test_arguments_without_effect(sums):
    assert sums("4", num_workers=2) == SUMS[1]
    assert Sums(sums.model, num_workers=2, binary_output=True)("4") == SUMS[1]


def test_attributes(sums, model):
    assert sums.task == "sums"
    assert sums.dtype == np.float32
    assert sums.device is model.mesh.devices.flat[0]
    assert repr(sums) == "Sums(model=ArithmeticModel, dtype=float32, device=cpu)"


def test_progress_bar(sums, capsys):
    assert sums(TEXTS) == SUMS
    assert capsys.readouterr().err == ""
    shown = Sums(sums.model, task="sums", progress_bar=True)
    assert shown(TEXTS) == SUMS
    assert "6/6" in capsys.readouterr().err


def test_saving(sums, tmp_path):
    saved = []
    sums.model.save_pretrained = sums.tokenizer = None
    sums.model.save_pretrained = lambda directory, **more: saved.append((directory, more))
    sums.save_pretrained(tmp_path / "new", max_shard_size="1GB")
    assert saved == [(tmp_path / "new", {"max_shard_size": "1GB"})]
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        sums.save_pretrained(tmp_path / "file")


def test_results_are_plain(sums):
    assert json.loads(json.dumps(sums(TEXTS)))[0] == ["1 2 3", [1, 3, 6]]
