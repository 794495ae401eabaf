"""Extractive question answering: the span of a context that answers."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from jaxpipe.common.errors import nearest
from jaxpipe.common.logging import info_once, warn_once
from jaxpipe.pipelines.base import ChunkPipeline, Parameters
from jaxpipe.pipelines.chunks import check_positions, checked_count, checked_flag, row_of
from jaxpipe.pipelines.inputs import described
from jaxpipe.pipelines.scores import checked_top_k, unknown_parameter
from jaxpipe.pipelines.spans import Piece, Record, answers_of, piece_of

_KEYS = ("question", "context")
_PARAMETERS = (
    "top_k", "doc_stride", "max_answer_len", "max_seq_len", "max_question_len", "handle_impossible_answer",
    "align_to_words", "padding",
)  # fmt: skip
_PADDING = (True, False, "longest", "max_length", "do_not_pad")
# Tokens of a question with a piece of its context, and tokens that pieces share, unless given.
_MAX_SEQ_LEN = 384
_DOC_STRIDE = 128


class QuestionAnsweringPipeline(ChunkPipeline):
    """Finds the answer to a question in a text.

    Construct it with `pipeline`.

    >>> answer = pipeline("question-answering")
    >>> answer(question="Where do I live?", context="My name is Wolfgang and I live in Berlin.")
    {'score': 0.9..., 'start': 34, 'end': 40, 'answer': 'Berlin'}

    ``context[start:end]`` is the answer. Contexts of any length are read in pieces of ``max_seq_len`` tokens that
    overlap by ``doc_stride`` tokens.

    A score is the probability of the first token times that of the last, within its piece. Equal answers are given
    once, with the sum of their scores, which over several pieces can be more than 1.

    Raises:
        ValueError: there is no tokenizer.
    """

    _load_tokenizer: ClassVar[bool | None] = True
    _forwards_at_once: ClassVar[bool] = True

    def __init__(self, model: Any, tokenizer: Any = None, task: str = "question-answering", **parameters: Any) -> None:
        if tokenizer is None:
            raise ValueError("question-answering needs a tokenizer: give tokenizer=.")
        super().__init__(model, tokenizer, task, **parameters)

    def __call__(self, *inputs: Any, **parameters: Any) -> Any:
        """Answers questions.

        Args:
            *inputs: a mapping ``{"question": str, "context": str}``, whose other keys are ignored; a list of them, or
                several of them; a mapping of lists; a data set, generator or iterator of mappings; or question and
                context, as below.
            **parameters: ``batch_size`` and the following; all but the first two also as defaults in the constructor.
                question: a question, or a list of them.
                context: the context of all questions, or a list with one for each.
                top_k: the most answers to a question (1).
                doc_stride: tokens that a piece of the context shares with the next (128, but no more than half of
                    ``max_seq_len``, nor of what the question leaves where it leaves less than that).
                max_answer_len: the most tokens of an answer (15).
                max_seq_len: the most tokens of a question with a piece of its context (384, or the tokenizer's or
                    the model's limit where it is less).
                handle_impossible_answer: let an empty answer be one (False).
                align_to_words: let answers begin and end with words (True).
                padding: of the tokenizer (``"do_not_pad"``); it changes no answer.
                max_question_len: accepted without effect: questions are not cut.

        Returns:
            ``{"score": float, "start": int, "end": int, "answer": str}`` for a question; with ``top_k`` above 1 a list
            of these, the highest score first, unless there is only one. A list of these for several questions; an
            iterator of them for a data set or generator. A list with one question gives what the question alone does.

        Raises:
            TypeError: an input is no mapping, a question or context is no text, or a parameter is unknown.
            KeyError: a mapping lacks a key.
            ValueError: a question or context is None or empty, their numbers differ, a question leaves no room for
                the context, a parameter is wrong, or a score is NaN.
        """
        given = _inputs(inputs, parameters)
        results = super().__call__(given, **parameters)
        return results[0] if isinstance(given, (list, tuple)) and len(given) == 1 else results

    @staticmethod
    def create_sample(question: str | list[str], context: str | list[str]) -> Any:
        """Returns the input of a question and its context: a mapping, or a list of them for lists."""
        return _pairs(question, context)

    def check_item(self, item: Any, where: str) -> dict[str, str]:
        """Returns a mapping with ``question`` and ``context``."""
        # The examples of Transformers' SQuAD reader.
        if hasattr(item, "question_text") and hasattr(item, "context_text"):
            item = {"question": item.question_text, "context": item.context_text}
        if not isinstance(item, Mapping):
            raise TypeError(f"{where} is {described(item)}; expected a mapping {{'question': ..., 'context': ...}}.")
        for key in _KEYS:
            if key not in item:
                raise KeyError(
                    f"{where} lacks {key!r}; its keys are {sorted(map(str, item))}.{nearest(key, map(str, item))}"
                )
            value = item[key]
            if value is None:
                raise ValueError(f"{where}: the {key} is None; expected a text (str).")
            if not isinstance(value, str):
                raise TypeError(f"{where}: the {key} is {described(value)}; expected a text (str).")
            if not value.strip():
                raise ValueError(f"{where}: the {key} is empty ({value!r}).")
        return {key: item[key] for key in _KEYS}

    def _sanitize_parameters(
        self,
        padding: bool | str | None = None,
        topk: int | None = None,
        top_k: int | None = None,
        doc_stride: int | None = None,
        max_answer_len: int | None = None,
        max_seq_len: int | None = None,
        max_question_len: int | None = None,
        handle_impossible_answer: bool | None = None,
        align_to_words: bool | None = None,
        **unknown: Any,
    ) -> Parameters:
        for name in unknown:
            raise unknown_parameter(name, self._named, (*_KEYS, *_PARAMETERS))
        if topk is not None:
            warn_once("topk= is the old name of top_k=.")
            top_k = topk if top_k is None else top_k
        preprocess: dict[str, Any] = {}
        if padding is not None:
            if not isinstance(padding, (bool, str)) or padding not in _PADDING:
                raise ValueError(f"padding={padding!r} is not known; give one of {', '.join(map(repr, _PADDING))}.")
            preprocess["padding"] = padding
        if doc_stride is not None:
            preprocess["doc_stride"] = checked_count("doc_stride", doc_stride, 0)
        if max_seq_len is not None:
            preprocess["max_seq_len"] = checked_count("max_seq_len", max_seq_len, 1)
        if max_question_len is not None:
            checked_count("max_question_len", max_question_len, 1)
            info_once("max_question_len= has no effect: questions are not cut.")
        postprocess: dict[str, Any] = {}
        if top_k is not None:
            postprocess["top_k"] = checked_top_k(top_k)
        if max_answer_len is not None:
            postprocess["max_answer_len"] = checked_count("max_answer_len", max_answer_len, 1)
        for name, flag in (
            ("handle_impossible_answer", handle_impossible_answer),
            ("align_to_words", align_to_words),
        ):
            if flag is not None:
                postprocess[name] = checked_flag(name, flag)
        return preprocess, {}, postprocess

    def _call_parameters(self, parameters: dict[str, Any]) -> Parameters:
        preprocess, forward, postprocess = super()._call_parameters(parameters)
        length, stride = self._piece_length(preprocess.get("max_seq_len")), preprocess.get("doc_stride")
        if stride is not None and stride > length:
            raise ValueError(f"doc_stride={stride} is larger than max_seq_len={length}.")
        return preprocess, forward, postprocess

    def _piece_length(self, max_seq_len: int | None) -> int:
        """Tokens of a question with a piece of its context."""
        if max_seq_len is not None:
            return max_seq_len
        limits = (self.tokenizer.model_max_length, _MAX_SEQ_LEN, self._position_limit)
        return min(limit for limit in limits if limit is not None)

    def preprocess(
        self,
        item: Mapping[str, str],
        padding: bool | str = "do_not_pad",
        doc_stride: int | None = None,
        max_seq_len: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yields a question with each piece of its context: arrays (1, T), and what postprocess needs beside them."""
        question, context = item["question"], item["context"]
        length = self._piece_length(max_seq_len)
        # Tokenizers that pad on the left are those of models which read the context first.
        sequence = 1 if self.tokenizer.padding_side == "right" else 0
        encoded = self.tokenizer(
            *((question, context) if sequence else (context, question)),
            padding=padding,
            truncation="only_second" if sequence else "only_first",
            max_length=length,
            stride=self._stride(question, context, length, doc_stride),
            return_overflowing_tokens=True,
            verbose=False,
        )
        for encoding in encoded.encodings:
            advice = f"give max_seq_len={self._position_limit} or less"
            check_positions(len(encoding.ids), self._position_limit, advice)
            piece = piece_of(context, encoding, sequence, self.tokenizer.cls_token_id)
            if not piece.candidates.any():
                raise ValueError(f"The context {described(context)} has no tokens, so there is no answer in it.")
            yield {**row_of(encoding, self.tokenizer.model_input_names), "piece": piece}

    def _stride(self, question: str, context: str, length: int, doc_stride: int | None) -> int:
        """Returns the tokens that pieces share, given what the question leaves of a piece.

        Raises:
            ValueError: the question leaves no room, or not enough for ``doc_stride``.
        """
        taken = self._count(question)
        room = length - taken - self.tokenizer.num_special_tokens_to_add(pair=True)
        if room < 1:
            raise ValueError(
                f"The question {described(question)} has {taken} tokens, which leaves no room for the context in "
                f"max_seq_len={length}; shorten it or give a larger max_seq_len."
            )
        if doc_stride is None:
            stride = min(_DOC_STRIDE, length // 2)
            return stride if stride < room else room // 2
        # A context of one piece needs no stride.
        if doc_stride >= room and self._count(context) > room:
            raise ValueError(
                f"doc_stride={doc_stride} must be less than the {room} tokens that the question {described(question)} "
                f"leaves for a piece of the context in max_seq_len={length}."
            )
        return min(doc_stride, room - 1)

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _forward(self, model_inputs: dict[str, Any], **_: Any) -> dict[str, Any]:
        pieces = model_inputs.pop("piece")
        outputs = self.model(**model_inputs)
        if "start_logits" not in outputs or "end_logits" not in outputs:
            name = getattr(self.model, "class_name", type(self.model).__name__)
            raise TypeError(f"{name} gives no start_logits; load the model with AutoModelForQuestionAnswering.")
        return {"start_logits": outputs["start_logits"], "end_logits": outputs["end_logits"], "piece": pieces}

    def postprocess(
        self,
        model_outputs: list[Mapping[str, Any]],
        top_k: int = 1,
        handle_impossible_answer: bool = False,
        max_answer_len: int = 15,
        align_to_words: bool = True,
    ) -> Record | list[Record]:
        """Returns the answers of a question from the logits (1, T) of the pieces of its context."""
        pieces: list[tuple[Piece, np.ndarray, np.ndarray]] = [
            (output["piece"], output["start_logits"][0], output["end_logits"][0]) for output in model_outputs
        ]
        answers = answers_of(
            pieces,
            top_k,
            max_answer_len,
            align_to_words=align_to_words,
            handle_impossible_answer=handle_impossible_answer,
        )
        return answers[0] if len(answers) == 1 else answers


def _inputs(positional: tuple[Any, ...], parameters: dict[str, Any]) -> Any:
    """Takes the inputs out of a call's arguments; question and context become mappings."""
    named = {name: parameters.pop(name) for name in (*_KEYS, "data", "X") if name in parameters}
    if len(positional) + len(named) == 0:
        raise ValueError("There is nothing to answer: give question= and context=.")
    if positional and named:
        raise ValueError(f"The inputs are given twice: by position and as {'= and '.join(named)}=; give one.")
    if len(positional) == 2 and not any(isinstance(item, Mapping) for item in positional):
        return _pairs(*positional)
    if len(positional) > 1:
        return list(positional)
    if positional or named.keys() in ({"data"}, {"X"}):
        inputs = positional[0] if positional else next(iter(named.values()))
        if isinstance(inputs, Mapping) and isinstance(inputs.get("question"), (list, tuple)) and "context" in inputs:
            return _pairs(inputs["question"], inputs["context"])
        return inputs
    if named.keys() != set(_KEYS):
        raise ValueError(f"question= and context= go together; only {'= and '.join(named)}= is given.")
    return _pairs(named["question"], named["context"])


def _pairs(question: Any, context: Any) -> Any:
    """Returns a mapping for a question, a list of mappings for a list.

    Raises:
        ValueError: the lists have different lengths, or several contexts stand beside one question.
    """
    if not isinstance(question, (list, tuple)):
        if isinstance(context, (list, tuple)):
            raise ValueError(
                f"There is one question, {described(question)}, for {len(context)} contexts; give a list of questions."
            )
        return {"question": question, "context": context}
    if not isinstance(context, (list, tuple)):
        context = [context] * len(question)
    if len(question) != len(context):
        raise ValueError(f"There are {len(question)} questions and {len(context)} contexts; give one context for each.")
    return [{"question": one, "context": other} for one, other in zip(question, context, strict=True)]
