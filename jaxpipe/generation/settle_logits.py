"""Reading and checking of the settings that change the logits."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from jaxpipe.common.logging import warn_once
from jaxpipe.generation.fields import SAMPLING_ONLY
from jaxpipe.generation.layers import Merged, as_int

Words = tuple[tuple[int, ...], ...]
"""Sequences of token ids."""
Biases = tuple[tuple[tuple[int, ...], float], ...]
"""Sequences of token ids, each with the bias of its last token."""


def logits_settings(merged: Merged, eos_token_ids: tuple[int, ...]) -> dict[str, Any]:
    """Returns the checked settings of processors that act with and without sampling.

    Args:
        merged: the layers of settings.
        eos_token_ids: tokens that end a row.

    Raises:
        ValueError: a value is out of range or has another form.
    """
    return {
        "repetition_penalty": merged.positive("repetition_penalty"),
        "encoder_repetition_penalty": merged.positive("encoder_repetition_penalty"),
        "no_repeat_ngram_size": merged.integer("no_repeat_ngram_size", 0, absent=0),
        "encoder_no_repeat_ngram_size": merged.integer("encoder_no_repeat_ngram_size", 0, absent=0),
        "bad_words_ids": _bad_words(merged, eos_token_ids),
        "sequence_bias": _sequence_bias(merged),
        "suppress_tokens": merged.strict_ids("suppress_tokens"),
        "begin_suppress_tokens": merged.strict_ids("begin_suppress_tokens"),
        "exponential_decay_length_penalty": _exponential_decay(merged, eos_token_ids),
        "remove_invalid_values": merged.flag("remove_invalid_values"),
        "renormalize_logits": merged.flag("renormalize_logits"),
    }


def sampling_settings(merged: Merged, do_sample: bool, used: Collection[str] = ()) -> dict[str, Any]:
    """Returns the checked settings that act in sampling alone; none, with a warning unless `used`, without it.

    Raises:
        ValueError: a value is out of range.
    """
    if not do_sample:
        for name, silent in SAMPLING_ONLY.items():
            value = merged.get(name)
            if value is not None and value != silent and merged.by_user(name) and name not in used:
                warn_once(f"{name}={value!r} is ignored: it only acts with do_sample=True.")
        return {}
    return {
        "temperature": merged.positive("temperature", "; for greedy decoding set do_sample=False"),
        "top_h": None if merged.get("top_h") is None else _share(merged, "top_h", 1.0, low_open=True),
        "top_k": merged.integer("top_k", 0, absent=0),
        "top_p": _share(merged, "top_p", 1.0),
        "min_p": _share(merged, "min_p", 0.0),
        "typical_p": _share(merged, "typical_p", 1.0, low_open=True),
        "epsilon_cutoff": _share(merged, "epsilon_cutoff", 0.0, high_open=True),
        "eta_cutoff": _share(merged, "eta_cutoff", 0.0, high_open=True),
    }


def _share(merged: Merged, name: str, absent: float, *, low_open: bool = False, high_open: bool = False) -> float:
    """A number from 0 to 1, without those of the ends that are open."""
    ends = f"{'above' if low_open else 'from'} 0 {'and below' if high_open else 'to'} 1"
    expected = f"a number {ends}, or None"
    value = merged.real(name, 0.0, 1.0, expected)
    if value is None:
        return absent
    if (low_open and value == 0.0) or (high_open and value == 1.0):
        raise merged.error(name, expected)
    return value


def _word(value: Any) -> tuple[int, ...] | None:
    """A non-empty sequence of token ids, or None where it is something else."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        return None
    ids = [as_int(entry) for entry in value]
    valid = tuple(i for i in ids if i is not None and i >= 0)
    return valid if valid and len(valid) == len(ids) else None


def _bad_words(merged: Merged, eos_token_ids: tuple[int, ...]) -> Words:
    """Without words that are an end-of-sequence token alone: a row could not end otherwise."""
    value = merged.get("bad_words_ids")
    if value is None:
        return ()
    expected = "a list of lists of token ids of at least 0, none of them empty"
    words = [_word(entry) for entry in value] if isinstance(value, (list, tuple)) else []
    if not words:
        raise merged.error("bad_words_ids", expected)
    bad: dict[tuple[int, ...], None] = {}
    for word in words:
        if word is None:
            raise merged.error("bad_words_ids", expected)
        if all(word != (eos,) for eos in eos_token_ids):
            bad[word] = None
    if not bad:
        raise merged.error(
            "bad_words_ids", f"a word that is not eos_token_id {list(eos_token_ids)} alone; those are never banned"
        )
    return tuple(bad)


def _sequence_bias(merged: Merged) -> Biases:
    value = merged.get("sequence_bias")
    if value is None:
        return ()
    expected = "{(token ids): bias} or [[[token ids], bias], ...], with ids of at least 0 and biases below inf"
    if isinstance(value, Mapping):
        pairs: list[Any] = list(value.items())
    elif isinstance(value, (list, tuple)):
        pairs = [tuple(pair) if isinstance(pair, (list, tuple)) else () for pair in value]
    else:
        raise merged.error("sequence_bias", expected)
    biases: dict[tuple[int, ...], float] = {}
    for pair in pairs:
        ids, number = pair if len(pair) == 2 else (None, None)
        word, bias = _word(ids), _number(number)
        if word is None or bias is None or math.isnan(bias) or bias == math.inf:
            raise merged.error("sequence_bias", expected)
        biases[word] = bias
    return tuple(biases.items())


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError):
        return None


def _exponential_decay(merged: Merged, eos_token_ids: tuple[int, ...]) -> tuple[int, float] | None:
    name = "exponential_decay_length_penalty"
    value = merged.get(name)
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, (list, tuple)) and len(value) == 2 else (None, None)
    start, factor = as_int(pair[0]), _number(pair[1])
    if start is None or factor is None or start < 0 or not 0.0 < factor < math.inf:
        raise merged.error(name, "(start, factor), an integer of at least 0 and a number above 0, or None")
    if not eos_token_ids:
        raise merged.error(name, "an eos_token_id as well, whose score grows")
    return start, factor
