"""Writes what the diverse (group) beam search of Transformers 4.49.0 gives, the last version that has it in its core.

    python -m venv .venv-4.49 && .venv-4.49/bin/pip install transformers==4.49.0 torch safetensors numpy
    .venv-4.49/bin/python tests/generation/frozen/make_group_beams.py

It makes the checkpoints of `beam_group_models` and writes group_beams.json beside this file. Sequences are the new
tokens alone. Beam indices are kept for one prompt and no end token, where they are right: 4.49.0 looks up those of
other prompts, and of sequences that ended, in the wrong group.
"""

import itertools
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import beam_group_models as models
import numpy as np
import torch
import transformers

HERE = Path(__file__).parent


def load(model_type: str, directory: Path) -> Any:
    """Makes the oracle's model of a type."""
    config = transformers.AutoConfig.for_model(model_type, **models.CONFIGS[model_type])
    head = transformers.AutoModelForSeq2SeqLM if model_type in models.SEQ2SEQ else transformers.AutoModelForCausalLM
    head.from_config(config).save_pretrained(directory, safe_serialization=True)
    models.write(directory)
    model = head.from_pretrained(directory).eval()
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=models.CONFIGS[model_type].get("decoder_start_token_id")
    )
    if model_type in models.SEQ2SEQ:
        _pass_mask_on(model)
    return model


def _pass_mask_on(model: Any) -> None:
    """Gives the decoder the encoder's mask; 4.49.0 drops it in `generate`, so that padding would be read as text."""
    prepare = model.prepare_inputs_for_generation

    def prepared(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return prepare(*args, attention_mask=attention_mask, **kwargs) | {"attention_mask": attention_mask}

    model.prepare_inputs_for_generation = prepared


def run(model: Any, ids: np.ndarray, mask: np.ndarray, **settings: Any) -> Any:
    """Generates with everything returned."""
    asked = {"do_sample": False, "return_dict_in_generate": True, "output_scores": True, **settings}
    with torch.no_grad():
        return model.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **asked)


def ends(model: Any, ids: np.ndarray, mask: np.ndarray) -> list[int]:
    """Tokens that the model puts out on its way, so that sequences end at different steps."""
    free = run(model, ids, mask, num_beams=4, max_new_tokens=models.NEW, pad_token_id=0)
    new = free.sequences.numpy()[:, -models.NEW :]
    return list(dict.fromkeys(int(new[row, step]) for row, step in ((0, 4), (1, 7), (2, 5), (1, 2))))


def rounded(values: Any) -> Any:
    return [round(float(x), 5) for x in values]


def case(model: Any, prompt: tuple[np.ndarray, np.ndarray], rows: int = 3, **settings: Any) -> dict[str, Any]:
    ids, mask = (x[:rows] for x in prompt)
    out = run(model, ids, mask, **settings)
    start = 1 if model.config.is_encoder_decoder else ids.shape[1]
    made = {"rows": rows, "settings": settings, "sequences": out.sequences[:, start:].tolist()}
    made["sequences_scores"] = rounded(out.sequences_scores)
    if rows == 1 and settings.get("eos_token_id") is None:
        made["beam_indices"] = out.beam_indices[:, : settings["max_new_tokens"]].tolist()
    return made


def scores(model: Any, prompt: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """Processed scores of every step, while no group is done."""
    settings = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.5, "max_new_tokens": 3, "pad_token_id": 0}
    out = run(model, prompt[0][:2], prompt[1][:2], **settings)
    return {"rows": 2, "settings": settings, "scores": [[rounded(row) for row in step] for step in out.scores]}


def cases(model: Any, model_type: str) -> list[dict[str, Any]]:
    prompt = models.prompts(model_type)
    eos = ends(model, *prompt)
    common: dict[str, Any] = {"max_new_tokens": models.NEW, "pad_token_id": 0}
    found = []
    product = itertools.product((False, True, "never"), (1.0, 0.5, 2.0, -1.0))
    for i, (stopping, length) in enumerate(product):
        if model_type not in ("llama", "t5") and i not in (0, 5, 10):
            continue
        beams, groups = ((4, 2), (2, 2), (6, 3), (6, 2))[(i + i // 4) % 4]
        search = {"num_beams": beams, "num_beam_groups": groups, "diversity_penalty": (0.4, 2.0, 0.9)[i % 3]}
        more = {"early_stopping": stopping, "length_penalty": length, "num_return_sequences": 1 + i % beams}
        found.append(case(model, prompt, **search, **more, **common, eos_token_id=eos[: 1 + i % 2]))
    search = {"num_beams": 4, "num_beam_groups": 2, "num_return_sequences": 4, "diversity_penalty": 1.1}
    found.append(case(model, prompt, 1, **search, **common))
    found.append(case(model, prompt, **search, **common | {"pad_token_id": eos[0]}, eos_token_id=eos[0]))
    if model_type in ("llama", "t5"):
        processed = {"repetition_penalty": 1.4, "min_new_tokens": 4, "no_repeat_ngram_size": 2, "suppress_tokens": [7]}
        found.append(case(model, prompt, **search, **common, **processed, eos_token_id=eos[:2]))
        bias = [[[eos[1]], 1.5], [[5, 6], -3.0]]
        found.append(case(model, prompt, **search, **common, sequence_bias=bias, forced_eos_token_id=eos[0]))
        found.append(case(model, prompt, **search | {"num_beam_groups": 4}, **common, renormalize_logits=True))
        found.append(case(model, prompt, **search, **common | {"max_new_tokens": 1}, eos_token_id=eos[0]))
    if model_type == "llama":
        found.append(scores(model, prompt))
    return found


def main() -> None:
    """Writes the file."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    assert transformers.__version__ == "4.49.0", transformers.__version__
    written = {}
    for model_type in models.CONFIGS:
        with tempfile.TemporaryDirectory() as directory:
            written[model_type] = cases(load(model_type, Path(directory)), model_type)
    rows = [f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, made)) + "\n]" for name, made in written.items()]
    (HERE / "group_beams.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
