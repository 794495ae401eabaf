"""The tokenizer's own behaviour: arguments, types, warnings, bad input."""

import copy
import logging
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpipe.tokenization import AutoTokenizer, BatchEncoding


@pytest.fixture
def bert(bert_v4):
    return AutoTokenizer.from_pretrained(bert_v4)


@pytest.fixture
def gpt2(gpt2_v5):
    return AutoTokenizer.from_pretrained(gpt2_v5)


@pytest.fixture(scope="module")
def shared(gpt2_v5):
    return AutoTokenizer.from_pretrained(gpt2_v5)


def test_one_text_or_a_batch(bert) -> None:
    one = bert("the tokenizer")
    assert one["input_ids"][0] == bert.cls_token_id == 2 and one.input_ids[-1] == bert.sep_token_id == 3
    assert list(one) == ["input_ids", "token_type_ids", "attention_mask"] and len(one) == 3
    assert bert(["the tokenizer"]).data == {name: [value] for name, value in one.items()}
    assert bert("the", "tokenizer")["token_type_ids"] == [0, 0, 0, 1, 1]
    assert bert([]).data == {"input_ids": [], "token_type_ids": [], "attention_mask": []}
    assert dict(**one)["input_ids"] == one["input_ids"]


def test_padding_and_truncation_sides(bert) -> None:
    rows = ["the", "the words the words"]
    right = bert(rows, padding=True)["input_ids"]
    left = bert(rows, padding=True, padding_side="left")["input_ids"]
    assert right[0] == [*bert("the")["input_ids"], 0, 0, 0] and left[0] == [0, 0, 0, *bert("the")["input_ids"]]
    assert bert(rows)["input_ids"][0] == bert("the")["input_ids"]  # nothing of the last call stays
    inner = bert(rows[1], add_special_tokens=False)["input_ids"]
    assert bert(rows[1], truncation=True, max_length=4)["input_ids"] == [2, *inner[:2], 3]
    bert.truncation_side = "left"
    assert bert(rows[1], max_length=4)["input_ids"] == [2, *inner[-2:], 3]
    assert bert(rows, padding="max_length")["input_ids"][0].count(0) == 21  # model_max_length is 24
    assert bert(rows[1], tokenizer_kwargs={"max_length": 3, "truncation": True})["input_ids"] == [2, inner[-1], 3]


def test_arrays(bert) -> None:
    import jax

    rows = ["the", "the words"]
    for kind, array, dtype in (("np", np.ndarray, "int64"), ("jax", jax.Array, "int32")):
        encoded = bert(rows, padding=True, return_tensors=kind)
        assert isinstance(encoded.input_ids, array) and encoded.input_ids.shape == (2, 4)
        assert str(encoded.input_ids.dtype) == dtype
        assert bert("the", return_tensors=kind)["input_ids"].shape == (1, 3)
        assert bert.decode(encoded["input_ids"], skip_special_tokens=True) == rows
        assert bert.decode(encoded["input_ids"][1], skip_special_tokens=True) == "the words"
        assert bert.decode(encoded["input_ids"][1][1]) == "the"
        assert bert.batch_decode(encoded["input_ids"]) == ["[CLS] the [SEP] [PAD]", "[CLS] the words [SEP]"]
        assert bert.convert_ids_to_tokens(encoded["input_ids"][0]) == ["[CLS]", "the", "[SEP]", "[PAD]"]
        padded = bert.pad([{"input_ids": encoded["input_ids"][1]}, {"input_ids": encoded["input_ids"][0][:3]}])
        assert isinstance(padded["input_ids"], np.ndarray) and padded["attention_mask"].tolist()[1] == [1, 1, 1, 0]
    assert (
        bert.decode([]) == "" and bert.decode(7) == bert.convert_ids_to_tokens(7) == bert.convert_ids_to_tokens([7])[0]
    )
    assert bert.decode([[2], [3]]) == ["[CLS]", "[SEP]"] and bert.decode({"input_ids": [2]}) == "[CLS]"


@pytest.mark.parametrize("kind", ["pt", "tf", "mlx", 3])
def test_other_frameworks_are_named(bert, kind) -> None:
    with pytest.raises(ValueError, match="'np', 'jax'"):
        bert("x", return_tensors=kind)
    with pytest.raises(ValueError, match="'np', 'jax'"):
        bert.pad({"input_ids": [1]}, return_tensors=kind)


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        (((None,)), ValueError, "without text"),
        (((3,)), TypeError, "text must be a str"),
        (((["a", None],)), TypeError, r"text\[1\] must be a str"),
        (((["a", 3],)), TypeError, r"text\[1\]"),
        ((["a", "b"], "c"), TypeError, "text_pair is one str"),
        ((["a", "b"], ["c"]), ValueError, "2 rows and text_pair has 1"),
        (([["a", "b", "c"]],), TypeError, "not text"),
    ],
)
def test_input_that_is_not_text(bert, args, error, words) -> None:
    with pytest.raises(error, match=words):
        bert(*args)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"padding": "longst"}, "Did you mean 'longest'"),
        ({"truncation": "only_thrd"}, "only_first, only_second"),
        ({"padding": True, "padding_side": "up"}, "'left' or 'right'"),
        ({"max_length": -1}, "max_length=-1"),
        ({"max_length": 2.5}, "max_length=2.5"),
        ({"padding": True, "pad_to_multiple_of": 0}, "pad_to_multiple_of=0"),
        ({"padding": True, "truncation": True, "max_length": 10, "pad_to_multiple_of": 8}, "multiple of"),
        ({"truncation": True, "max_length": 8, "stride": 8}, "stride=8"),
        ({"truncation": True, "max_length": 8, "stride": 7}, "stride=7"),
        ({"truncation": True, "max_length": 8, "stride": 6}, "stride=6"),
        ({"truncation": True, "max_length": 8, "stride": -1}, "stride=-1"),
        ({"truncation": "only_second", "max_length": 4}, "Truncation error"),
        ({"is_split_into_words": True}, "text.split"),
    ],
)
def test_wrong_options(bert, options, words) -> None:
    with pytest.raises(ValueError, match=words):
        bert("the words of this sentence and the words of the other sentence", **options)
    assert bert("the")["input_ids"] == [2, bert.convert_tokens_to_ids("the"), 3]


def test_unknown_options(bert) -> None:
    with pytest.raises(TypeError, match="paddin"):
        bert("x", paddin=True)
    with pytest.raises(TypeError, match=r"'paddin'.*'padding'"):
        bert("x", tokenizer_kwargs={"paddin": True})


def test_rows_of_different_lengths_need_padding(bert) -> None:
    with pytest.raises(ValueError, match="padding=True"):
        bert(["the", "the words"], return_tensors="np")
    assert bert(["the", "words"], return_tensors="np")["input_ids"].shape == (2, 3)


def test_no_pad_token(gpt2) -> None:
    gpt2.pad_token = None
    for call in (lambda: gpt2(["a", "b c"], padding=True), lambda: gpt2.pad({"input_ids": [[1], [1, 2]]})):
        with pytest.raises(ValueError, match=r"tokenizer\.pad_token = tokenizer\.eos_token"):
            call()
    gpt2.pad_token = "<|nowhere|>"
    gpt2.unk_token = None
    with pytest.raises(ValueError, match="Padding needs a pad token"):
        gpt2(["a", "b c"], padding=True)
    gpt2.pad_token = gpt2.eos_token
    assert gpt2.pad_token_id == gpt2.eos_token_id == 2
    assert gpt2(["a", "aa bb cc"], padding=True)["input_ids"][0][-1] == 2


def test_too_long_is_said_once(bert, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="jaxpipe"):
        bert("word " * 30, verbose=False)
        bert("word " * 30, truncation=True)
        assert not caplog.records
        bert("word " * 30)
        bert("word " * 30)
    assert len(caplog.records) == 1 and "more than the 24" in caplog.text
    with pytest.warns(UserWarning, match="max_length is ignored"):
        bert("x", padding=True, max_length=4)


def test_special_tokens_can_be_set(gpt2) -> None:
    gpt2.sep_token = "<|im_start|>"
    assert gpt2.sep_token_id == 1 and "sep_token" in gpt2.special_tokens_map
    gpt2.cls_token_id = 2
    assert gpt2.cls_token == "<|im_end|>"
    gpt2.additional_special_tokens = ["<|endoftext|>"]
    assert gpt2.extra_special_tokens_ids == gpt2.additional_special_tokens_ids == [0]
    gpt2.extra_special_tokens_ids = [1]
    assert gpt2.extra_special_tokens == ["<|im_start|>"] and gpt2.mask_token is None and gpt2.mask_token_id is None
    with pytest.raises(ValueError, match="is not a token"):
        gpt2.bos_token = 3
    with pytest.raises(ValueError, match="not in the vocabulary"):
        gpt2.bos_token_id = 10**6
    with pytest.raises(ValueError, match="must be a list"):
        gpt2.additional_special_tokens = "x"
    with pytest.raises(ValueError, match="Did you mean 'pad_token'"):
        gpt2.add_special_tokens({"pad_tokens": "x"})
    with pytest.raises(ValueError, match="give a token, not None"):
        gpt2.add_special_tokens({"pad_token": None})
    with pytest.raises(ValueError, match="is not a token"):
        gpt2.add_tokens([3])
    with pytest.raises(AttributeError, match="Did you mean 'eos_token'"):
        _ = gpt2.eos_tokn
    size = len(gpt2)
    assert gpt2.add_tokens([]) == 0 and gpt2.add_tokens("<n>") == 1
    assert gpt2.get_special_tokens_mask([0, 5, 2]) == [1, 0, 1]
    assert len(gpt2) == size + 1 and gpt2.tokenize("a<n>")[-1] == "<n>" and gpt2.vocab_size == size


def test_ids_that_are_none(gpt2) -> None:
    for wrong in (-100, [1, -100], np.array([[1, -1]]), [1.5], ["a"]):
        with pytest.raises(ValueError, match="is not a token id"):
            gpt2.decode(wrong)
    with pytest.raises(ValueError, match="is not a token id"):
        gpt2.convert_ids_to_tokens(-1)
    assert gpt2.convert_ids_to_tokens([1, 10**6]) == ["<|im_start|>", None]
    assert gpt2.convert_tokens_to_ids(["<|im_end|>", "nothere"]) == [2, 0]


def test_pad_wants_ids_and_equal_rows(bert) -> None:
    with pytest.raises(ValueError, match="'input_ids'"):
        bert.pad({"ids": [1]})
    with pytest.raises(ValueError, match="Row 1 and row 0 differ"):
        bert.pad([{"input_ids": [1], "x": 1}, {"input_ids": [1]}])
    with pytest.raises(ValueError, match="has 1 rows"):
        bert.pad({"input_ids": [[1], [2]], "attention_mask": [[1]]})
    with pytest.raises(ValueError, match="a mapping or a list"):
        bert.pad(3)
    rows = [{"input_ids": [5, 6]}, {"input_ids": [5]}]
    assert bert.pad(rows).data == {"input_ids": [[5, 6], [5, 0]], "attention_mask": [[1, 1], [1, 0]]}
    assert rows == [{"input_ids": [5, 6]}, {"input_ids": [5]}]
    assert bert.pad({"input_ids": []}).data == {"input_ids": []}


def test_batch_encoding_without_rows() -> None:
    encoding = BatchEncoding({"input_ids": [[1, 2], [3, 4]], "n": [1, 2]})
    assert encoding[0:1] == {"input_ids": [[1, 2]], "n": [1]} and not encoding.is_fast
    for call in (encoding.tokens, encoding.word_ids, lambda: encoding.char_to_token(0), lambda: encoding[0]):
        with pytest.raises(ValueError, match="not made by a tokenizer call"):
            call()
    with pytest.raises(AttributeError, match="it holds input_ids, n"):
        _ = encoding.labels
    array = BatchEncoding({"input_ids": [1, 2]}, tensor_type="np", prepend_batch_axis=True)
    assert array.input_ids.shape == (1, 2)
    assert pickle.loads(pickle.dumps(encoding)).data == encoding.data


def test_copies(gpt2) -> None:
    gpt2.add_tokens(["<n>"])
    for other in (copy.deepcopy(gpt2), pickle.loads(pickle.dumps(gpt2))):
        assert other("a<n>b")["input_ids"] == gpt2("a<n>b")["input_ids"]
        assert other.special_tokens_map == gpt2.special_tokens_map and other.chat_template == gpt2.chat_template
        other.add_tokens(["<m>"])
        assert len(other) == len(gpt2) + 1


def test_threads_get_their_own_padding(gpt2) -> None:
    rows = ["a", "aa bb cc dd ee"]
    expected = {length: gpt2(rows, padding="max_length", max_length=length)["input_ids"] for length in (20, 30, 40)}
    wrong: list[int] = []

    def work(length: int) -> None:
        for _ in range(50):
            if gpt2(rows, padding="max_length", max_length=length)["input_ids"] != expected[length]:
                wrong.append(length)

    threads = [threading.Thread(target=work, args=(length,)) for length in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=50))
def test_byte_level_round_trip(shared, text: str) -> None:
    if "<|" not in text:
        encoded = shared(text, return_offsets_mapping=True)
        assert shared.decode(encoded["input_ids"]) == text
        assert all(0 <= start <= end <= len(text) for start, end in encoded["offset_mapping"])


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.text(max_size=20), min_size=1, max_size=4), side=st.sampled_from(["left", "right"]))
def test_padding_changes_no_token(shared, rows: list[str], side: str) -> None:
    padded = shared(rows, padding=True, padding_side=side, return_tensors="np")
    for row, text in enumerate(rows):
        kept = padded["input_ids"][row][padded["attention_mask"][row] == 1].tolist()
        assert kept == shared(text)["input_ids"]


def test_repr_names_what_matters(gpt2) -> None:
    assert "vocab_size=500" in repr(gpt2) and "'eos_token': '<|im_end|>'" in repr(gpt2)
    assert gpt2.is_fast and bool(gpt2) and gpt2.name_or_path and gpt2.init_kwargs["model_max_length"] == 64
    assert gpt2.vocab is not None and gpt2.backend_tokenizer.get_vocab_size() == len(gpt2)
