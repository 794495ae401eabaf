"""Tiny repositories of sentence-transformers, in the older and newer forms of their files, and what they are run on."""

import json
from pathlib import Path

import numpy as np

from tests.pipelines.frozen.encoders import write_checkpoint

TEXTS = [
    "The cat sat on the mat.",
    "a dog ate",
    "The river flows through the city of Berlin, and Sarah Wolfgang works in New York for a company.",
    "who?",
    "My name is JOHN",
]
ITEM = {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}

_OLD, _NEW = "sentence_transformers.models", "sentence_transformers.sentence_transformer.modules"
_WIDTH = 32


def _switches(*on):
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {"word_embedding_dimension": _WIDTH, **{f"pooling_mode_{name}": name in on for name in names}}


def _dense(inside, outside, function, bias=True):
    kind = "linear" if function == "Identity" else "activation"
    return {
        "in_features": inside, "out_features": outside, "bias": bias,
        "activation_function": f"torch.nn.modules.{kind}.{function}",
    }  # fmt: skip


_PROMPTS = {"prompts": {"query": "who is it for? ", "document": None}, "default_prompt_name": "query"}
# family: of the model. pooling: 1_Pooling/config.json. dense: config.json of further modules. transformer:
# sentence_bert_config.json. settings: config_sentence_transformers.json. folder: of the model.
REPOSITORIES = {
    "mean": {"pooling": _switches("mean_tokens"), "normalize": True, "transformer": {"max_seq_length": 12}},
    "cls": {"pooling": {"embedding_dimension": _WIDTH, "pooling_mode": "cls"}, "package": _NEW},
    "mean and max": {"pooling": _switches("mean_tokens", "max_tokens"), "folder": "0_Transformer"},
    "list": {"pooling": {"embedding_dimension": _WIDTH, "pooling_mode": ["max", "lasttoken"]}, "package": _NEW},
    "lasttoken": {"pooling": _switches("lasttoken"), "normalize": True, "family": "roberta"},
    "weightedmean": {
        "pooling": _switches("weightedmean_tokens"),
        "dense": [_dense(_WIDTH, 24, "Tanh")],
        "normalize": True,
        "family": "roberta",
        "transformer": {"max_seq_length": 10, "do_lower_case": True},
    },
    "mean_sqrt_len_tokens": {
        "pooling": _switches("mean_sqrt_len_tokens"),
        "dense": [_dense(_WIDTH, 48, "GELU"), _dense(48, 16, "Identity", bias=False)],
        "settings": _PROMPTS,
    },
    "prompt": {"pooling": {**_switches("mean_tokens"), "include_prompt": False}, "settings": _PROMPTS},
}


def write_repository(directory, name):
    """Writes one of `REPOSITORIES`; returns its directory."""
    from safetensors.numpy import save_file

    directory, made = Path(directory), REPOSITORIES[name]
    folder, package = made.get("folder", ""), made.get("package", _OLD)
    write_checkpoint(directory / folder, made.get("family", "bert"), "ner")
    base = "sentence_transformers.base.modules" if package == _NEW else package
    modules = [("Transformer", folder, base), ("Pooling", "1_Pooling", package)]
    _write(directory / "1_Pooling/config.json", made["pooling"])
    for number, config in enumerate(made.get("dense", ()), 2):
        modules.append(("Dense", f"{number}_Dense", base))
        _write(directory / f"{number}_Dense/config.json", config)
        random = np.random.default_rng([number, *name.encode()])
        weights = {"linear.weight": random.normal(size=(config["out_features"], config["in_features"]))}
        if config["bias"]:
            weights["linear.bias"] = random.normal(size=config["out_features"])
        weights = {key: (value * 0.2).astype(np.float32) for key, value in weights.items()}
        save_file(weights, directory / f"{number}_Dense/model.safetensors")
    if made.get("normalize"):
        modules.append(("Normalize", f"{len(modules)}_Normalize", base))
    listing = [
        {"idx": number, "name": str(number), "path": path, "type": f"{where}.{kind}"}
        for number, (kind, path, where) in enumerate(modules)
    ]
    _write(directory / "modules.json", listing)
    if "transformer" in made:
        _write(directory / folder / "sentence_bert_config.json", {"do_lower_case": False, **made["transformer"]})
    if "settings" in made:
        _write(directory / "config_sentence_transformers.json", made["settings"])
    return directory


def _write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
