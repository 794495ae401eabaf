"""Worker: generates with jaxpipe. Settings: shape, dtype, device_map, tied."""

import json
import sys
import time
from typing import Any

import jax
import numpy as np
from harness import serve
from shapes import SHAPES

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM
from jaxpipe.generation.streamers import BaseStreamer
from jaxpipe.nn.cache import Cache, CacheLayout

settings = json.loads(sys.argv[1])
start = time.perf_counter()
# A tied random model says its last token again and again: text that repeats itself as much as text can.
tied = {"tie_word_embeddings": True} if settings.get("tied") else {}
config = AutoConfig.for_model(**{**SHAPES[settings["shape"]], **tied})
model = AutoModelForCausalLM.from_config(config, dtype=settings["dtype"], device_map=settings.get("device_map"))
jax.block_until_ready(model.functional()[1])
made = time.perf_counter() - start


class Counter(BaseStreamer):
    """Takes tokens and does nothing with them."""

    def put(self, value: np.ndarray) -> None:
        """Takes the prompt or a token."""

    def end(self) -> None:
        """Takes the end."""


def prompts(batch: int, length: int, period: int | None) -> np.ndarray:
    """Random ids (batch, length), which repeat after `period` tokens."""
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (batch, period or length))
    return np.tile(ids, (1, -(-length // ids.shape[1])))[:, :length]


def answer(
    batch: int, prompt: int, new: int, period: int | None = None, stream: bool = False, **call: Any
) -> dict[str, float]:
    """Generates `new` tokens for `batch` prompts, with more arguments of ``generate``; returns seconds."""
    ids = prompts(batch, prompt, period)
    given = {**call, "streamer": Counter()} if stream else call
    start = time.perf_counter()
    out = model.generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0, **given)
    np.asarray(out)
    seconds = time.perf_counter() - start
    assert out.shape == (batch, prompt + new)
    peak = (model.device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    return {"seconds": seconds, "peak_bytes": peak, "distinct": len(set(np.asarray(out)[0, prompt:].tolist()))}


weights = model.functional()[1]
total = sum(array.nbytes for array in weights.values())
# A step reads every weight once, but of an embedding that is not also the head only the rows of its tokens.
read = total if config.tie_word_embeddings else total - weights["model.embed_tokens.embedding"].nbytes
device = jax.devices()[0]
info = {"device": device.device_kind, "platform": device.platform, "made_s": made, "weight_bytes": total}
layers = model.module.cache_layers()


def cache_bytes(stored: str | None) -> int:
    """Bytes of a row of 1024 slots."""
    empty = jax.eval_shape(lambda: Cache.empty(layers, 1, 1024, model.dtype, CacheLayout(stored=stored)))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(empty.layers))


per_token = {name: cache_bytes(stored) // 1024 for name, stored in (("plain", None), ("int8", "int8"))}
serve({**info, "read_bytes": read, "cache_bytes_per_token": per_token}, answer)
