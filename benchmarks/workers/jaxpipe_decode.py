"""Worker: generates with jaxpipe. Settings: shape, dtype, device_map."""

import json
import sys
import time

import jax
import numpy as np
from harness import serve
from shapes import SHAPES

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM

settings = json.loads(sys.argv[1])
start = time.perf_counter()
config = AutoConfig.for_model(**SHAPES[settings["shape"]])
model = AutoModelForCausalLM.from_config(config, dtype=settings["dtype"], device_map=settings.get("device_map"))
jax.block_until_ready(model.functional()[1])
made = time.perf_counter() - start


def answer(batch: int, prompt: int, new: int) -> dict[str, float]:
    """Generates `new` tokens for `batch` random prompts; returns seconds."""
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (batch, prompt))
    start = time.perf_counter()
    out = model.generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
    np.asarray(out)
    seconds = time.perf_counter() - start
    assert out.shape == (batch, prompt + new)
    return {"seconds": seconds}


weights = model.functional()[1]
total = sum(array.nbytes for array in weights.values())
# A step reads every weight once, but of an embedding that is not also the head only the rows of its tokens.
read = total if config.tie_word_embeddings else total - weights["model.embed_tokens.embedding"].nbytes
device = jax.devices()[0]
info = {"device": device.device_kind, "platform": device.platform, "made_s": made, "weight_bytes": total}
serve({**info, "read_bytes": read}, answer)
