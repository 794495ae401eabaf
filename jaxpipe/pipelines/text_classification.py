"""Text classification: labels of a text or a pair of texts."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from jaxpipe.common.errors import nearest
from jaxpipe.pipelines.base import Parameters, Pipeline
from jaxpipe.pipelines.encode import check_tokenizer_arguments, encode, encode_many
from jaxpipe.pipelines.inputs import described
from jaxpipe.pipelines.scores import (
    ClassificationFunction,
    apply,
    checked_top_k,
    chosen_function,
    finite,
    label_names,
    largest,
    logits_of,
)

_LOADER = "AutoModelForSequenceClassification"
_PARAMETERS = ("top_k", "function_to_apply")
_PAIR = ("text", "text_pair")
# Known from version 4 of Transformers.
_HINTS = {"return_all_scores": "top_k=None"}
# Transformers' own default, which stands for "not given", as None stands for all labels.
_NOT_GIVEN = ""


class TextClassificationPipeline(Pipeline):
    """Gives the likeliest label of a text or of a pair of texts, or the scores of all labels.

    Construct it with `pipeline`; ``"sentiment-analysis"`` is another name of the task.

    >>> classify = pipeline("text-classification")
    >>> classify("What a lovely film!")
    [{'label': 'POSITIVE', 'score': ...}]
    >>> classify({"text": "What a film!", "text_pair": "I left early."}, top_k=None)
    [{'label': ..., 'score': ...}, {'label': ..., 'score': ...}]

    Logits become scores by softmax; by the logistic function where config.json has
    ``"problem_type": "multi_label_classification"`` or the model has one label; and stay as they are where it has
    ``"problem_type": "regression"``. Texts are not cut unless ``truncation`` is given: what is longer than the model's
    positions is an error.

    Raises:
        ValueError: there is no tokenizer.
    """

    _load_tokenizer: ClassVar[bool | None] = True
    _forwards_at_once: ClassVar[bool] = True

    def __init__(self, model: Any, tokenizer: Any = None, task: str = "text-classification", **parameters: Any) -> None:
        if tokenizer is None:
            raise ValueError("text-classification needs a tokenizer: give tokenizer=.")
        super().__init__(model, tokenizer, task, **parameters)

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        """Classifies.

        Args:
            inputs: a text; a pair ``{"text": str, "text_pair": str}``; a list of these, where a pair may also be
                ``[[text, text_pair]]``; or a data set, generator or iterator of them.
            **parameters: ``batch_size`` and the following; also as defaults in the constructor.
                top_k: number of labels; None for all. Not given: the likeliest, outside a list.
                function_to_apply: from logits to scores: ``"sigmoid"``, ``"softmax"``, ``"none"``, or ``"default"``
                    for the model's own.
                truncation, max_length, padding and all other arguments of the tokenizer.

        Returns:
            Without ``top_k`` a record ``{"label": str, "score": float}`` for each item: for a text in a list of one,
            for a pair bare, for a list a list of records. With ``top_k`` a list of records for each item, the highest
            score first. An iterator of these for a data set or generator.

        Raises:
            TypeError: an input is neither text nor pair, or a parameter is unknown.
            ValueError: a parameter is wrong, a text has no tokens or too many, or a score is NaN.
        """
        result = super().__call__(inputs, **parameters)
        # One text gives a list, as it always did in Transformers.
        return [result] if isinstance(inputs, str) and isinstance(result, dict) else result

    def check_item(self, item: Any, where: str) -> Any:
        """Returns a text as it is, and a pair as a mapping with ``text`` and ``text_pair``."""
        if isinstance(item, str):
            return item
        if isinstance(item, Mapping):
            return _checked_pair(item, where)
        if isinstance(item, (list, tuple)):
            inner = item[0] if len(item) == 1 else None
            if isinstance(inner, (list, tuple)) and len(inner) == 2:
                return _checked_pair(dict(zip(_PAIR, inner, strict=True)), where)
            raise ValueError(
                f"{where} is {described(item)}; a pair of texts is a mapping {{'text': ..., 'text_pair': ...}}."
            )
        raise TypeError(
            f"{where} is {described(item)}; expected a text (str) or a mapping {{'text': ..., 'text_pair': ...}}."
        )

    def _sanitize_parameters(
        self, function_to_apply: Any = None, top_k: Any = _NOT_GIVEN, **tokenizer_arguments: Any
    ) -> Parameters:
        check_tokenizer_arguments(self.tokenizer, tokenizer_arguments, self._named, _PARAMETERS, _HINTS)
        postprocess: dict[str, Any] = {}
        if function_to_apply is not None:
            postprocess["function_to_apply"] = chosen_function(function_to_apply)
        if not (isinstance(top_k, str) and top_k == _NOT_GIVEN):
            postprocess["top_k"] = None if top_k is None else checked_top_k(top_k)
        return tokenizer_arguments, {}, postprocess

    def preprocess(self, item: str | Mapping[str, Any], **tokenizer_arguments: Any) -> dict[str, Any]:
        """Returns the tokenizer's arrays (1, T)."""
        text, text_pair = (item, None) if isinstance(item, str) else (item["text"], item.get("text_pair"))
        return dict(encode(self.tokenizer, text, text_pair, limit=self._position_limit, **tokenizer_arguments))

    def preprocess_batch(self, items: list[Any], **tokenizer_arguments: Any) -> list[Any]:
        """Returns the tokenizer's arrays (1, T) of every item."""
        parts = [(item, None) if isinstance(item, str) else (item["text"], item.get("text_pair")) for item in items]
        if not all(isinstance(text, str) and isinstance(pair, str | None) for text, pair in parts):
            return super().preprocess_batch(items, **tokenizer_arguments)
        rows: list[Any] = [None] * len(parts)
        for paired in (False, True):
            chosen = [number for number, (_, pair) in enumerate(parts) if bool(pair) == paired]
            texts, pairs = [parts[number][0] for number in chosen], [parts[number][1] or "" for number in chosen]
            if chosen:
                made = encode_many(
                    self.tokenizer, texts, pairs if paired else None, limit=self._position_limit, **tokenizer_arguments
                )
                for number, row in zip(chosen, made, strict=True):
                    rows[number] = row
        return rows

    def _forward(self, model_inputs: dict[str, Any], **_: Any) -> dict[str, Any]:
        outputs = self.model(**model_inputs)
        # Nothing else of the outputs is copied to the host.
        return {"logits": logits_of(self.model, outputs, len(label_names(self.model.config)), _LOADER)}

    def postprocess(
        self,
        model_outputs: Mapping[str, Any],
        function_to_apply: ClassificationFunction | None = None,
        top_k: int | str | None = _NOT_GIVEN,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Returns the likeliest label's record, or with ``top_k`` a list of records, the highest score first."""
        logits = np.asarray(model_outputs["logits"][0], np.float32)  # (labels,)
        scores = finite(apply(function_to_apply or default_function(self.model.config), logits), "a label")
        labels = label_names(self.model.config)
        count = 1 if isinstance(top_k, str) else len(scores) if top_k is None else min(top_k, len(scores))
        records = [{"label": labels[int(index)], "score": float(scores[index])} for index in largest(scores, count)]
        return records[0] if isinstance(top_k, str) else records


def default_function(config: Any) -> ClassificationFunction:
    """Returns the function that a model's config asks for by ``problem_type`` and the number of labels."""
    problem = getattr(config, "problem_type", None)
    if problem == "regression":
        return ClassificationFunction.NONE
    if problem == "multi_label_classification" or len(label_names(config)) == 1:
        return ClassificationFunction.SIGMOID
    return ClassificationFunction.SOFTMAX


def _checked_pair(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns a mapping with ``text`` and, where there is one, ``text_pair``."""
    for key in item:
        if key not in _PAIR:
            hint = nearest(str(key), _PAIR)
            raise ValueError(
                f"{where} has the key {key!r}; a mapping has 'text' and may have 'text_pair'.{hint} For columns of a "
                "data set use KeyDataset or KeyPairDataset."
            )
    if "text" not in item:
        raise ValueError(f"{where} lacks 'text'; its keys are {sorted(map(str, item))}.")
    for key, value in item.items():
        words = isinstance(value, (list, tuple)) and bool(value) and all(isinstance(word, str) for word in value)
        if not (isinstance(value, str) or words or (value is None and key == "text_pair")):
            raise TypeError(f"{where}[{key!r}] is {described(value)}; expected a text (str).")
    return {key: list(value) if isinstance(value, tuple) else value for key, value in item.items()}
