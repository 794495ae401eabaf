"""Writes what contrastive search and DoLa of Transformers 4.49.0 give, the last version that has them in its core.

    python -m venv .venv-4.49 && .venv-4.49/bin/pip install transformers==4.49.0 torch safetensors numpy
    .venv-4.49/bin/python tests/generation/frozen/make_contrast.py

It makes the checkpoints of `contrast_models` and writes contrastive.json and dola.json beside this file. Sequences are
the new tokens alone. DoLa with several early layers runs one prompt at a time: 4.49.0 takes one layer for all rows of
a batch.
"""

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import contrast_models as models
import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
PROCESSED: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2,
    "suppress_tokens": [0, 7, 9],  # 4.49.0 counts padding, token 0, as history
    "sequence_bias": [[[5], 1.5], [[11, 6], -3.0]],
    "renormalize_logits": True,
}


def load(model_type: str, directory: Path) -> Any:
    """Makes the oracle's model of a type."""
    config = transformers.AutoConfig.for_model(model_type.split()[-1], **models.CONFIGS[model_type])
    head = transformers.AutoModelForSeq2SeqLM if model_type in models.SEQ2SEQ else transformers.AutoModelForCausalLM
    head.from_config(config).save_pretrained(directory, safe_serialization=True)
    models.write(directory)
    model = head.from_pretrained(directory, attn_implementation="eager").eval()
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=models.CONFIGS[model_type].get("decoder_start_token_id")
    )
    return model


def case(model: Any, model_type: str, rows: slice, recorded: bool = False, **settings: Any) -> dict[str, Any]:
    """Generates for some of the prompts."""
    ids, mask = (x[rows] for x in models.prompts(model_type))
    kept = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    settings = {"max_new_tokens": models.NEW, "pad_token_id": 0, **settings}
    with torch.no_grad():
        out = model.generate(
            torch.tensor(ids), attention_mask=torch.tensor(mask), **{"do_sample": False, **settings}, **kept
        )
    start = 1 if model.config.is_encoder_decoder else ids.shape[1]
    made = {"rows": [rows.start or 0, rows.stop or 3], "settings": settings}
    made["sequences"] = out.sequences[:, start:].tolist()
    if recorded:
        made["scores"], made["logits"] = ([rounded(step) for step in steps] for steps in (out.scores, out.logits))
    return made


def rounded(values: torch.Tensor) -> list[list[float | None]]:
    """Numbers of (B, V), None for -inf."""
    return [[None if np.isinf(x) else round(float(x), 4) for x in row] for row in values]


def ends(made: dict[str, Any]) -> list[int]:
    """Tokens that a case puts out on its way, so that rows end at different steps."""
    new = made["sequences"]
    return list(dict.fromkeys(new[row % len(new)][step] for row, step in ((0, 4), (1, 9), (2, 6))))


def contrastive(model: Any, model_type: str) -> Iterator[dict[str, Any]]:
    every = slice(None)
    for alpha, top_k in ((0.6, 4), (0.2, 7), (1.0, 3)):
        yield (free := case(model, model_type, every, penalty_alpha=alpha, top_k=top_k))
    search = {"penalty_alpha": 0.5, "top_k": 5}
    eos = ends(free)
    yield case(model, model_type, every, penalty_alpha=1.0, top_k=3, eos_token_id=eos)
    yield case(model, model_type, every, penalty_alpha=1.0, top_k=3, eos_token_id=eos, min_new_tokens=7)
    yield case(model, model_type, every, **search, **PROCESSED)
    yield case(model, model_type, slice(1, 2), penalty_alpha=0.6)  # top_k is 50
    yield case(model, model_type, every, penalty_alpha=0.6, top_k=1)  # greedy
    if model_type in ("llama", "t5"):
        yield case(model, model_type, slice(0, 1), True, **search, max_new_tokens=3, repetition_penalty=1.5)
        yield case(model, model_type, slice(0, 2), **search, forced_eos_token_id=eos[0], eos_token_id=eos[0])


def dola(model: Any, model_type: str) -> Iterator[dict[str, Any]]:
    layers = model.config.num_hidden_layers
    asked = ["low", "high", [layers - 1, 1, 2]]
    for i, dola_layers in enumerate(asked):
        yield case(model, model_type, slice(i, i + 1), dola_layers=dola_layers)
        advised = {"repetition_penalty": 1.2, "suppress_tokens": PROCESSED["suppress_tokens"]}
        yield case(model, model_type, slice(2 - i, 3 - i), dola_layers=dola_layers, **advised)
    yield (free := case(model, model_type, slice(None), dola_layers=[2]))
    eos = ends(free)
    yield case(model, model_type, slice(None), dola_layers=[2], eos_token_id=eos, min_new_tokens=6)
    yield case(model, model_type, slice(None), dola_layers=[1], eos_token_id=eos, **PROCESSED)
    sampled = {"do_sample": True, "temperature": 0.7, "top_k": 5, "max_new_tokens": 1}
    yield case(model, model_type, slice(0, 1), True, dola_layers="high", **sampled)
    if model_type == "deep llama":
        yield case(model, model_type, slice(1, 2), True, dola_layers="high", max_new_tokens=3)


def save(name: str, cases_of: Callable[[Any, str], Iterator[dict[str, Any]]], model_types: tuple[str, ...]) -> None:
    """Writes one file."""
    written = []
    for model_type in model_types:
        with tempfile.TemporaryDirectory() as directory:
            torch.manual_seed(0)
            made = [json.dumps(case) for case in cases_of(load(model_type, Path(directory)), model_type)]
        written.append(f"{json.dumps(model_type)}: [\n" + ",\n".join(made) + "\n]")
    (HERE / f"{name}.json").write_text("{\n" + ",\n".join(written) + "\n}\n")


def main() -> None:
    """Writes the files."""
    assert transformers.__version__ == "4.49.0", transformers.__version__
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    save("contrastive", contrastive, ("llama", "gpt2", "qwen2", "mixtral", "t5", "bart"))
    save("dola", dola, ("deep llama", "deep gpt2", "deep qwen2", "deep gemma2"))


if __name__ == "__main__":
    main()
