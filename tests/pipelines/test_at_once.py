"""Batches that a CPU computes at once: which run together, which wait, and where errors go."""

import os
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxpipe.pipelines.base import Pipeline

WAIT = 20.0


class Lengths(Pipeline):
    """The length of a text, and how many batches were computed while its own was."""

    _forwards_at_once = True

    def __init__(self, model, meeting: int = 1):
        super().__init__(model)
        self.meeting = threading.Barrier(meeting)
        self.running: list[tuple[int, int]] = []
        self.most = 0
        self.threads: set[int] = set()

    def _sanitize_parameters(self, **parameters):
        return {}, {}, {}

    def preprocess(self, text):
        return {"input_ids": np.full((1, len(text)), 1 + text.startswith("bad"), np.int32)}

    def _forward(self, model_inputs):
        shape = model_inputs["input_ids"].shape
        self.running.append(shape)
        self.most = max(self.most, len(self.running))
        assert self.running.count(shape) == 1 or self.meeting.parties == 1
        self.threads.add(threading.get_ident())
        if (model_inputs["input_ids"] == 2).any():
            raise ValueError("a bad text")
        self.meeting.wait(WAIT)
        self.running.remove(shape)
        return self.model(**model_inputs)

    def postprocess(self, outputs):
        return int(outputs["last_hidden_state"][0, -1, 0])


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)


def test_batches_of_different_shapes_are_computed_together(model):
    pipe = Lengths(model, meeting=2)  # each batch waits until another one is under way
    assert pipe(["a" * 20, "a" * 40], batch_size=1) == [20, 40]
    assert pipe.most == 2 and threading.get_ident() not in pipe.threads


def test_the_first_of_a_shape_is_computed_before_the_others(model):
    order = []

    class Slow(Lengths):
        def _forward(self, model_inputs):
            order.append("begun")
            time.sleep(0.05)
            out = super()._forward(model_inputs)
            order.append("done")
            return out

    assert Slow(model)(["a" * 20] * 3, batch_size=1) == [20] * 3
    assert order[:2] == ["begun", "done"]


def test_results_come_in_order_and_errors_name_the_item(model):
    texts = ["a" * (1 + 5 * i % 12) for i in range(40)]
    assert Lengths(model)(texts, batch_size=2) == [len(text) for text in texts]
    with pytest.raises(ValueError, match="a bad text") as raised:
        Lengths(model)(["a" * 20, "bad", "a" * 40], batch_size=1)
    assert any("item 1 " in note for note in raised.value.__notes__)


def test_others_run_in_the_caller_s_thread(model):
    own = {threading.get_ident()}
    pipe = Lengths(model)
    pipe._forwards_at_once = False  # as that of a user's class
    assert pipe(["a", "aa"], batch_size=1) == [1, 2] and pipe.threads == own
    pipe = Lengths(model)
    assert pipe("aaa") == 3 and pipe.threads == own
    pipe = Lengths(model)
    assert list(pipe(text for text in ["a", "aa"])) == [1, 2] and pipe.threads == own
    model.mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    pipe = Lengths(model)
    assert pipe(["a", "aa"], batch_size=1) == [1, 2] and pipe.threads == own
