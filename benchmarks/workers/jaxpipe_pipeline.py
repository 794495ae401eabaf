"""Worker: runs a pipeline of jaxpipe over texts. Settings: task, shape, dtype, tokenizer, count."""

import functools
import json
import sys
import time

import jax
import numpy as np
from harness import serve
from shapes import SHAPES
from texts import texts

from jaxpipe import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from jaxpipe.sharding.mesh import batch_sharding, use_mesh

settings = json.loads(sys.argv[1])
cls = AutoModel if settings["task"] == "feature-extraction" else AutoModelForSequenceClassification
model = cls.from_config(AutoConfig.for_model(**SHAPES[settings["shape"]]), dtype=settings["dtype"])
tokenizer = AutoTokenizer.from_pretrained(settings["tokenizer"])
pipe = pipeline(settings["task"], model=model, tokenizer=tokenizer)
inputs = texts(tokenizer, settings["count"])
parameters = {"return_tensors": True} if settings["task"] == "feature-extraction" else {}


def run() -> float:
    """Returns the seconds of one call."""
    start = time.perf_counter()
    out = pipe(inputs, **parameters)
    seconds = time.perf_counter() - start
    assert len(out) == len(inputs)
    return seconds


def replay() -> float:
    """Returns the seconds that the device alone takes for the batches of a call."""
    batches, forward = [], pipe._forward
    pipe._forward = lambda batch, **rest: batches.append(batch) or forward(batch, **rest)
    try:
        pipe(inputs, **parameters)
    finally:
        pipe._forward = forward
    with use_mesh(model.mesh):
        placed = [
            {name: jax.device_put(x, batch_sharding(model.mesh, len(x), np.ndim(x))) for name, x in batch.items()}
            for batch in batches
        ]
        run = functools.partial(model._forward, model._built.leaves)
        jax.block_until_ready([run(batch, False, False) for batch in placed])
        start = time.perf_counter()
        jax.block_until_ready([run(batch, False, False) for batch in placed])
        return time.perf_counter() - start


def answer(replayed: bool = False, **_: object) -> dict[str, float]:
    """Runs all texts, or the device's share of it."""
    return {"seconds": replay() if replayed else run()}


device = jax.devices()[0]
lengths = [len(ids) for ids in tokenizer(inputs)["input_ids"]]
info = {"device": device.device_kind, "platform": device.platform, "texts": len(inputs), "tokens": sum(lengths)}
serve({**info, "first_call_s": run()}, answer)
