"""Text ranking: texts in the order of a cross-encoder's scores for a query."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxpipe.common.errors import ConfigError, nearest
from jaxpipe.pipelines.base import ChunkPipeline, Parameters
from jaxpipe.pipelines.chunks import checked_flag
from jaxpipe.pipelines.encode import encode_many
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
    unknown_parameter,
)
from jaxpipe.tokenization.padding import LARGEST_LENGTH

_LOADER = "AutoModelForSequenceClassification"
_PARAMETERS = ("query", "documents", "top_k", "return_documents", "function_to_apply", "truncation", "max_length")
_KEYS = ("query", "documents")
# Names that other rerankers give to the same thing.
_HINTS = {
    "top_n": "top_k=",
    "texts": "documents=",
    "return_text": "return_documents=",
    "raw_scores": "function_to_apply='none'",
    "activation_fn": "function_to_apply=",
    "truncate": "truncation=",
}
# The file in which sentence-transformers keeps settings beside config.json, and the key in it and in config.json.
_SETTINGS, _ACTIVATION = "config_sentence_transformers.json", "activation_fn"


class TextRankingPipeline(ChunkPipeline):
    """Puts documents in the order in which a cross-encoder finds them relevant to a query.

    Construct it with `pipeline`. The model scores a query and a document together, so it has one label; reranking
    models of sentence-transformers and of text-embeddings-inference are such.

    >>> rank = pipeline("text-ranking", model="cross-encoder/ms-marco-MiniLM-L6-v2")
    >>> rank(query="How many people live in Berlin?", documents=["Berlin has 3.5 million people.", "I like tea."])
    [{'index': 0, 'score': ..., 'document': 'Berlin has 3.5 million people.'},
     {'index': 1, 'score': ..., 'document': 'I like tea.'}]

    The score is the model's logit under the function that the checkpoint names: ``activation_fn`` of
    ``sentence_transformers``, or ``sbert_ce_default_activation_function``, in config.json, or ``activation_fn`` in
    config_sentence_transformers.json, which is the logistic function (``Sigmoid``) or none (``Identity``). Where it
    names none it is the logistic function.

    A pair that is longer than the model takes loses tokens from the longer of the two texts, until it fits.

    Raises:
        ValueError: there is no tokenizer, or the model has more than one label.
    """

    _load_tokenizer: ClassVar[bool | None] = True
    _forwards_at_once: ClassVar[bool] = True

    def __init__(self, model: Any, tokenizer: Any = None, task: str = "text-ranking", **parameters: Any) -> None:
        if tokenizer is None:
            raise ValueError("text-ranking needs a tokenizer: give tokenizer=.")
        labels = label_names(model.config)
        if len(labels) != 1:
            raise ValueError(
                f"text-ranking needs a model with one score for a query and a document; this one has {len(labels)} "
                f"labels, {list(labels.values())[:5]}. For their scores use text-classification on pairs "
                "{'text': query, 'text_pair': document}."
            )
        self._activation = _config_activation(model.config)
        self._settings: dict[str, Any] | None = None
        checkpoint = getattr(model, "checkpoint", None)
        if self._activation is None and checkpoint is not None:
            self._settings = checkpoint.read_json(_SETTINGS)
            self._activation = (self._settings or {}).get(_ACTIVATION)
        super().__init__(model, tokenizer, task, **parameters)

    def __call__(
        self, inputs: Any = None, documents: Sequence[str] | None = None, *, query: str | None = None, **parameters: Any
    ) -> Any:
        """Ranks documents.

        Args:
            inputs: a query (str), beside ``documents``; a mapping ``{"query": str, "documents": [str, ...]}``; a list
                of such mappings; or a data set, generator or iterator of them.
            documents: the texts to rank, at least one; an empty text is scored like any other.
            query: the query, where it is not ``inputs``.
            **parameters: ``batch_size``, the number of pairs that run at once, and the following; also as defaults in
                the constructor.
                top_k: number of documents in the result; None for all.
                return_documents: whether records hold the document's text (True).
                function_to_apply: from logit to score: ``"sigmoid"``, ``"none"``, or ``"default"`` for the model's
                    own.
                truncation: of the tokenizer (``"longest_first"``); ``"only_second"`` cuts only the document; with
                    False a pair that is too long is an error.
                max_length: tokens that a pair is cut to; None for as many as tokenizer and model take.

        Returns:
            Records ``{"index": int, "score": float, "document": str}`` of a query's documents, the highest score
            first, of equal ones the first in ``documents``; ``index`` is the place in ``documents``. A list of such
            lists for a list of mappings, an iterator of them for a data set or generator.

        Raises:
            TypeError: an input is of the wrong kind, or a parameter is unknown.
            ValueError: the query is empty, there are no documents, a parameter is wrong, or a score is NaN.
        """
        if isinstance(inputs, str):
            if query is not None:
                raise TypeError("The query is given twice: as the first argument and as query=; give one.")
            inputs, query = None, inputs
        if inputs is None:
            inputs = {key: value for key, value in zip(_KEYS, (query, documents), strict=True) if value is not None}
            if not inputs:
                raise TypeError("There is nothing to rank: give query= and documents=, or mappings with both.")
        elif query is not None or documents is not None:
            raise TypeError("query= and documents= do not go with other inputs; give one or the other.")
        return super().__call__(inputs, **parameters)

    def check_item(self, item: Any, where: str) -> dict[str, Any]:
        """Returns a mapping with the query and the list of documents."""
        if not isinstance(item, Mapping):
            raise TypeError(
                f"{where} is {described(item)}; expected a mapping {{'query': str, 'documents': [str, ...]}}."
            )
        for key in item:
            if key not in _KEYS:
                hint = f" Its name here is {_HINTS[key].strip('=')!r}." if key in _HINTS else nearest(str(key), _KEYS)
                raise ValueError(f"{where} has the key {key!r}; a mapping has 'query' and 'documents'.{hint}")
        missing = [key for key in _KEYS if key not in item]
        if missing:
            raise ValueError(f"{where} lacks {missing[0]!r}; its keys are {sorted(map(str, item))}.")
        query, documents = item["query"], item["documents"]
        if not isinstance(query, str):
            raise TypeError(f"{where}: the query is {described(query)}; expected a text (str).")
        if not query.strip():
            raise ValueError(f"{where}: the query is empty.")
        if not isinstance(documents, (list, tuple)):
            raise TypeError(f"{where}: documents is {described(documents)}; expected a list of texts (str).")
        if not documents:
            raise ValueError(f"{where}: documents is empty; give at least one text.")
        for number, document in enumerate(documents):
            if not isinstance(document, str):
                raise TypeError(f"{where}: documents[{number}] is {described(document)}; expected a text (str).")
        return {"query": query, "documents": list(documents)}

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        return_documents: bool | None = None,
        function_to_apply: Any = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        **unknown: Any,
    ) -> Parameters:
        for name in unknown:
            hint = f" Its name here is {_HINTS[name]}." if name in _HINTS else ""
            raise unknown_parameter(name, self._named, _PARAMETERS, hint)
        given = {"truncation": truncation, "max_length": max_length}
        preprocess = {name: value for name, value in given.items() if value is not None}
        postprocess: dict[str, Any] = {}
        if return_documents is not None:
            postprocess["return_documents"] = checked_flag("return_documents", return_documents)
        if top_k is not None:
            postprocess["top_k"] = checked_top_k(top_k)
        if function_to_apply is not None:
            function = chosen_function(function_to_apply)
            if function is ClassificationFunction.SOFTMAX:
                raise ValueError(
                    "function_to_apply='softmax': over one score it is always 1; give 'sigmoid' or 'none'."
                )
            postprocess["function_to_apply"] = function or self._default_function()
        return preprocess, {}, postprocess

    def _call_parameters(self, parameters: dict[str, Any]) -> Parameters:
        preprocess, forward, postprocess = super()._call_parameters(parameters)
        if "function_to_apply" not in postprocess:
            postprocess["function_to_apply"] = self._default_function()
        return preprocess, forward, postprocess

    def _default_function(self) -> ClassificationFunction:
        """Returns the function that the checkpoint names, by the last part of the name of torch's class.

        Raises:
            ConfigError: it names one that is not known.
        """
        named = self._activation
        if named is None:
            return ClassificationFunction.SIGMOID
        functions = {"Sigmoid": ClassificationFunction.SIGMOID, "Identity": ClassificationFunction.NONE}
        function = functions.get(str(named).rsplit(".", 1)[-1])
        if function is None:
            raise ConfigError(
                f"The checkpoint names {named!r} as the function from logit to score, which is not known here; give "
                "function_to_apply='sigmoid' or 'none'."
            )
        return function

    def save_pretrained(self, save_directory: str | Path, **parameters: Any) -> None:
        """Saves model and tokenizer, and the file that names the function where config.json does not.

        Args:
            save_directory: made where it does not exist.
            **parameters: passed on to the model's `save_pretrained`.

        Raises:
            NotADirectoryError: the path is a file.
        """
        super().save_pretrained(save_directory, **parameters)
        if self._settings is not None:
            (Path(save_directory) / _SETTINGS).write_text(json.dumps(self._settings, indent=2) + "\n")

    def preprocess(
        self, item: Mapping[str, Any], truncation: bool | str = "longest_first", max_length: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yields the tokenizer's arrays (1, T) of the query with each document."""
        documents, limit = item["documents"], self._position_limit
        known = min(self.tokenizer.model_max_length, LARGEST_LENGTH if limit is None else limit)
        length = known if max_length is None else max_length
        cuts = truncation not in (False, "do_not_truncate") and length < LARGEST_LENGTH
        arguments = {"truncation": truncation, "max_length": length} if cuts else {"truncation": False}
        queries = [item["query"]] * len(documents)
        rows = encode_many(self.tokenizer, queries, documents, limit=limit, **arguments)
        for row, document in zip(rows, documents, strict=True):
            yield {**row, "document": document}

    def _forward(self, model_inputs: dict[str, Any], **_: Any) -> dict[str, Any]:
        documents = model_inputs.pop("document")
        logits = logits_of(self.model, self.model(**model_inputs), 1, _LOADER)
        return {"logits": logits, "document": documents}

    def postprocess(
        self,
        model_outputs: Sequence[Mapping[str, Any]],
        function_to_apply: ClassificationFunction = ClassificationFunction.SIGMOID,
        top_k: int | None = None,
        return_documents: bool = True,
    ) -> list[dict[str, Any]]:
        """Returns the documents' records, the highest score first."""
        logits = np.array([np.asarray(output["logits"], np.float32)[0, 0] for output in model_outputs])
        scores = apply(function_to_apply, finite(logits, "a document"))
        # By logits, which differ where scores near 1 round to the same number.
        order = largest(logits, len(logits) if top_k is None else min(top_k, len(logits)))
        records: list[dict[str, Any]] = [{"index": int(index), "score": float(scores[index])} for index in order]
        if return_documents:
            for record in records:
                record["document"] = model_outputs[record["index"]]["document"]
        return records


def _config_activation(config: Any) -> Any:
    """Returns what config.json says of the function from logit to score, in the places of two formats, or None."""
    section = getattr(config, "sentence_transformers", None)
    if isinstance(section, Mapping) and section.get(_ACTIVATION) is not None:
        return section[_ACTIVATION]
    return getattr(config, "sbert_ce_default_activation_function", None)
