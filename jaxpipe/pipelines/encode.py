"""Texts to the arrays of one row, with the arguments of the tokenizer that a user passes on."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxpipe.common.errors import nearest
from jaxpipe.pipelines.inputs import described

# The pipeline itself gives these, or what they add is no input of a model.
_NOT_PASSED_ON = {
    "text": "the text is the pipeline's input",
    "text_pair": "a pair of texts is an input {'text': ..., 'text_pair': ...} where the task takes pairs",
    "text_target": "the task has no target",
    "text_pair_target": "the task has no target",
    "max_target_length": "the task has no target",
    "return_tensors": "the pipeline chooses its arrays",
    "return_overflowing_tokens": "a text is one row",
    "return_special_tokens_mask": "no model takes the mask",
    "return_offsets_mapping": "no model takes the mapping",
    "return_length": "no model takes the length",
}


def check_tokenizer_arguments(
    tokenizer: Any,
    arguments: Iterable[str],
    pipeline: str,
    own: Iterable[str] = (),
    hints: Mapping[str, str] | None = None,
) -> None:
    """Checks that everything that a user passes on to a tokenizer is an argument of its call.

    Args:
        tokenizer: the tokenizer.
        arguments: the names.
        pipeline: what errors call the pipeline.
        own: the pipeline's own parameters, which may be what was meant.
        hints: name that is known from elsewhere -> what to pass instead.

    Raises:
        TypeError: one is not an argument of the tokenizer.
        ValueError: one cannot be given to the tokenizer of a pipeline.
    """
    parameters = inspect.signature(type(tokenizer).__call__).parameters.values()
    known = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD} - {"self"}
    for name in arguments:
        if name in _NOT_PASSED_ON:
            raise ValueError(f"{name}= cannot be given to the tokenizer of {pipeline}: {_NOT_PASSED_ON[name]}.")
        if name not in known:
            accepted = {*known.difference(_NOT_PASSED_ON), *own, "batch_size"}
            told = (hints or {}).get(name)
            hint = nearest(name, sorted(accepted)) if told is None else f" Pass {told} instead."
            raise TypeError(f"{name!r} is neither a parameter of {pipeline} nor an argument of its tokenizer.{hint}")


def encode(
    tokenizer: Any, text: Any, text_pair: Any = None, *, limit: int | None, **arguments: Any
) -> dict[str, np.ndarray]:
    """Encodes a text, or a pair of texts, as one row.

    Args:
        tokenizer: the tokenizer.
        text: str, or list of words with ``is_split_into_words``.
        text_pair: None, or the second text, of the same form.
        limit: number of tokens that the model's learned positions serve, None where they are computed.
        **arguments: of the tokenizer's call.

    Returns:
        The tokenizer's arrays, int32 (1, T).

    Raises:
        TypeError: a text is a list of words, but the tokenizer is not told so.
        ValueError: there are no tokens, or more than the model has positions for.
    """
    for value in (text, text_pair):
        if not (value is None or isinstance(value, str) or arguments.get("is_split_into_words")):
            raise TypeError(
                f"An input is {described(value)}; expected a text (str). Lists of words need is_split_into_words=True "
                "of the tokenizer."
            )
    encoded = tokenizer(text, text_pair, return_tensors="np", **arguments)
    row = {name: np.asarray(value, np.int32) for name, value in encoded.items()}
    check_row(row["input_ids"].shape[-1], limit, text)
    return row


def encode_many(
    tokenizer: Any, texts: list[str], pairs: list[str] | None = None, *, limit: int | None, **arguments: Any
) -> list[dict[str, np.ndarray]]:
    """Encodes texts, or pairs of texts, at once: the rows that `encode` gives one by one, but an empty second text
    makes a pair too.

    Args:
        tokenizer: the tokenizer.
        texts: the texts.
        pairs: None, or the second text of each.
        limit: number of tokens that the model's learned positions serve, None where they are computed.
        **arguments: of the tokenizer's call.

    Returns:
        Of each text the tokenizer's arrays, int32 (1, T).

    Raises:
        ValueError: a text has no tokens, or more than the model has positions for.
    """
    if arguments.get("padding") in (True, "longest"):
        # Alone, a row is its longest, and it is not to depend on its neighbours.
        arguments = {**arguments, "padding": False}
    columns = tokenizer(texts, pairs, **arguments)
    rows = []
    for number, text in enumerate(texts):
        check_row(len(columns["input_ids"][number]), limit, text)
        rows.append({name: np.asarray([column[number]], np.int32) for name, column in columns.items()})
    return rows


def check_row(tokens: int, limit: int | None, text: Any) -> None:
    """Checks the number of tokens of a row.

    Raises:
        ValueError: there are no tokens, or more than ``limit``, the number that the model has positions for.
    """
    if tokens == 0:
        raise ValueError(f"The text {text!r} has no tokens, so there is nothing to score.")
    if limit is not None and tokens > limit:
        raise ValueError(
            f"The input, {described(text)}, has {tokens} tokens, but the model has learned positions for {limit}. "
            f"Cut it with truncation=True and max_length={limit}."
        )
