"""Worker: runs a pipeline of Transformers over texts. Settings: task, shape, dtype, tokenizer, count."""

import json
import sys
import time

import torch
import transformers
from harness import serve
from shapes import SHAPES
from texts import texts

settings = json.loads(sys.argv[1])
device = "cuda" if torch.cuda.is_available() else "cpu"
transformers.logging.set_verbosity_error()
shape = dict(SHAPES[settings["shape"]])
config = transformers.AutoConfig.for_model(shape.pop("model_type"), **shape)
extraction = settings["task"] == "feature-extraction"
cls = transformers.AutoModel if extraction else transformers.AutoModelForSequenceClassification
with torch.device(device):
    model = cls.from_config(config, dtype=getattr(torch, settings["dtype"])).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(settings["tokenizer"])
pipe = transformers.pipeline(settings["task"], model=model, tokenizer=tokenizer, device=device)
unsorted = texts(tokenizer, settings["count"])
by_length = sorted(unsorted, key=len)
parameters = {"return_tensors": True} if extraction else {}


def answer(batch_size: int, by_lengths: bool = False, first: int | None = None) -> dict[str, float]:
    """Runs all texts, or every so many of them that ``first`` are left, and returns seconds."""
    inputs = by_length if by_lengths else unsorted
    inputs = inputs[:: len(inputs) // first] if first else inputs
    start = time.perf_counter()
    out = pipe(inputs, batch_size=batch_size, **parameters)
    seconds = time.perf_counter() - start
    assert len(out) == len(inputs)
    return {"seconds": seconds}


name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
serve({"device": name, "threads": torch.get_num_threads()}, answer)
