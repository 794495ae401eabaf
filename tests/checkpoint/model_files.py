"""The weights of a model of two tensors, and a check that a checkpoint holds them."""

import numpy as np

from jaxpipe.checkpoint.resolve import Checkpoint

ARRAYS = {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.float16)}


def check_weights(checkpoint: Checkpoint) -> None:
    source = checkpoint.weights()
    assert {name: source.read(name).tolist() for name in source.infos} == {k: v.tolist() for k, v in ARRAYS.items()}
