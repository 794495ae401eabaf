"""Token classification: labels of tokens, words or entities."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxpipe.common.logging import warn_once
from jaxpipe.pipelines.base import ChunkPipeline, Parameters
from jaxpipe.pipelines.chunks import check_positions, checked_count, checked_flag, row_of
from jaxpipe.pipelines.entities import (
    OF_WORDS,
    AggregationStrategy,
    Record,
    Token,
    aggregate,
    merge_overlapping,
    strategy_of,
)
from jaxpipe.pipelines.inputs import described
from jaxpipe.pipelines.offsets import Mapped, check_mapping, mapped, offsets_of
from jaxpipe.pipelines.scores import finite, label_names, logits_of, softmax, unknown_parameter

_LOADER = "AutoModelForTokenClassification"
_PARAMETERS = ("aggregation_strategy", "ignore_labels", "is_split_into_words", "delimiter", "stride", "offset_mapping")
# Known from version 4 of Transformers.
_HINTS = {
    "grouped_entities": " Pass aggregation_strategy='simple' instead.",
    "ignore_subwords": " Pass aggregation_strategy='first' instead.",
}


@dataclass(frozen=True)
class _Piece:
    """What is known of a piece of a text besides its scores; every list has one entry a token."""

    text: str
    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    special: list[int]


class TokenClassificationPipeline(ChunkPipeline):
    """Labels the tokens of a text, such as names of persons and places, or the entities that they make up.

    Construct it with `pipeline`; ``"ner"`` is another name of the task.

    >>> tag = pipeline("ner", aggregation_strategy="simple")
    >>> tag("Sarah lives in New York.")
    [{'entity_group': 'PER', 'score': 0.99..., 'word': 'Sarah', 'start': 0, 'end': 5},
     {'entity_group': 'LOC', 'score': 0.99..., 'word': 'New York', 'start': 15, 'end': 23}]

    ``text[record["start"]:record["end"]]`` is the entity in the text; ``word`` is made of its tokens, which may be
    lower-cased. What goes beyond the tokenizer's ``model_max_length`` is cut, and the log says so once; ``stride``
    reads all of it, in pieces.

    Raises:
        ValueError: there is no tokenizer.
    """

    _load_tokenizer: ClassVar[bool | None] = True
    _forwards_at_once: ClassVar[bool] = True

    def __init__(
        self, model: Any, tokenizer: Any = None, task: str = "token-classification", **parameters: Any
    ) -> None:
        if tokenizer is None:
            raise ValueError("token-classification needs a tokenizer: give tokenizer=.")
        if "offset_mapping" in parameters:
            raise ValueError("offset_mapping= belongs to a text; give it to the call, not to the constructor.")
        super().__init__(model, tokenizer, task, **parameters)

    def __call__(self, inputs: Any, *, offset_mapping: Any = None, **parameters: Any) -> Any:
        """Classifies tokens.

        Args:
            inputs: a text, a list of texts, or a data set, generator or iterator of texts. With
                ``is_split_into_words`` a list of words, or a list, data set, generator or iterator of such lists.
            offset_mapping: (start, end) of every token in the text, special tokens counted, instead of the
                tokenizer's own; with several items a list of such lists, one for each.
            **parameters: ``batch_size`` and the following; also as defaults in the constructor.
                aggregation_strategy: ``"none"`` (default): every token. ``"simple"``: neighbours of one label.
                    ``"first"``, ``"average"``, ``"max"``: words get one label, by their first token, the average of
                    the scores or the highest score; then neighbouring words of one label.
                ignore_labels: labels, or entity groups, that are left out; ``["O"]`` unless given.
                is_split_into_words: the texts are lists of words.
                delimiter: what stood between the words; characters count in the words joined by it.
                stride: read texts of any length, in pieces of ``model_max_length`` tokens, each sharing so many with
                    the next. Needs an aggregation strategy; of entities that overlap the longest is kept.

        Returns:
            A list of records in the order of the text: ``{"entity": str, "score": float, "index": int, "word": str,
            "start": int, "end": int}`` for each token, or ``{"entity_group": str, "score": float, "word": str,
            "start": int, "end": int}`` for each entity. A list of these lists for a list, and for a single list of
            words; an iterator of them for a data set or generator.

        Raises:
            TypeError: an input is no text, or no list of words, or a parameter is unknown.
            ValueError: a parameter is wrong, a text has too many tokens for the model, or a score is NaN.
            KeyError: the aggregation strategy is unknown.
        """
        split = parameters.get("is_split_into_words")
        if split is None:
            split = self._preprocess_params.get("is_split_into_words", False)
        if split and isinstance(inputs, (list, tuple)) and any(isinstance(word, str) for word in inputs):
            inputs = [list(inputs)]
        if offset_mapping is not None:
            inputs = mapped(inputs, offset_mapping)
        return super().__call__(inputs, **parameters)

    def check_item(self, item: Any, where: str) -> Any:
        """Returns a text as it is, and words as a list."""
        if isinstance(item, Mapped):
            return Mapped(self.check_item(item.item, where), item.offsets)
        if isinstance(item, str):
            return item
        if isinstance(item, (list, tuple)):
            for number, word in enumerate(item):
                if not isinstance(word, str):
                    raise TypeError(f"{where}, word {number}, is {described(word)}; expected a text (str).")
            return list(item)
        hint = " For a column of a data set use KeyDataset." if isinstance(item, Mapping) else ""
        raise TypeError(f"{where} is {described(item)}; expected a text (str) or a list of words.{hint}")

    def _sanitize_parameters(
        self,
        aggregation_strategy: Any = None,
        ignore_labels: Sequence[str] | None = None,
        is_split_into_words: bool | None = None,
        delimiter: str | None = None,
        stride: int | None = None,
        **unknown: Any,
    ) -> Parameters:
        for name in unknown:
            raise unknown_parameter(name, self._named, _PARAMETERS, _HINTS.get(name, ""))
        preprocess: dict[str, Any] = {}
        if is_split_into_words is not None:
            preprocess["is_split_into_words"] = checked_flag("is_split_into_words", is_split_into_words)
        if delimiter is not None:
            if not isinstance(delimiter, str):
                raise ValueError(f"delimiter= takes a text, not {delimiter!r}.")
            preprocess["delimiter"] = delimiter
        if stride is not None:
            preprocess["stride"] = self._checked_stride(stride)
        postprocess: dict[str, Any] = {}
        if aggregation_strategy is not None:
            postprocess["aggregation_strategy"] = strategy_of(aggregation_strategy)
        if ignore_labels is not None:
            postprocess["ignore_labels"] = self._checked_labels(ignore_labels)
        return preprocess, {}, postprocess

    def _call_parameters(self, parameters: dict[str, Any]) -> Parameters:
        preprocess, forward, postprocess = super()._call_parameters(parameters)
        strategy = postprocess.get("aggregation_strategy", AggregationStrategy.NONE)
        if "stride" in preprocess and strategy is AggregationStrategy.NONE:
            raise ValueError(
                "stride= reads a text in pieces that overlap, so entities are put together: give "
                "aggregation_strategy='simple', 'first', 'average' or 'max'."
            )
        return preprocess, forward, postprocess

    @property
    def _piece_length(self) -> int:
        """Tokens of a piece of a text that is read with a stride."""
        positions = self._position_limit
        limit = self.tokenizer.model_max_length
        return limit if positions is None else min(limit, positions)

    def _checked_stride(self, stride: Any) -> int:
        stride, limit = checked_count("stride", stride, 0), self._piece_length
        special = self.tokenizer.num_special_tokens_to_add()
        if stride >= limit - special:
            raise ValueError(
                f"stride={stride} must be less than the {limit - special} tokens of text in a piece: the input has up "
                f"to {limit} tokens, {special} of them special."
            )
        return stride

    def _checked_labels(self, labels: Any) -> list[str]:
        if isinstance(labels, (str, bytes)) or not isinstance(labels, (list, tuple, set, frozenset)):
            raise TypeError(f"ignore_labels= takes a list of labels, not {described(labels)}.")
        names = label_names(self.model.config).values()
        known = {"O", *names, *(name.split("-", 1)[-1] for name in names)}
        for label in labels:
            if label not in known:
                warn_once(f"ignore_labels= has {label!r}, which is no label of the model: {', '.join(sorted(known))}.")
        return list(labels)

    def preprocess(
        self,
        item: Any,
        is_split_into_words: bool = False,
        delimiter: str = " ",
        stride: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yields the pieces of a text: the tokenizer's arrays (1, T), and what postprocess needs beside them."""
        given, mapping = (item.item, item.offsets) if isinstance(item, Mapped) else (item, None)
        if is_split_into_words == isinstance(given, str):
            wanted = "a list of words" if is_split_into_words else "a text (str)"
            raise TypeError(
                f"An input is {described(given)}; with is_split_into_words={is_split_into_words} it must be {wanted}."
            )
        text = given if isinstance(given, str) else delimiter.join(given)
        encodings = self._encodings(given, is_split_into_words, stride)
        pieces = encodings if stride is not None else encodings[:1]
        if mapping is not None:
            check_mapping(mapping, [len(encoding.ids) for encoding in pieces], cut=len(pieces) < len(encodings))
        for encoding in pieces:
            if not encoding.ids:
                raise ValueError(f"The text {text!r} has no tokens, so there is nothing to label.")
            check_positions(len(encoding.ids), self._position_limit, "set tokenizer.model_max_length, or pass stride=")
            offsets = encoding.offsets if mapping is None else mapping
            if is_split_into_words:
                offsets = offsets_of(encoding, offsets, given, delimiter)
            tokens = self.tokenizer.convert_ids_to_tokens(encoding.ids)
            piece = _Piece(text, encoding.ids, tokens, offsets, encoding.special_tokens_mask)
            yield {**row_of(encoding, self.tokenizer.model_input_names), "piece": piece}

    def _encodings(self, given: str | list[str], words: bool, stride: int | None) -> list[Any]:
        """Returns the ``tokenizers.Encoding`` of every piece of a text, also of those that are not read."""
        encoded = self.tokenizer(
            given,
            truncation=True,
            max_length=None if stride is None else self._length_given,
            stride=stride or 0,
            is_split_into_words=words,
            return_overflowing_tokens=True,
            verbose=False,
        )
        if stride is None and len(encoded.encodings) > 1:
            warn_once(
                f"A text was cut to the tokenizer's model_max_length of {self.tokenizer.model_max_length} tokens; "
                "pass stride= and an aggregation_strategy to read all of it."
            )
        return encoded.encodings

    @property
    def _length_given(self) -> int | None:
        """`_piece_length` where the tokenizer does not say as much itself."""
        length = self._piece_length
        return None if length == self.tokenizer.model_max_length else length

    def _forward(self, model_inputs: dict[str, Any], **_: Any) -> dict[str, Any]:
        pieces = model_inputs.pop("piece")
        logits = logits_of(self.model, self.model(**model_inputs), None, _LOADER)
        labels = len(label_names(self.model.config))
        if logits.shape[-1] != labels:
            raise ValueError(f"The model scores {logits.shape[-1]} labels, but id2label of its config names {labels}.")
        return {"logits": logits, "piece": pieces}

    def postprocess(
        self,
        model_outputs: list[Mapping[str, Any]],
        aggregation_strategy: AggregationStrategy = AggregationStrategy.NONE,
        ignore_labels: Sequence[str] = ("O",),
    ) -> list[Record]:
        """Returns the records of a text from the logits (1, T, N) of its pieces."""
        id2label, join = label_names(self.model.config), self.tokenizer.convert_tokens_to_string
        records: list[Record] = []
        for output in model_outputs:
            scores = finite(softmax(output["logits"][0]), "a label")  # (T, N)
            tokens = self._tokens(output["piece"], scores, aggregation_strategy)
            made = aggregate(tokens, aggregation_strategy, id2label, join)
            key = "entity" if aggregation_strategy is AggregationStrategy.NONE else "entity_group"
            records += [record for record in made if record[key] not in ignore_labels]
        return merge_overlapping(records) if len(model_outputs) > 1 else records

    def _tokens(self, piece: _Piece, scores: np.ndarray, strategy: AggregationStrategy) -> list[Token]:
        """Returns the tokens of a piece, without special ones."""
        # Tokens of WordPiece tell by their prefix that they continue a word; others leave it to the space before them.
        marked = bool(getattr(self.tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None))
        if strategy in OF_WORDS and not marked:
            warn_once(
                f"The tokenizer does not mark the beginning of words; for aggregation_strategy={strategy.value!r} they "
                "are told apart by spaces."
            )
        tokens = []
        for index, (start, end) in enumerate(piece.offsets):
            if piece.special[index]:
                continue
            word, written = piece.tokens[index], piece.text[start:end]
            if piece.ids[index] == self.tokenizer.unk_token_id:
                word, continues = written, False
            elif marked:
                continues = len(word) != len(written)
            else:
                continues = start > 0 and " " not in piece.text[start - 1 : start + 1]
            tokens.append(Token(word, scores[index], start, end, index, continues))
        return tokens
