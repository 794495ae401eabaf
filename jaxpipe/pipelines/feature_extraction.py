"""Feature extraction: a text's hidden states, or one vector made of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxpipe.pipelines.base import Parameters
from jaxpipe.pipelines.embedding import EMBEDDING, EmbeddingPipeline, TextSettings, check_finite
from jaxpipe.pipelines.inputs import described

_PARAMETERS = ("truncation", "tokenize_kwargs", "return_tensors", "pooling", "normalize", "prompt", "prompt_name")


class FeatureExtractionPipeline(EmbeddingPipeline):
    """Gives the last hidden state of every token of a text; with ``pooling`` one vector a text, an embedding.

    Rows come without padding, whatever the batch, and padding never enters a vector. Vectors are made on the device,
    in float32. Construct it with `pipeline`::

        pipe = pipeline("feature-extraction", model="sentence-transformers/all-MiniLM-L6-v2")
        pipe("The cat sat.")                    # [[[0.1, ...], ...]]: (1, T, 384)
        pipe("The cat sat.", pooling="auto")    # [0.05, ...]: 384 numbers, as the repository makes them

    Raises:
        ValueError: there is no tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any = None, task: str = "feature-extraction", **parameters: Any) -> None:
        super().__init__(model, tokenizer, task, **parameters)

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        """Extracts features.

        Args:
            inputs: a text, a list of texts, or a data set, generator or iterator of texts.
            **parameters: ``batch_size`` and the following.
                truncation: for the tokenizer; texts are not cut without it, but with ``pooling="auto"`` to the
                ``max_seq_length`` of the repository.
                tokenize_kwargs: more arguments of the tokenizer.
                return_tensors: give numpy arrays instead of lists.
                pooling: how a text's states become one vector: ``"mean"`` over the tokens, ``"cls"`` (the first
                token), ``"max"`` of each number, ``"lasttoken"``, ``"mean_sqrt_len_tokens"`` (the sum by the root of
                the length), ``"weightedmean"`` (later tokens weigh more), a list of these, whose vectors are joined,
                or ``"auto"``: all that the repository's modules.json lists (pooling, dense layers, normalisation).
                None: no pooling.
                normalize: whether vectors have length 1; None: as the repository has it with ``"auto"``, else not.
                prompt: a text that is put before every input.
                prompt_name: the name of such a text in the repository's config_sentence_transformers.json; its
                default one is used with ``pooling="auto"``, unless ``prompt=""``.

        Returns:
            The features (1, T, D) of a text as nested lists of floats, or as an array; with ``pooling`` a list of D
            floats, or an array (D,). A list of them for a list; an iterator of them for a data set or generator.

        Raises:
            TypeError: an input is no text, or a parameter is unknown.
            ValueError: ``truncation`` is given twice, a text has no tokens, ``pooling`` is unknown or the repository
                does not say how, or the model gives NaN.
        """
        return super().__call__(inputs, **parameters)

    def check_item(self, item: Any, where: str) -> Any:
        """Returns a text as it is; a list of words only where the tokenizer is told of them, in preprocess."""
        if isinstance(item, str):
            return item
        if isinstance(item, (list, tuple)) and item and all(isinstance(word, str) for word in item):
            return list(item)
        hint = " For a column of a data set use KeyDataset." if isinstance(item, Mapping) else ""
        raise TypeError(f"{where} is {described(item)}; expected a text (str).{hint}")

    def _sanitize_parameters(
        self,
        truncation: bool | str | None = None,
        tokenize_kwargs: Mapping[str, Any] | None = None,
        return_tensors: bool | None = None,
        pooling: Any = None,
        normalize: bool | None = None,
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
            normalize=normalize,
            prompt=prompt,
            prompt_name=prompt_name,
        )
        return preprocess, forward, {} if return_tensors is None else {"return_tensors": return_tensors}

    def preprocess(self, text: str | list[str], settings: TextSettings, **tokenize_kwargs: Any) -> dict[str, Any]:
        """Returns the tokenizer's arrays (1, T)."""
        if not isinstance(text, str) and not tokenize_kwargs.get("is_split_into_words"):
            raise TypeError(
                f"An input is {described(text)}; expected a text (str). For words pass "
                "tokenize_kwargs={'is_split_into_words': True}."
            )
        return self.encode(text, settings, **tokenize_kwargs)

    def preprocess_batch(self, items: list[Any], **parameters: Any) -> list[Any]:
        """Returns the tokenizer's arrays (1, T) of every text."""
        if not all(isinstance(item, str) for item in items):
            return super().preprocess_batch(items, **parameters)
        return self.encode_batch(items, **parameters)

    def postprocess(self, model_outputs: Mapping[str, Any], return_tensors: bool = False) -> Any:
        """Returns the features (1, T, D), or the vector (D,)."""
        if EMBEDDING in model_outputs:
            vector = self.vector_of(model_outputs)
            return vector if return_tensors else vector.tolist()
        features = next(iter(model_outputs.values()))
        if return_tensors:
            return check_finite(features)
        return check_finite(np.asarray(features, np.float32)).tolist()
