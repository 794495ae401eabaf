"""From layers of generation settings to the one set of values that a call runs with."""

import dataclasses
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from jaxpipe.common.errors import nearest
from jaxpipe.common.logging import info_once, warn_once
from jaxpipe.generation.fields import (
    DEFAULTS,
    GENERATE_ARGUMENTS,
    NOT_SUPPORTED,
    NOT_SUPPORTED_ARGUMENTS,
    SAMPLING_ONLY,
    WITHOUT_EFFECT,
    Refusal,
)


class Layer(NamedTuple):
    """Settings from one origin.

    Attributes:
        values: the settings that the origin sets; None is a value and means off.
        origin: the origin in words, for messages.
        by_user: whether the user set them in this call; the others come with the model or are defaults.
    """

    values: Mapping[str, Any]
    origin: str
    by_user: bool


@dataclasses.dataclass(frozen=True)
class Settled:
    """The checked settings of one call, lengths resolved to counts of new tokens.

    Attributes:
        prompt_length: positions of the prompt in the input ids, padding included.
        max_new_tokens: at least 1.
        min_new_tokens: new tokens before which no end-of-sequence token may come; 0 is none.
        do_sample: sampling, else greedy.
        temperature, top_k, top_p, min_p, repetition_penalty: neutral at 1.0, 0, 1.0, 0.0 and 1.0.
        num_return_sequences: sequences for each prompt, at least 1.
        eos_token_ids: tokens that end a row; may be empty.
        pad_token_id: token that fills rows that ended; the first of ``eos_token_ids`` where none is set.
        forced_bos_token_id: the first token after a prompt of one token, or None.
        forced_eos_token_ids: one of these is the last token of a row that reaches the maximum; may be empty.
        stop_strings: texts that end a row.
        max_time: seconds after which generation stops, or None.
    """

    prompt_length: int
    max_new_tokens: int
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_return_sequences: int = 1
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    max_time: float | None = None
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False

    @property
    def max_length(self) -> int:
        """Positions of prompt and new tokens together."""
        return self.prompt_length + self.max_new_tokens


class _Merged:
    """The layers as one mapping: the first layer that holds a name decides, then `DEFAULTS`."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = (*layers, Layer(DEFAULTS, "the default", by_user=False))

    def layer(self, name: str) -> Layer | None:
        return next((layer for layer in self.layers if name in layer.values), None)

    def get(self, name: str) -> Any:
        layer = self.layer(name)
        return None if layer is None else layer.values[name]

    def is_given(self, name: str) -> bool:
        """Whether a layer other than the defaults decides, and not by None."""
        layer = self.layer(name)
        return layer is not None and layer is not self.layers[-1] and layer.values[name] is not None

    def by_user(self, name: str) -> bool:
        layer = self.layer(name)
        return layer is not None and layer.by_user

    def error(self, name: str, expected: str) -> ValueError:
        layer = self.layer(name)
        origin = "" if layer is None else f" ({layer.origin})"
        return ValueError(f"{name}={self.get(name)!r}{origin}: expected {expected}.")

    def integer(self, name: str, minimum: int, absent: int) -> int:
        """The value as an int of at least ``minimum``; ``absent`` where it is None."""
        value = self.get(name)
        if value is None:
            return absent
        number = _as_int(value)
        if number is None or number < minimum:
            raise self.error(name, f"an integer of at least {minimum}, or None")
        return number

    def real(self, name: str, low: float, high: float, expected: str) -> float | None:
        """The value as a finite float from ``low`` to ``high``, or None."""
        value = self.get(name)
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, (bool, str)) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (low <= number <= high and math.isfinite(number)):
            raise self.error(name, expected)
        return number

    def positive(self, name: str, hint: str = "") -> float:
        """The value as a finite float above 0; 1.0 where it is None."""
        expected = f"a number above 0{hint}"
        value = self.real(name, 0.0, math.inf, expected)
        if value == 0.0:
            raise self.error(name, expected)
        return 1.0 if value is None else value

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if not isinstance(value, (bool, np.bool_, NoneType)):
            raise self.error(name, "True or False")
        return bool(value)


def _as_int(value: Any) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def check_names(names: Mapping[str, Any], fields: Iterable[str]) -> None:
    """Raises ValueError for a name that is no setting, with the nearest accepted name.

    Args:
        names: the keyword arguments that ``generate`` does not name itself.
        fields: the names of all settings.
    """
    fields = frozenset(fields)
    for name, value in names.items():
        if name in fields:
            continue
        if name in NOT_SUPPORTED_ARGUMENTS:
            if value is None or value is False:
                continue
            raise ValueError(f"generate argument {name!r} is not supported yet; leave it out.")
        hint = nearest(name, [*fields, *GENERATE_ARGUMENTS])
        raise ValueError(
            f"generate got an unknown argument {name!r}.{hint} Accepted are {', '.join(GENERATE_ARGUMENTS)} and the "
            "settings of GenerationConfig."
        )


def settle(layers: Sequence[Layer], *, prompt_length: int, max_positions: int | None) -> Settled:
    """Merges layers of settings, refuses what is not supported and resolves lengths.

    Args:
        layers: origins of settings, the strongest first.
        prompt_length: positions of the prompt in the input ids, padding included.
        max_positions: positions that the model was made for, or None; caps the default length only.

    Returns:
        The values that the call runs with.

    Raises:
        ValueError: a value is out of range or not supported, or the lengths leave no room for a new token.
    """
    merged = _Merged(layers)
    do_sample = merged.flag("do_sample")
    _refuse(merged, do_sample)
    max_new_tokens = _max_new_tokens(merged, prompt_length, max_positions)
    eos_token_ids = _eos_token_ids(merged)
    num_return_sequences = merged.integer("num_return_sequences", 1, absent=1)
    if num_return_sequences > 1 and not do_sample:
        raise ValueError(
            f"num_return_sequences={num_return_sequences} with greedy decoding would give the same sequence each "
            "time; set do_sample=True or num_return_sequences=1."
        )
    return Settled(
        prompt_length=prompt_length,
        max_new_tokens=max_new_tokens,
        min_new_tokens=_min_new_tokens(merged, prompt_length, max_new_tokens),
        do_sample=do_sample,
        repetition_penalty=merged.positive("repetition_penalty"),
        num_return_sequences=num_return_sequences,
        eos_token_ids=eos_token_ids,
        pad_token_id=_pad_token_id(merged, eos_token_ids),
        bos_token_id=_first_id(merged, "bos_token_id"),
        forced_bos_token_id=_first_id(merged, "forced_bos_token_id"),
        forced_eos_token_ids=tuple(dict.fromkeys(_ids(merged, "forced_eos_token_id"))),
        stop_strings=_stop_strings(merged),
        max_time=merged.real("max_time", 0.0, math.inf, "a number of seconds of at least 0, or None"),
        **_sampling(merged, do_sample),
        **{name: merged.flag(name) for name in ("return_dict_in_generate", "output_scores", "output_logits")},
    )


_ACTS = {"sampling": "do_sample=True", "outputs": "return_dict_in_generate=True"}


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    return value is None or any((type(value) is not bool and value == n) or value is n for n in neutral)


def _refuse(merged: _Merged, do_sample: bool) -> None:
    active = {"always": True, "sampling": do_sample, "outputs": merged.flag("return_dict_in_generate")}
    for name, refusal in NOT_SUPPORTED.items():
        layer = merged.layer(name)
        if layer is None or _is_neutral(layer.values[name], refusal.neutral):
            continue
        if active[refusal.when]:
            raise _refusal_error(name, layer, refusal)
        if layer.by_user:
            warn_once(f"{name}={layer.values[name]!r} is ignored: it only acts with {_ACTS[refusal.when]}.")
    for name, reason in WITHOUT_EFFECT.items():
        if merged.by_user(name) and merged.get(name) is not None:
            info_once(f"{name} is accepted and has no effect: {reason}.")
    if merged.by_user("use_cache") and not merged.flag("use_cache"):
        info_once("use_cache=False is accepted and has no effect: generation always keeps a key-value cache.")


def _refusal_error(name: str, layer: Layer, refusal: Refusal) -> ValueError:
    neutral = refusal.neutral[0] if refusal.neutral else None
    if layer.by_user:
        remedy = f"leave it out or set it to {neutral!r}"
    else:
        remedy = (
            f"to run without it pass {name}={neutral!r} to generate or set model.generation_config.{name} = {neutral!r}"
        )
    return ValueError(
        f"{name}={layer.values[name]!r} ({layer.origin}) is not supported yet; its neutral value is {neutral!r}: "
        f"{remedy}."
    )


def _max_new_tokens(merged: _Merged, prompt_length: int, max_positions: int | None) -> int:
    """The rules of Transformers 5.23: ``max_new_tokens`` wins over ``max_length``; with neither, 20 new tokens."""
    max_new_tokens = merged.integer("max_new_tokens", 1, absent=0)
    max_length = merged.integer("max_length", 0, absent=0)
    if max_new_tokens:
        if merged.is_given("max_length"):
            warn_once(f"Both {max_new_tokens=} and {max_length=} are set; max_new_tokens is followed.")
        return max_new_tokens
    if not merged.is_given("max_length"):
        max_length = DEFAULTS["max_length"] + prompt_length
        if max_positions is not None:
            max_length = min(max_length, max_positions)
        warn_once(
            f"Neither max_new_tokens nor max_length is set: at most {DEFAULTS['max_length']} new tokens are generated. "
            "Set max_new_tokens."
        )
    if prompt_length >= max_length:
        raise ValueError(
            f"The prompt (input_ids) has {prompt_length} positions and max_length, which counts prompt and new tokens, "
            f"is {max_length}: no room for a new token. Raise max_length, or set max_new_tokens."
        )
    return max_length - prompt_length


def _min_new_tokens(merged: _Merged, prompt_length: int, max_new_tokens: int) -> int:
    """``min_new_tokens`` wins over ``min_length``, which counts the prompt's positions too."""
    wanted = merged.integer("min_length", 0, absent=0) - prompt_length
    if merged.get("min_new_tokens") is not None:
        if merged.is_given("min_length"):
            warn_once(
                f"Both min_new_tokens={merged.get('min_new_tokens')!r} and min_length={merged.get('min_length')!r} are "
                "set; min_new_tokens is followed."
            )
        wanted = merged.integer("min_new_tokens", 0, absent=0)
    if wanted > max_new_tokens:
        warn_once(
            f"The minimum of {wanted} new tokens is above the maximum of {max_new_tokens}; generation stops at the "
            "maximum."
        )
    return max(wanted, 0)


def _sampling(merged: _Merged, do_sample: bool) -> dict[str, Any]:
    if not do_sample:
        for name, silent in SAMPLING_ONLY.items():
            value = merged.get(name)
            if value is not None and value != silent and merged.by_user(name):
                warn_once(f"{name}={value!r} is ignored: it only acts with do_sample=True.")
        return {}
    top_p = merged.real("top_p", 0.0, 1.0, "a number from 0 to 1, or None")
    return {
        "temperature": merged.positive("temperature", "; for greedy decoding set do_sample=False"),
        "top_k": merged.integer("top_k", 0, absent=0),
        "top_p": 1.0 if top_p is None else top_p,
        "min_p": merged.real("min_p", 0.0, 1.0, "a number from 0 to 1, or None") or 0.0,
    }


def _ids(merged: _Merged, name: str) -> list[int]:
    value = merged.get(name)
    if value is None:
        return []
    try:
        entries = list(value)
    except TypeError:
        entries = [value]
    ids = [_as_int(entry) for entry in entries]
    if isinstance(value, str) or any(i is None for i in ids):
        raise merged.error(name, "a token id or a list of token ids")
    negative = [i for i in ids if i is not None and i < 0]
    if negative:
        warn_once(f"{name}={value!r}: token ids are not negative; {negative} is ignored.")
    return [i for i in ids if i is not None and i >= 0]


def _eos_token_ids(merged: _Merged) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_ids(merged, "eos_token_id")))


def _first_id(merged: _Merged, name: str) -> int | None:
    return next(iter(_ids(merged, name)), None)


def _pad_token_id(merged: _Merged, eos_token_ids: tuple[int, ...]) -> int | None:
    pad_token_id = _first_id(merged, "pad_token_id")
    if pad_token_id is None and eos_token_ids:
        info_once(f"pad_token_id is not set; rows that ended are filled with eos_token_id {eos_token_ids[0]}.")
        return eos_token_ids[0]
    return pad_token_id


def _stop_strings(merged: _Merged) -> tuple[str, ...]:
    value = merged.get("stop_strings")
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not all(isinstance(text, str) and text for text in strings):
        raise merged.error("stop_strings", "a text or a list of texts, none of them empty")
    return tuple(strings)
