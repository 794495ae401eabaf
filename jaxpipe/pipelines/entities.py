"""From scores of tokens to entities: words of several tokens, groups of words, overlapping pieces of a text."""

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpipe.common.errors import nearest

Record = dict[str, Any]
Join = Callable[[list[str]], str]


class AggregationStrategy(enum.StrEnum):
    """How tokens become entities.

    ``none`` gives every token. ``simple`` joins neighbours of the same label. The others first give all tokens of a
    word one label: ``first`` its first token's, ``average`` that of the average scores, ``max`` that of the token with
    the highest score.
    """

    NONE = "none"
    SIMPLE = "simple"
    FIRST = "first"
    AVERAGE = "average"
    MAX = "max"


# These work on words, so tokens must be told apart that begin one.
OF_WORDS = frozenset({AggregationStrategy.FIRST, AggregationStrategy.AVERAGE, AggregationStrategy.MAX})


def strategy_of(value: Any) -> AggregationStrategy:
    """Returns a strategy by its name, in any case.

    Raises:
        KeyError: there is no such strategy.
    """
    names = [strategy.value for strategy in AggregationStrategy]
    name = getattr(value, "value", value)
    if isinstance(name, str) and name.lower() in names:
        return AggregationStrategy(name.lower())
    raise KeyError(
        f"aggregation_strategy={value!r} is not known; give one of {', '.join(names)}.{nearest(str(name), names)}"
    )


@dataclass(frozen=True)
class Token:
    """A token of a text and the scores of its labels.

    Attributes:
        word: the token; of an unknown one the text that it stands for.
        scores: (N,), a probability for each label.
        start: first character in the text.
        end: the character after the last.
        index: position in its piece of the text, special tokens counted.
        is_subword: whether it continues the word of the token before.
    """

    word: str
    scores: np.ndarray
    start: int
    end: int
    index: int
    is_subword: bool


def aggregate(
    tokens: Sequence[Token], strategy: AggregationStrategy, id2label: Mapping[int, str], join: Join
) -> list[Record]:
    """Turns tokens into records.

    Args:
        tokens: the tokens of one piece of a text, in order, without special ones.
        strategy: how they are put together.
        id2label: label of each index of the scores.
        join: makes the text of a list of tokens.

    Returns:
        With ``none`` a record ``entity, score, index, word, start, end`` a token, else ``entity_group, score, word,
        start, end`` a group.
    """
    if strategy not in OF_WORDS:
        records = [_token_record(token, id2label) for token in tokens]
    else:
        records = [_word_record(word, strategy, id2label, join) for word in _words(tokens)]
    return records if strategy is AggregationStrategy.NONE else group(records, join)


def _token_record(token: Token, id2label: Mapping[int, str]) -> Record:
    label, score = _best(token.scores, id2label)
    return {
        "entity": label, "score": score, "index": token.index, "word": token.word, "start": token.start,
        "end": token.end,
    }  # fmt: skip


def _words(tokens: Iterable[Token]) -> list[list[Token]]:
    words: list[list[Token]] = []
    for token in tokens:
        if words and token.is_subword:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _word_record(word: list[Token], strategy: AggregationStrategy, id2label: Mapping[int, str], join: Join) -> Record:
    if strategy is AggregationStrategy.FIRST:
        scores = word[0].scores
    elif strategy is AggregationStrategy.MAX:
        scores = max(word, key=lambda token: token.scores.max()).scores
    else:
        scores = np.mean([token.scores for token in word], axis=0)
    label, score = _best(scores, id2label)
    text = join([token.word for token in word])
    return {"entity": label, "score": score, "word": text, "start": word[0].start, "end": word[-1].end}


def _best(scores: np.ndarray, id2label: Mapping[int, str]) -> tuple[str, float]:
    index = int(scores.argmax())
    return id2label[index], float(scores[index])


def group(records: Sequence[Record], join: Join) -> list[Record]:
    """Joins neighbours of the same tag; ``B-`` begins a group of its own.

    Args:
        records: records with ``entity, score, word, start, end``, in order.
        join: makes the text of a list of tokens.

    Returns:
        Records ``entity_group, score, word, start, end``; the score is the average.
    """
    groups: list[list[Record]] = []
    for record in records:
        begins, tag = tag_of(record["entity"])
        if groups and not begins and tag == tag_of(groups[-1][-1]["entity"])[1]:
            groups[-1].append(record)
        else:
            groups.append([record])
    return [
        {
            # The label's text after the first dash, whatever stands before it.
            "entity_group": members[0]["entity"].split("-", 1)[-1],
            "score": float(np.mean([record["score"] for record in members])),
            "word": join([record["word"] for record in members]),
            "start": members[0]["start"],
            "end": members[-1]["end"],
        }
        for members in groups
    ]


def tag_of(label: str) -> tuple[bool, str]:
    """Returns whether a label begins an entity, and its tag: (True, "PER") for ``B-PER``.

    Labels that begin neither with ``B-`` nor with ``I-`` are tags that continue.
    """
    if label.startswith(("B-", "I-")):
        return label.startswith("B-"), label[2:]
    return False, label


def merge_overlapping(records: Iterable[Record]) -> list[Record]:
    """Keeps, of entities that overlap, the longest, and of equally long ones that with the highest score.

    Args:
        records: entities of overlapping pieces of one text, with characters of the whole text.

    Returns:
        The entities that are left, in the order of the text.
    """
    kept: list[Record] = []
    for record in sorted(records, key=lambda record: record["start"]):
        last = kept[-1] if kept else None
        if last is None or not last["start"] <= record["start"] < last["end"]:
            kept.append(record)
        elif _rank(record) > _rank(last):
            kept[-1] = record
    return kept


def _rank(record: Record) -> tuple[int, float]:
    return record["end"] - record["start"], record["score"]
