"""Feature extraction: a text's hidden states."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from jaxpipe.common.errors import nearest
from jaxpipe.pipelines.base import Parameters, Pipeline
from jaxpipe.pipelines.inputs import described

_PARAMETERS = ("truncation", "tokenize_kwargs", "return_tensors")


class FeatureExtractionPipeline(Pipeline):
    """Gives the last hidden state of every token of a text.

    Rows come without padding, whatever the batch. Construct it with `pipeline`.

    Raises:
        ValueError: there is no tokenizer.
    """

    _load_tokenizer: ClassVar[bool | None] = True

    def __init__(self, model: Any, tokenizer: Any = None, task: str = "feature-extraction", **parameters: Any) -> None:
        if tokenizer is None:
            raise ValueError("feature-extraction needs a tokenizer: give tokenizer=.")
        super().__init__(model, tokenizer, task, **parameters)

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        """Extracts features.

        Args:
            inputs: a text, a list of texts, or a data set, generator or iterator of texts.
            **parameters: ``batch_size`` and the following.
                truncation: for the tokenizer; texts are not cut without it.
                tokenize_kwargs: more arguments of the tokenizer.
                return_tensors: give numpy arrays instead of lists.

        Returns:
            The features (1, T, D) of a text as nested lists of floats, or as an array; a list of them for a list; an
            iterator of them for a data set or generator.

        Raises:
            TypeError: an input is no text, or a parameter is unknown.
            ValueError: ``truncation`` is given twice, or a text has no tokens.
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
        **unknown: Any,
    ) -> Parameters:
        for name in unknown:
            raise TypeError(
                f"{name!r} is no parameter of {self._named}; it takes {', '.join(_PARAMETERS)} and batch_size. "
                f"Arguments of the tokenizer go to tokenize_kwargs=.{nearest(name, _PARAMETERS)}"
            )
        preprocess = dict(tokenize_kwargs or {})
        if truncation is not None:
            if "truncation" in preprocess:
                raise ValueError("truncation is given twice: as truncation= and in tokenize_kwargs=; give one.")
            preprocess["truncation"] = truncation
        if "return_tensors" in preprocess:
            raise ValueError("return_tensors does not belong in tokenize_kwargs=; pass return_tensors=True for arrays.")
        return preprocess, {}, {} if return_tensors is None else {"return_tensors": return_tensors}

    def preprocess(self, text: str | list[str], **tokenize_kwargs: Any) -> dict[str, Any]:
        """Returns the tokenizer's arrays (1, T)."""
        if not isinstance(text, str) and not tokenize_kwargs.get("is_split_into_words"):
            raise TypeError(
                f"An input is {described(text)}; expected a text (str). For words pass "
                "tokenize_kwargs={'is_split_into_words': True}."
            )
        encoded = dict(self.tokenizer(text, return_tensors="np", **tokenize_kwargs))
        if encoded["input_ids"].shape[-1] == 0:
            raise ValueError(f"The text {text!r} has no tokens, so it has no features.")
        return {name: np.asarray(value, np.int32) for name, value in encoded.items()}

    def _forward(self, model_inputs: dict[str, Any], **_: Any) -> dict[str, Any]:
        outputs = self.model(**model_inputs)
        # The first output: a bare model's last hidden state; a head's logits where such a model was given.
        name, features = outputs.items()[0]
        return {name: features}

    def postprocess(self, model_outputs: Mapping[str, Any], return_tensors: bool = False) -> Any:
        """Returns the features (1, T, D)."""
        features = next(iter(model_outputs.values()))
        if return_tensors:
            return features
        return np.asarray(features, np.float32).tolist()
