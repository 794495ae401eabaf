"""Sentence similarity: how near sentences are to a source sentence."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from jaxpipe.common.errors import nearest
from jaxpipe.pipelines.base import ChunkPipeline, Parameters
from jaxpipe.pipelines.embedding import EmbeddingPipeline, TextSettings
from jaxpipe.pipelines.inputs import described
from jaxpipe.pipelines.pooling import cosine

_PARAMETERS = ("truncation", "tokenize_kwargs", "pooling", "prompt", "prompt_name")
_KEYS = ("source_sentence", "sentences")


class SentenceSimilarityPipeline(EmbeddingPipeline, ChunkPipeline):
    """Gives the cosine similarity of sentences to a source sentence, by vectors as the model's repository makes them.

    The sentences of all items share batches. Construct it with `pipeline`::

        pipe = pipeline("sentence-similarity", model="sentence-transformers/all-MiniLM-L6-v2")
        pipe(source_sentence="A cat sat.", sentences=["A dog stood.", "Stocks fell."])    # [0.33, 0.10]

    Raises:
        ValueError: there is no tokenizer, or the repository does not say how to pool and ``pooling`` is not given.
    """

    _default_pooling: ClassVar[str | None] = "auto"

    def __init__(self, model: Any, tokenizer: Any = None, task: str = "sentence-similarity", **parameters: Any) -> None:
        super().__init__(model, tokenizer, task, **parameters)

    def __call__(
        self, inputs: Any = None, *, source_sentence: str | None = None, sentences: Any = None, **parameters: Any
    ) -> Any:
        """Compares sentences with a source sentence.

        Args:
            inputs: a mapping with ``source_sentence`` (str) and ``sentences`` (a list of str, at least one); a list of
                such mappings; or a data set, generator or iterator of them.
            source_sentence: instead of ``inputs``, together with ``sentences``.
            sentences: see there.
            **parameters: ``batch_size`` (sentences run at once) and the following.
                pooling: how vectors are made, as in feature-extraction; None: ``"auto"``, as the repository says.
                truncation: for the tokenizer; None: to the ``max_seq_length`` of the repository, with ``"auto"``.
                tokenize_kwargs: more arguments of the tokenizer.
                prompt: a text that is put before every sentence, the source too.
                prompt_name: the name of such a text in the repository's config_sentence_transformers.json.

        Returns:
            A list of floats from -1 to 1, one for each of ``sentences``; a list of such lists for a list; an iterator
            of them for a data set or generator.

        Raises:
            TypeError: an input or a parameter is of the wrong kind, or unknown.
            ValueError: a key is missing or unknown, there are no sentences, or one has no tokens.
        """
        if source_sentence is not None or sentences is not None:
            if inputs is not None:
                raise ValueError("Give either inputs, or source_sentence= and sentences=, not both.")
            given = {"source_sentence": source_sentence, "sentences": sentences}
            inputs = {key: value for key, value in given.items() if value is not None}
        return super().__call__(inputs, **parameters)

    def check_item(self, item: Any, where: str) -> Any:
        """Returns a mapping of ``source_sentence`` and a list of ``sentences``."""
        if not isinstance(item, Mapping):
            raise TypeError(
                f"{where} is {described(item)}; expected a mapping with 'source_sentence' (str) and 'sentences' "
                "(a list of str)."
            )
        for key in item:
            if key not in _KEYS:
                raise ValueError(f"{where} has an unknown key {key!r}.{nearest(str(key), _KEYS)}")
        if missing := [key for key in _KEYS if key not in item]:
            raise ValueError(f"{where} lacks {' and '.join(map(repr, missing))}.")
        source, sentences = item["source_sentence"], item["sentences"]
        if not isinstance(source, str):
            raise TypeError(f"{where}['source_sentence'] is {described(source)}; expected a str.")
        if not isinstance(sentences, (list, tuple)):
            raise TypeError(f"{where}['sentences'] is {described(sentences)}; expected a list of str.")
        if not sentences:
            raise ValueError(f"{where}['sentences'] is empty; there is nothing to compare with.")
        for index, sentence in enumerate(sentences):
            if not isinstance(sentence, str):
                raise TypeError(f"{where}['sentences'][{index}] is {described(sentence)}; expected a str.")
        return {"source_sentence": source, "sentences": list(sentences)}

    def _sanitize_parameters(
        self,
        truncation: bool | str | None = None,
        tokenize_kwargs: Mapping[str, Any] | None = None,
        pooling: Any = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        **unknown: Any,
    ) -> Parameters:
        preprocess, forward = self._shared_parameters(
            _PARAMETERS,
            unknown,
            truncation=truncation,
            tokenize_kwargs=tokenize_kwargs,
            pooling=pooling,
            prompt=prompt,
            prompt_name=prompt_name,
        )
        return preprocess, forward, {}

    def preprocess(
        self, item: dict[str, Any], settings: TextSettings, **tokenize_kwargs: Any
    ) -> Iterator[dict[str, Any]]:
        """Yields the arrays (1, T) of the source, then those of each sentence."""
        yield self.encode(item["source_sentence"], settings, "'source_sentence'", **tokenize_kwargs)
        for index, sentence in enumerate(item["sentences"]):
            yield self.encode(sentence, settings, f"'sentences'[{index}]", **tokenize_kwargs)

    def postprocess(self, model_outputs: list[Mapping[str, Any]]) -> list[float]:
        """Returns the cosine of each sentence to the source."""
        source, *others = (self.vector_of(outputs) for outputs in model_outputs)
        return cosine(source, np.stack(others))
