"""From logits to scores: on the host, in float64, and never a NaN."""

import enum
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxpipe.common.errors import nearest
from jaxpipe.pipelines.inputs import described


class ClassificationFunction(enum.Enum):
    """What turns the logits of a classifier into scores."""

    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"
    NONE = "none"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities over the last axis, float64, of the same shape; a NaN among the logits gives NaN."""
    logits = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):
        exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponents / exponents.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Returns the logistic function of every logit, float64, of the same shape; of NaN it is NaN."""
    with np.errstate(invalid="ignore"):
        # As an exponential of what is at most 0, which cannot overflow.
        return np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))


def apply(function: ClassificationFunction, logits: np.ndarray) -> np.ndarray:
    """Returns scores, float64, of the shape of the logits (..., labels)."""
    if function is ClassificationFunction.SOFTMAX:
        return softmax(logits)
    return sigmoid(logits) if function is ClassificationFunction.SIGMOID else np.asarray(logits, np.float64)


def finite(scores: np.ndarray, of: str) -> np.ndarray:
    """Returns the scores.

    Args:
        scores: of any shape.
        of: what they are scores of, for the error.

    Raises:
        ValueError: one is NaN or infinite.
    """
    wrong = ~np.isfinite(scores)
    if wrong.any():
        raise ValueError(
            f"The model gave {float(np.asarray(scores)[wrong][0])} as a score of {of}. Its weights hold NaN or "
            "infinite values, or its dtype is too narrow for it (try dtype='float32')."
        )
    return scores


def chosen_function(value: Any) -> ClassificationFunction | None:
    """Returns the function that ``function_to_apply=`` names; None for ``"default"``, the model's own.

    Raises:
        ValueError: there is no such function.
    """
    value = getattr(value, "value", value)
    names = ["default", *(function.value for function in ClassificationFunction)]
    name = value.lower() if isinstance(value, str) else value
    if name not in names:
        hint = nearest(str(value), names)
        raise ValueError(f"function_to_apply={value!r} is unknown; give one of {', '.join(names)}.{hint}")
    return None if name == "default" else ClassificationFunction(name)


def checked_top_k(value: Any) -> int:
    """Returns ``top_k=`` as an int.

    Raises:
        ValueError: it is no whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"top_k= takes a whole number of at least 1, not {described(value)}.")
    return int(value)


def label_names(config: Any) -> dict[int, str]:
    """Returns the names of a classifier's labels by index, as config.json has them under ``id2label``."""
    return {int(index): label for index, label in (getattr(config, "id2label", None) or {}).items()}


def logits_of(model: Any, outputs: Any, labels: int | None, loader: str) -> Any:
    """Returns the logits among the outputs of a model.

    Args:
        model: what was called.
        outputs: what it returned.
        labels: the logits are (B, labels) of a sequence; None: (B, T, V) of every token.
        loader: the Auto class that loads models for the task.

    Raises:
        TypeError: the model has another head.
        ValueError: it scores another number of labels than its config.json names.
    """
    logits = outputs["logits"] if isinstance(outputs, Mapping) or "logits" in outputs else None
    rank = 3 if labels is None else 2
    if logits is None or logits.ndim != rank:
        name = getattr(model, "class_name", type(model).__name__)
        found = "gives no logits" if logits is None else f"gives logits of shape {tuple(logits.shape)}"
        raise TypeError(f"{name} {found}, where the task needs {rank} axes; load the model with {loader}.")
    if labels is not None and logits.shape[-1] != labels:
        raise ValueError(f"The model scores {logits.shape[-1]} labels, but id2label of its config names {labels}.")
    return logits


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the largest values (N,), largest first; of equal ones the lower index first."""
    if count < len(values):
        candidates = np.flatnonzero(values >= np.partition(values, -count)[-count])
    else:
        candidates = np.arange(len(values))
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]


def unknown_parameter(name: str, pipeline: str, own: Iterable[str], hint: str = "") -> TypeError:
    """Returns the error for a parameter that a pipeline does not take, with the nearest that it takes."""
    own = [*own, "batch_size"]
    return TypeError(f"{name!r} is no parameter of {pipeline}; it takes {', '.join(own)}.{hint or nearest(name, own)}")
