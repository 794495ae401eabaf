"""What counts as one item, as many, and as a chat."""

import itertools

import numpy as np
import pytest

from jaxpipe.pipelines.inputs import (
    Chat,
    KeyDataset,
    KeyPairDataset,
    ResultIterator,
    StreamedList,
    arrange,
    is_message,
    peek,
)

ROWS = [{"text": "a", "other": 1}, {"text": "b", "other": 2}]


class ByIndex:
    """A data set without an iterator of its own, and without IndexError at its end."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index % len(self.rows)]


class Stream:
    """An iterable data set that defines a length only to refuse it."""

    def __iter__(self):
        return iter(ROWS)

    def __len__(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("inputs", "kind", "length"),
    [
        ("text", "one", 1),
        ({"a": 1}, "one", 1),
        (None, "one", 1),
        (3, "one", 1),
        (np.zeros(4), "one", 1),
        (["a", "b"], "list", 2),
        (("a", "b", "c"), "list", 3),
        ([], "list", 0),
        (iter("ab"), "lazy", None),
        (ByIndex([1, 2]), "lazy", 2),
        (KeyDataset(ROWS, "text"), "lazy", 2),
        (Stream(), "lazy", None),
        (StreamedList(["a", "b"]), "lazy", 2),
    ],
)
def test_kinds(inputs, kind, length):
    arranged = arrange(inputs)
    assert (arranged.kind, arranged.length) == (kind, length)


def test_a_streamed_list_is_batched_as_a_list():
    assert arrange(StreamedList(["a", "b"])).at_hand and arrange(["a", "b"]).at_hand
    assert not arrange(iter("ab")).at_hand


def test_data_sets_by_index_stop_at_their_length():
    assert list(arrange(ByIndex(["a", "b"])).items) == ["a", "b"]


@pytest.mark.parametrize("rows", [ROWS, ByIndex(ROWS), Stream()])
def test_columns(rows):
    assert list(KeyDataset(rows, "text")) == ["a", "b"]
    assert list(KeyPairDataset(rows, "text", "other"))[1] == {"text": "b", "text_pair": 2}


def test_columns_by_index():
    assert KeyDataset(ROWS, "other")[1] == 2
    assert KeyPairDataset(ROWS, "text", "other")[0] == {"text": "a", "text_pair": 1}
    assert len(KeyPairDataset(ROWS, "text", "other")) == len(KeyDataset(ROWS, "text")) == 2


def test_an_absent_column_is_named():
    with pytest.raises(KeyError, match=r"no column 'texts'; it has \['other', 'text'\]"):
        KeyDataset(ROWS, "texts")[0]
    with pytest.raises(TypeError, match="mappings as items"):
        KeyDataset(["plain"], "text")[0]


def test_peek_gives_the_first_item_back():
    first, items = peek(itertools.count())
    assert first == [0]
    assert list(itertools.islice(items, 3)) == [0, 1, 2]
    assert peek([])[0] == []


def test_result_iterator_knows_its_length_where_there_is_one():
    assert len(ResultIterator(iter("ab"), 2)) == 2
    with pytest.raises(TypeError, match="not known"):
        len(ResultIterator(iter("ab"), None))


def test_chat_copies_its_messages():
    message = {"role": "user", "content": "hi"}
    chat = Chat([message])
    chat.messages[0]["content"] = "changed"
    assert message["content"] == "hi"
    assert not chat.ends_with_assistant
    assert is_message(message)


@pytest.mark.parametrize(
    ("messages", "error", "text"),
    [
        ([], ValueError, r"inputs\[2\] is a chat without messages"),
        ([{"role": "user", "content": "a"}, "b"], TypeError, r"inputs\[2\], message 1: .*str 'b'"),
        ([{"role": "user", "text": "a"}], ValueError, r"message 0 lacks 'content'; its keys are \['role', 'text'\]"),
        ([{"role": 5, "content": "a"}], TypeError, "'role' is a string, not int 5"),
    ],
)
def test_malformed_chats(messages, error, text):
    with pytest.raises(error, match=text):
        Chat(messages, "inputs[2]")
