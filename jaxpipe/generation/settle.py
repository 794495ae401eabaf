"""From layers of generation settings to the one set of values that a call runs with."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxpipe.common.errors import nearest
from jaxpipe.common.logging import info_once, warn_once
from jaxpipe.generation.constraints import Constraint
from jaxpipe.generation.fields import (
    DEFAULTS,
    GENERATE_ARGUMENTS,
    NOT_SUPPORTED,
    NOT_SUPPORTED_ARGUMENTS,
    WITHOUT_EFFECT,
    Refusal,
)
from jaxpipe.generation.layers import Layer, Merged
from jaxpipe.generation.settle_assisted import assisted_settings
from jaxpipe.generation.settle_beams import beam_settings
from jaxpipe.generation.settle_cache import cache_settings
from jaxpipe.generation.settle_contrast import contrast_settings
from jaxpipe.generation.settle_logits import Biases, Words, logits_settings, sampling_settings
from jaxpipe.generation.settle_prefill import prefill_settings
from jaxpipe.generation.settle_watermark import Watermark, watermark_settings


@dataclasses.dataclass(frozen=True)
class Settled:
    """The checked settings of one call, lengths resolved to counts of new tokens.

    Attributes:
        prompt_length: positions of the prompt in the input ids, padding included.
        max_new_tokens: at least 1.
        min_new_tokens: new tokens before which no end-of-sequence token may come; 0 is none.
        do_sample: sampling, else greedy.
        num_beams: beams of each prompt; above 1 beam search, or beam sampling with ``do_sample``.
        num_beam_groups: parts of the beams that are kept apart, each a search of its own.
        diversity_penalty: taken off the score of a token for each beam of earlier groups that chose it in the step.
        constraints: that the answers of a beam search fulfil.
        early_stopping: when a prompt's beam search ends: True, False or ``"never"``.
        length_penalty: power of the length by which a finished beam's score is divided.
        temperature, top_k, top_p, min_p, typical_p: neutral at 1.0, 0, 1.0, 0.0 and 1.0.
        top_h, epsilon_cutoff, eta_cutoff: neutral at None, 0.0 and 0.0.
        repetition_penalty, encoder_repetition_penalty: neutral at 1.0.
        no_repeat_ngram_size, encoder_no_repeat_ngram_size: tokens that may not come in the same order again; 0 is off.
        bad_words_ids: sequences of tokens that never come.
        sequence_bias: sequences of tokens with what is added to the logit of their last.
        suppress_tokens, begin_suppress_tokens: tokens that never come, and that are not the first.
        exponential_decay_length_penalty: new tokens after which, and factor by which, the end's score grows; or None.
        remove_invalid_values: replaces NaN and infinite logits.
        renormalize_logits: makes the processed scores log-probabilities.
        penalty_alpha: weight of the similarity in contrastive search.
        candidates: tokens that contrastive search chooses from in a step; 0 where it is not asked for.
        dola_layers: layers that DoLa contrasts with the last: ``"low"``, ``"high"`` or their numbers; or None.
        guidance_scale: how far logits are pushed from those of the negative prompt; neutral at 1.0.
        prompt_lookup_num_tokens: tokens that prompt lookup proposes in a step; 0 is off.
        max_matching_ngram_size: most tokens that prompt lookup compares.
        num_assistant_tokens, num_assistant_tokens_schedule, assistant_confidence_threshold: how many tokens an
            assistant proposes; None where the call does not say.
        num_return_sequences: sequences for each prompt, at least 1.
        eos_token_ids: tokens that end a row; may be empty.
        pad_token_id: token that fills rows that ended; the first of ``eos_token_ids`` where none is set.
        forced_bos_token_id: the first token after a prompt of one token, or None.
        forced_eos_token_ids: one of these is the last token of a row that reaches the maximum; may be empty.
        stop_strings: texts that end a row.
        max_time: seconds after which generation stops, or None.
        output_hidden_states, output_attentions: put out each step's, with ``return_dict_in_generate``.
        watermark: the mark that new tokens bear, or None.
        cache_dtype: the 8-bit type in which keys and values are kept, or None.
        prefill_chunk_size: tokens of a prompt that are read at once, None for what memory allows.
    """

    prompt_length: int
    max_new_tokens: int
    min_new_tokens: int = 0
    do_sample: bool = False
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    constraints: tuple[Constraint, ...] = ()
    early_stopping: bool | str = False
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    top_h: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: Words = ()
    sequence_bias: Biases = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    penalty_alpha: float = 0.0
    candidates: int = 0
    dola_layers: str | tuple[int, ...] | None = None
    guidance_scale: float = 1.0
    prompt_lookup_num_tokens: int = 0
    max_matching_ngram_size: int = 2
    num_assistant_tokens: int | None = None
    num_assistant_tokens_schedule: str | None = None
    assistant_confidence_threshold: float | None = None
    num_return_sequences: int = 1
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    max_time: float | None = None
    cache_dtype: str | None = None
    prefill_chunk_size: int | None = None
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False
    output_hidden_states: bool = False
    output_attentions: bool = False
    watermark: Watermark | None = None

    @property
    def max_length(self) -> int:
        """Positions of prompt and new tokens together."""
        return self.prompt_length + self.max_new_tokens

    @property
    def group_beams(self) -> int:
        """Beams of each group."""
        return self.num_beams // self.num_beam_groups

    @property
    def begin_step(self) -> int:
        """New tokens before the first that is chosen freely; `begin_suppress_tokens` act there."""
        return int(self.prompt_length == 1 and self.forced_bos_token_id is not None)

    def forced(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """By the setting's name, the new tokens before the step at which tokens are forced, and the tokens."""
        # Forced as the first token only where the prompt is a start token alone, as in encoder-decoders.
        bos = self.forced_bos_token_id if self.prompt_length == 1 else None
        return {
            "forced_bos_token_id": (0, () if bos is None else (bos,)),
            "forced_eos_token_id": (self.max_new_tokens - 1, self.forced_eos_token_ids),
        }


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
    merged = Merged(layers)
    do_sample = merged.flag("do_sample")
    _refuse(merged, do_sample)
    max_new_tokens = _max_new_tokens(merged, prompt_length, max_positions)
    eos_token_ids = _eos_token_ids(merged)
    contrast = contrast_settings(merged, do_sample)
    settled = Settled(
        prompt_length=prompt_length,
        max_new_tokens=max_new_tokens,
        min_new_tokens=_min_new_tokens(merged, prompt_length, max_new_tokens),
        do_sample=do_sample,
        eos_token_ids=eos_token_ids,
        pad_token_id=_pad_token_id(merged, eos_token_ids),
        bos_token_id=_first_id(merged, "bos_token_id"),
        forced_bos_token_id=_first_id(merged, "forced_bos_token_id"),
        forced_eos_token_ids=tuple(dict.fromkeys(merged.ids("forced_eos_token_id"))),
        stop_strings=_stop_strings(merged),
        max_time=merged.real("max_time", 0.0, math.inf, "a number of seconds of at least 0, or None"),
        **beam_settings(merged, do_sample),
        **logits_settings(merged, eos_token_ids),
        **sampling_settings(merged, do_sample, used=("top_k",) if contrast["candidates"] else ()),
        **contrast,
        **cache_settings(merged),
        **prefill_settings(merged),
        **assisted_settings(merged),
        return_dict_in_generate=merged.flag("return_dict_in_generate"),
        output_scores=merged.flag("output_scores"),
        output_logits=merged.flag("output_logits"),
        output_hidden_states=merged.flag("output_hidden_states"),
        output_attentions=merged.flag("output_attentions"),
        watermark=watermark_settings(merged),
    )
    _check_forced(settled)
    return settled


def _check_forced(settled: Settled) -> None:
    """Raises ValueError where every token that is forced at a step is suppressed there too."""
    for name, (step, ids) in settled.forced().items():
        for other in ("suppress_tokens", "begin_suppress_tokens"):
            suppressed = getattr(settled, other)
            acts = other == "suppress_tokens" or step == settled.begin_step
            if ids and acts and set(ids) <= set(suppressed):
                raise ValueError(
                    f"{name}={list(ids)} and {other}={list(suppressed)}: what is forced is suppressed too, which "
                    "leaves no token to choose. Take the ids out of one of them; against an early end set "
                    "min_new_tokens."
                )


_ACTS = {"sampling": "do_sample=True", "outputs": "return_dict_in_generate=True"}


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    return value is None or any((type(value) is not bool and value == n) or value is n for n in neutral)


def _refuse(merged: Merged, do_sample: bool) -> None:
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


def _max_new_tokens(merged: Merged, prompt_length: int, max_positions: int | None) -> int:
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


def _min_new_tokens(merged: Merged, prompt_length: int, max_new_tokens: int) -> int:
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
        above = f"The minimum of {wanted} new tokens is above the maximum of {max_new_tokens}"
        name = "min_length" if merged.get("min_new_tokens") is None else "min_new_tokens"
        is_total = not merged.get("max_new_tokens") and merged.is_given("max_length")
        # Where one counts the prompt and the other does not, it is the prompt that decides.
        if merged.by_user(name) and is_total == (name == "min_length"):
            longer = "max_length" if is_total else "max_new_tokens"
            raise ValueError(f"{above} ({name}={merged.get(name)!r}): lower {name}, or raise {longer}.")
        warn_once(f"{above}; generation stops at the maximum.")
    return max(wanted, 0)


def _eos_token_ids(merged: Merged) -> tuple[int, ...]:
    return tuple(dict.fromkeys(merged.ids("eos_token_id")))


def _first_id(merged: Merged, name: str) -> int | None:
    return next(iter(merged.ids(name)), None)


def _pad_token_id(merged: Merged, eos_token_ids: tuple[int, ...]) -> int | None:
    pad_token_id = _first_id(merged, "pad_token_id")
    if pad_token_id is None and eos_token_ids:
        info_once(f"pad_token_id is not set; rows that ended are filled with eos_token_id {eos_token_ids[0]}.")
        return eos_token_ids[0]
    return pad_token_id


def _stop_strings(merged: Merged) -> tuple[str, ...]:
    value = merged.get("stop_strings")
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not all(isinstance(text, str) and text for text in strings):
        raise merged.error("stop_strings", "a text or a list of texts, none of them empty")
    return tuple(strings)
