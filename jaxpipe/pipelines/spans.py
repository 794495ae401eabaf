"""From scores of tokens as the first and the last of an answer to answers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpipe.pipelines.scores import finite, softmax

Record = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """A question with a piece of its context, without scores.

    Attributes:
        context: the whole context.
        encoding: the ``tokenizers.Encoding`` of the pair.
        sequence: which text of the pair the context is, 0 or 1.
        candidates: (T,) bool, the tokens of the context.
        null: position of the token that stands for "no answer", or None.
    """

    context: str
    encoding: Any
    sequence: int
    candidates: np.ndarray
    null: int | None


def piece_of(context: str, encoding: Any, sequence: int, cls_token_id: int | None) -> Piece:
    """Returns a piece of a context.

    Args:
        context: the whole context.
        encoding: the ``tokenizers.Encoding`` of the pair.
        sequence: which text of the pair the context is, 0 or 1.
        cls_token_id: id of the token that stands for "no answer"; None where the tokenizer has none.
    """
    candidates = np.array([index == sequence for index in encoding.sequence_ids], bool)
    null = encoding.ids.index(cls_token_id) if cls_token_id in encoding.ids else None
    return Piece(context, encoding, sequence, candidates, null)


def decode_spans(
    start: np.ndarray, end: np.ndarray, top_k: int, max_answer_len: int, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the likeliest answers.

    Args:
        start: (T,) probabilities of a token as the first of the answer.
        end: (T,) probabilities of a token as its last.
        top_k: the most answers.
        max_answer_len: the most tokens of an answer.
        candidates: (T,) bool, the tokens that an answer may begin or end with.

    Returns:
        Positions of the first tokens, of the last tokens, and scores, which are products of the two probabilities; the
        highest score first, of equal ones the earlier answer, then the shorter. Fewer than ``top_k`` where there are
        no more spans.
    """
    length = len(start)
    firsts = np.arange(length)[:, None]
    lasts = firsts + np.arange(min(max_answer_len, length))
    inside = np.minimum(lasts, length - 1)
    possible = (lasts < length) & candidates[:, None] & candidates[inside]
    scores = np.where(possible, start[:, None] * end[inside], -1.0).ravel()
    order = np.argsort(-scores, kind="stable")[: min(top_k, int(possible.sum()))]
    firsts, offsets = np.divmod(order, lasts.shape[1])
    return firsts, firsts + offsets, scores[order]


def answers_of(
    pieces: list[tuple[Piece, np.ndarray, np.ndarray]],
    top_k: int,
    max_answer_len: int,
    *,
    align_to_words: bool,
    handle_impossible_answer: bool,
) -> list[Record]:
    """Finds the likeliest answers in all pieces of a context.

    The scores of equal answers, in upper or lower case, are summed: within a piece, where they come from several spans
    of one word, and over pieces. The place is that of the first.

    Args:
        pieces: each with the logits (T,) of its tokens as first and as last of the answer.
        top_k: the most answers.
        max_answer_len: the most tokens of an answer.
        align_to_words: let answers begin and end with words.
        handle_impossible_answer: let "no answer" be one, an empty text whose score is the lowest in any piece.

    Returns:
        Records ``score, start, end, answer``, the highest score first.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    # Spans that lie in the same words fall together, so more of them are looked at.
    spans = top_k * 2 + 10 if align_to_words else top_k
    found: dict[str, Record] = {}
    impossible = np.inf
    for piece, start_logits, end_logits in pieces:
        start, end = _probabilities(start_logits, piece), _probabilities(end_logits, piece)
        null = 0.0 if piece.null is None else float(start[piece.null] * end[piece.null])
        impossible = min(impossible, null)
        firsts, lasts, scores = decode_spans(start, end, spans, max_answer_len, piece.candidates)
        for (begin, stop), score in zip(_places(piece, firsts, lasts, align_to_words), scores.tolist(), strict=True):
            answer = piece.context[begin:stop]
            record = found.setdefault(answer.lower(), {"score": 0.0, "start": begin, "end": stop, "answer": answer})
            record["score"] += score
    answers = list(found.values())
    if handle_impossible_answer:
        answers.append({"score": impossible, "start": 0, "end": 0, "answer": ""})
    return sorted(answers, key=lambda answer: answer["score"], reverse=True)[:top_k]


def _probabilities(logits: np.ndarray, piece: Piece) -> np.ndarray:
    """Returns probabilities (T,) over the context and the token for "no answer"; 0 elsewhere."""
    kept = piece.candidates.copy()
    if piece.null is not None:
        kept[piece.null] = True
    return finite(softmax(np.where(kept, np.asarray(logits, np.float64), -np.inf)), "a place in the context")


def _places(piece: Piece, firsts: np.ndarray, lasts: np.ndarray, align_to_words: bool) -> Iterator[tuple[int, int]]:
    """Yields the characters of spans of tokens, or of the words that they lie in."""
    encoding = piece.encoding
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        begin, stop = encoding.offsets[first][0], encoding.offsets[last][1]
        if align_to_words:
            words = encoding.token_to_word(first), encoding.token_to_word(last)
            ends = [None if word is None else encoding.word_to_chars(word, piece.sequence) for word in words]
            # Some tokenizers know no words.
            if ends[0] is not None and ends[1] is not None:
                begin, stop = ends[0][0], ends[1][1]
        yield begin, stop
