"""Directories of every dialect, by hand: what each file means, and what damaged ones say."""

import json

import pytest

from jaxpipe.common.errors import CheckpointError
from jaxpipe.tokenization import AutoTokenizer


def dump(backend) -> dict:
    return json.loads(backend.to_str())


def test_extra_and_model_tokens(tmp_path, write_files, byte_level) -> None:
    config = {
        "eos_token": {"content": "<|im_end|>", "lstrip": False, "special": True},
        "image_token": "<image>",
        "extra_special_tokens": {"video_token": "<video>"},
        "model_max_length": 10**30,
    }
    write_files(tmp_path, tokenizer__json=byte_level.to_str(), tokenizer_config__json=config)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.image_token, tokenizer.video_token, tokenizer.eos_token_id) == ("<image>", "<video>", 2)
    assert tokenizer.image_token_id == 500 and tokenizer.tokenize("a<image>") == ["a", "<image>"]
    assert tokenizer.model_max_length == 10**30 and tokenizer.bos_token is None
    tokenizer.save_pretrained(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again").special_tokens_map == tokenizer.special_tokens_map


def test_legacy_files(tmp_path, write_files, vocab_and_merges) -> None:
    vocab, merges = vocab_and_merges
    write_files(
        tmp_path,
        vocab__json=vocab,
        merges__txt="\n".join(" ".join(pair) for pair in merges),
        special_tokens_map__json={"pad_token": {"content": "<pad>"}, "additional_special_tokens": ["<x>", "<y>"]},
        added_tokens__json={"<pad>": 500, "<y>": 502, "<x>": 501, "plain": 503},
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<x>", "<y>", "plain"]) == [500, 501, 502, 503]
    assert tokenizer.pad_token_id == 500 and tokenizer.eos_token == "<|endoftext|>"
    ids = tokenizer("a<y>plain<pad>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "aplain"


def test_v4_added_tokens_decoder(tmp_path, write_files, vocab_and_merges) -> None:
    vocab, merges = vocab_and_merges
    decoder = {
        "500": {"content": "<m>", "lstrip": True, "special": True},
        "501": {"content": "<n>", "normalized": False},
    }
    config = {"tokenizer_class": "GPT2TokenizerFast", "added_tokens_decoder": decoder, "mask_token": "<m>"}
    pairs = "\n".join(" ".join(pair) for pair in merges)
    write_files(tmp_path, vocab__json=vocab, merges__txt=pairs, tokenizer_config__json=config)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.mask_token_id == 500 and tokenizer.added_tokens_decoder[500].lstrip
    assert tokenizer.tokenize("a <m><n>") == ["a", "<m>", "<n>"] or tokenizer.tokenize("a <m><n>")[1] == " <m>"


def test_wordpiece_switches(tmp_path, write_files, wordpiece) -> None:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "caf",
        "##e",
        "##é",
        "cafe",
        "Cafe",
        "中",
        "##文",
        "中文",
        "Keep-Me",
    ]
    write_files(tmp_path, vocab__txt="\n".join(words))

    def tokens(text: str, **switches) -> list[str]:
        return AutoTokenizer.from_pretrained(tmp_path, **switches).tokenize(text)

    assert tokens("Café") == ["cafe"] and tokens("Café", strip_accents=False) == ["caf", "##é"]
    assert tokens("Cafe", do_lower_case=False) == ["Cafe"]
    assert tokens("Café", do_lower_case=False, strip_accents=True) == ["Cafe"]
    assert tokens("中文") == ["中", "[UNK]"] and tokens("中文", tokenize_chinese_chars=False) == ["中文"]
    assert tokens("a Keep-Me")[1:] != ["Keep-Me"] and tokens("a Keep-Me", never_split=["Keep-Me", "zz"])[1:] == [
        "Keep-Me"
    ]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("cafe", "中")["input_ids"] == [2, 8, 3, 10, 3] and tokenizer.num_special_tokens_to_add(True) == 3
    assert tokenizer.model_input_names == ["input_ids", "token_type_ids", "attention_mask"]
    assert tokens("Keep-Me", cls_token="caf")[0] == "[UNK]"


def test_bert_switches_win_over_tokenizer_json(tmp_path, write_files, wordpiece) -> None:
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    write_files(tmp_path, tokenizer__json=wordpiece.to_str(), tokenizer_config__json=config)
    cased = AutoTokenizer.from_pretrained(tmp_path)
    lower = AutoTokenizer.from_pretrained(tmp_path, do_lower_case=True)
    assert lower.tokenize("The") == ["the"] != cased.tokenize("The")
    assert lower("the")["input_ids"][0] == lower.cls_token_id


def test_tokenizer_json_is_believed_over_a_class_that_differs(tmp_path, write_files, byte_level) -> None:
    state = dump(byte_level)
    state["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, state["pre_tokenizer"]],
    }
    write_files(tmp_path, tokenizer__json=state, tokenizer_config__json={"tokenizer_class": "GPT2Tokenizer"})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("12  3")[:2] == ["1", "2"] and tokenizer.eos_token == "<|endoftext|>"
    assert [token for token in tokenizer.tokenize("a 12") if "1" in token] == ["1"]


def test_prefix_space_by_argument(gpt2_v5) -> None:
    plain = AutoTokenizer.from_pretrained(gpt2_v5)
    prefixed = AutoTokenizer.from_pretrained(gpt2_v5, add_prefix_space=True)
    assert prefixed.tokenize("the") == plain.tokenize(" the") != plain.tokenize("the")


def test_sides_saved_in_tokenizer_json(tmp_path, write_files, wordpiece) -> None:
    state = dump(wordpiece)
    state["padding"] = {
        "strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]",
    }  # fmt: skip
    state["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Left"}
    write_files(tmp_path, tokenizer__json=state)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token) == ("left", "left", "[PAD]")
    assert len(tokenizer("the words of the other sentence")["input_ids"]) > 4
    assert AutoTokenizer.from_pretrained(tmp_path, padding_side="right").padding_side == "right"


def test_class_traits(tmp_path, write_files, metaspace_bpe, byte_level) -> None:
    llama = {"tokenizer_class": "LlamaTokenizer"}
    write_files(tmp_path / "2", tokenizer__json=metaspace_bpe.to_str(), tokenizer_config__json=llama)
    two = AutoTokenizer.from_pretrained(tmp_path / "2")
    assert (two.padding_side, two.bos_token, two.unk_token_id) == ("left", "<s>", 0)
    write_files(tmp_path / "3", tokenizer__json=byte_level.to_str(), tokenizer_config__json=llama)
    three = AutoTokenizer.from_pretrained(tmp_path / "3")
    assert (three.padding_side, three.bos_token, len(three)) == ("right", None, 500)
    gpt2 = AutoTokenizer.from_pretrained(tmp_path / "3", tokenizer_type="gpt2")
    assert gpt2.bos_token == "<|endoftext|>"


def test_chat_templates_of_every_place(tmp_path, write_files, byte_level) -> None:
    config = {"chat_template": [{"name": "default", "template": "C"}, {"name": "rag", "template": "R"}]}
    write_files(tmp_path, tokenizer__json=byte_level.to_str(), tokenizer_config__json={})
    write_files(tmp_path, chat_template__json={"chat_template": "J"})
    chat = [{"role": "user", "content": "x"}]

    def text(name=None) -> str:
        return AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(chat, chat_template=name, tokenize=False)

    assert text() == "J"
    write_files(tmp_path, tokenizer_config__json=config)
    assert text() == "C" and text("rag") == "R"
    write_files(tmp_path, chat_template__jinja="F")
    assert text() == "F"
    write_files(tmp_path / "additional_chat_templates", own__jinja="O", tool_use__jinja="T")
    assert (text(), text("own"), text("tool_use")) == ("F", "O", "T")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again").chat_template == {
        "default": "F",
        "own": "O",
        "tool_use": "T",
    }
    tokenizer.chat_template = {"../escape": "x"}
    with pytest.raises(ValueError, match=r"'\.\./escape'"):
        tokenizer.save_pretrained(tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_switches_without_effect(gpt2_v5, caplog) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt2_v5, use_fast=False, trust_remote_code=True, padding_side="left")
    assert tokenizer.is_fast and tokenizer.padding_side == "left"
    checkpointed = AutoTokenizer.from_pretrained(_resolved(gpt2_v5), bos_token="<|endoftext|>", model_max_length=5)
    assert (checkpointed.bos_token_id, checkpointed.model_max_length) == (0, 5)


def _resolved(path):
    from jaxpipe.checkpoint.resolve import resolve

    return resolve(path)


def test_code_of_a_repository_is_never_run(tmp_path, write_files, byte_level) -> None:
    config = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    write_files(tmp_path, tokenizer__json=byte_level.to_str(), tokenizer_config__json=config)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    tokenizer.save_pretrained(tmp_path / "again")
    assert "auto_map" not in json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no tokenizer found; looked for tokenizer.json, .*vocab.json"),
        ({"tokenizer__json": "{nope"}, "tokenizer.json"),
        ({"tokenizer__json": "[1]"}, "tokenizer.json"),
        ({"tokenizer__json": {"model": {"type": "Alien"}}}, "tokenizers library can read"),
        ({"vocab__json": {"a": 0}}, "no merges.txt"),
        ({"vocab__json": {"a": "x"}, "merges__txt": ""}, "id of 'a' is 'x'"),
        ({"vocab__json": {"a": 0}, "merges__txt": "#version: 0.2\na b c\n"}, "merges.txt, line 2"),
        ({"vocab__json": {"a": 0}, "merges__txt": "a b\n"}, "do not fit the vocabulary"),
        ({"vocab__txt": "a\nb\n"}, "unk_token"),
        ({"tokenizer_config__json": {"added_tokens_decoder": {"x": {}}}}, "added_tokens_decoder"),
        ({"tokenizer_config__json": {"added_tokens_decoder": {"1": "x"}}}, "added token 1"),
        ({"tokenizer_config__json": {"pad_token": {"text": "x"}}}, "pad_token"),
        ({"added_tokens__json": {"a": "x"}}, "added_tokens.json"),
        ({"tokenizer_config__json": "{"}, "tokenizer_config.json"),
    ],
)
def test_damaged_files_are_named(tmp_path, write_files, files: dict, words: str) -> None:
    write_files(tmp_path, **files)
    with pytest.raises(CheckpointError, match=words):
        AutoTokenizer.from_pretrained(tmp_path)


def test_text_that_is_not_utf8(tmp_path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"vocab\.txt: not a UTF-8 text"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_wrong_arguments(gpt2_v5, tmp_path) -> None:
    with pytest.raises(TypeError, match=r"'paddingside'.*Did you mean 'padding_side'"):
        AutoTokenizer.from_pretrained(gpt2_v5, paddingside="left")
    with pytest.raises(ValueError, match="'left' or 'right'"):
        AutoTokenizer.from_pretrained(gpt2_v5, padding_side="middle")
    with pytest.raises(ValueError, match="Did you mean 'gpt2'"):
        AutoTokenizer.from_pretrained(gpt2_v5, tokenizer_type="gpt22")
    with pytest.raises(ValueError, match="is not known"):
        AutoTokenizer.from_pretrained(gpt2_v5, tokenizer_class="Nope")
    with pytest.raises(ValueError, match="is not a token"):
        AutoTokenizer.from_pretrained(gpt2_v5, pad_token=3)
    with pytest.raises(CheckpointError, match=r"no file 'x\.gguf'"):
        AutoTokenizer.from_pretrained(gpt2_v5, gguf_file="x.gguf")
    with pytest.raises(CheckpointError):
        AutoTokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="from_pretrained"):
        AutoTokenizer()
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(CheckpointError, match="needs a directory"):
        AutoTokenizer.from_pretrained(gpt2_v5).save_pretrained(file)
