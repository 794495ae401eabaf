"""Worker: generates with Transformers on torch. Settings: shape, dtype, cache ("dynamic" or "static"), threads."""

import json
import sys
import time

import numpy as np
import torch
import transformers
from harness import serve
from shapes import SHAPES

settings = json.loads(sys.argv[1])
device = "cuda" if torch.cuda.is_available() else "cpu"
transformers.logging.set_verbosity_error()
shape = dict(SHAPES[settings["shape"]])
config = transformers.AutoConfig.for_model(shape.pop("model_type"), **shape)
with torch.device(device):
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, settings["dtype"])).eval()


def answer(batch: int, prompt: int, new: int) -> dict[str, float]:
    """Generates `new` tokens for `batch` random prompts; returns seconds."""
    ids = torch.tensor(np.random.default_rng(0).integers(0, config.vocab_size, (batch, prompt)), device=device)
    keywords = {} if settings["cache"] == "dynamic" else {"cache_implementation": "static"}
    start = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
        **keywords,
    )
    out.cpu()
    seconds = time.perf_counter() - start
    assert out.shape == (batch, prompt + new)
    return {"seconds": seconds}


name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
serve({"device": name, "threads": torch.get_num_threads()}, answer)
