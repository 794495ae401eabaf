"""What a pipeline can be called with: one item, a list, a data set, an iterator; and the chat."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["one", "list", "lazy"]


@dataclass
class Inputs:
    """The items of one call.

    Attributes:
        kind: ``"one"`` item gives its result, a ``"list"`` gives a list, ``"lazy"`` gives an iterator of results.
        items: the items in order.
        length: their number, or None where only reading them would tell.
        streamed: whether they are a `StreamedList`.
    """

    kind: Kind
    items: Iterable[Any]
    length: int | None = None
    streamed: bool = False

    @property
    def at_hand(self) -> bool:
        """Whether the items are in memory, so that reading them ahead costs nothing."""
        return self.kind != "lazy" or self.streamed


class StreamedList:
    """Items in memory whose results are wanted one by one: batched as a list is, answered as a generator is.

    Args:
        items: the items.
    """

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items


def arrange(inputs: Any) -> Inputs:
    """Tells whether ``inputs`` is one item or many, without reading an item.

    Lists and tuples are many items. Iterators, generators and whatever has a length and items (a data set, a column
    of a table) are read lazily. Strings, bytes, mappings, arrays and everything else are one item.
    """
    if isinstance(inputs, (list, tuple)):
        return Inputs("list", inputs, len(inputs))
    if isinstance(inputs, StreamedList):
        return Inputs("lazy", iter(inputs.items), len(inputs.items), streamed=True)
    if isinstance(inputs, (str, bytes, Mapping)) or hasattr(inputs, "__array_interface__") or hasattr(inputs, "dtype"):
        # A table's column has a dtype as well, but no shape of more axes and an iterator over its values.
        column = hasattr(inputs, "dtype") and hasattr(inputs, "iloc")
        return Inputs("lazy", inputs, len(inputs)) if column else Inputs("one", [inputs], 1)
    if isinstance(inputs, Iterator):
        return Inputs("lazy", inputs, None)
    if hasattr(type(inputs), "__getitem__") or hasattr(type(inputs), "__iter__"):
        return Inputs("lazy", read_items(inputs), length_of(inputs))
    return Inputs("one", [inputs], 1)


def length_of(data: Any) -> int | None:
    """Returns the length of a data set, or None where it has none (some define ``__len__`` only to refuse)."""
    if not isinstance(data, Sized):
        return None
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def read_items(data: Any) -> Iterator[Any]:
    """Yields the items of a data set: by its own iterator, else by index up to its length."""
    length = length_of(data)
    if hasattr(type(data), "__iter__") or length is None:
        yield from data
    else:
        for index in range(length):
            yield data[index]


def peek(items: Iterable[Any]) -> tuple[list[Any], Iterator[Any]]:
    """Returns the first item, in a list that is empty where there is none, and an iterator that still yields it."""
    iterator = iter(items)
    first = list(itertools.islice(iterator, 1))
    return first, itertools.chain(first, iterator)


class KeyDataset:
    """The column ``key`` of a data set whose items are mappings, such as ``datasets.Dataset``.

    Args:
        dataset: a sequence or an iterable of mappings.
        key: the name of the column.
    """

    def __init__(self, dataset: Any, key: str) -> None:
        self.dataset = dataset
        self.key = key

    def __len__(self) -> int:
        return _known_length(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self._value(self.dataset[index])

    def __iter__(self) -> Iterator[Any]:
        return map(self._value, read_items(self.dataset))

    def _value(self, row: Any) -> Any:
        return _column(row, self.key)


class KeyPairDataset:
    """Two columns of a data set, as items ``{"text": ..., "text_pair": ...}``.

    Args:
        dataset: a sequence or an iterable of mappings.
        key1: the column of the first text.
        key2: the column of the second text.
    """

    def __init__(self, dataset: Any, key1: str, key2: str) -> None:
        self.dataset = dataset
        self.key1 = key1
        self.key2 = key2

    def __len__(self) -> int:
        return _known_length(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._value(self.dataset[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._value, read_items(self.dataset))

    def _value(self, row: Any) -> dict[str, Any]:
        return {"text": _column(row, self.key1), "text_pair": _column(row, self.key2)}


def _known_length(data: Any) -> int:
    length = length_of(data)
    if length is None:
        raise TypeError(f"The data set, a {type(data).__name__}, has no length.")
    return length


def _column(row: Any, key: str) -> Any:
    if not isinstance(row, Mapping):
        raise TypeError(f"A data set with columns has mappings as items; this one has {type(row).__name__}.")
    if key not in row:
        raise KeyError(f"The data set has no column {key!r}; it has {sorted(map(str, row))}.")
    return row[key]


class ResultIterator:
    """Results in the order of the items, computed as they are asked for.

    Args:
        results: the results.
        length: their number; ``len()`` raises TypeError where it is None.
    """

    def __init__(self, results: Iterator[Any], length: int | None) -> None:
        self._results = results
        self._length = length

    def __iter__(self) -> "ResultIterator":
        return self

    def __next__(self) -> Any:
        return next(self._results)

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("The number of results is not known before the inputs are read.")
        return self._length


class Chat:
    """A conversation: messages with ``role`` and ``content``.

    Args:
        messages: mappings, at least one.
        where: what errors call it, such as ``inputs[3]``.

    Raises:
        TypeError: a message is no mapping, or a role no string.
        ValueError: there is no message, or one lacks ``role`` or ``content``.
    """

    def __init__(self, messages: Sequence[Any], where: str = "inputs") -> None:
        if not messages:
            raise ValueError(f"{where} is a chat without messages.")
        for number, message in enumerate(messages):
            place = f"{where}, message {number}"
            if not isinstance(message, Mapping):
                raise TypeError(f"{place}: expected a mapping with 'role' and 'content', not {described(message)}.")
            missing = [key for key in ("role", "content") if key not in message]
            if missing:
                raise ValueError(
                    f"{place} lacks {' and '.join(map(repr, missing))}; its keys are {sorted(map(str, message))}."
                )
            if not isinstance(message["role"], str):
                raise TypeError(f"{place}: 'role' is a string, not {described(message['role'])}.")
        self.messages = [dict(message) for message in messages]

    @property
    def ends_with_assistant(self) -> bool:
        """Whether the last message is the assistant's, so that it is continued unless told otherwise."""
        return self.messages[-1]["role"] == "assistant"


def is_message(value: Any) -> bool:
    """Whether a value is a message of a chat: a mapping with ``role`` and ``content``."""
    return isinstance(value, Mapping) and "role" in value and "content" in value


def described(value: Any) -> str:
    """Returns the type and the shortened value of what was found, for error messages."""
    if value is None:
        return "None"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def numbered(items: Iterable[Any], check: Callable[[Any, str], Any], *, single: bool) -> Iterator[tuple[int, Any]]:
    """Yields (index, checked item); errors call an item ``inputs``, or ``inputs[i]`` where there are many."""
    for index, item in enumerate(items):
        yield index, check(item, "inputs" if single else f"inputs[{index}]")
