"""What speculative decoding asks of a call, of the model and of its assistant, before anything compiles."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from flax import nnx

from jaxpipe.common.logging import info_once
from jaxpipe.generation.assisted import Assistant
from jaxpipe.generation.inputs import Prompts
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.settle_assisted import ASSISTANT_ONLY, SCHEDULES
from jaxpipe.generation.speculative import Rule
from jaxpipe.generation.step import bucket
from jaxpipe.models.config import ModelConfig
from jaxpipe.nn.functional import Functional, Leaves
from jaxpipe.nn.rope import LayerRopes, Rope

# Tokens of a call of the model, the last chosen one and those proposed: few values, and kind to matrix units.
_WIDTHS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)

DEFAULTS = {
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": SCHEDULES[0],
    "assistant_confidence_threshold": 0.4,
}
"""Values that hold where neither the call nor the assistant's generation config sets one (Transformers 5.23)."""


def width_for(proposed: int) -> int:
    """Returns the number of tokens that the model is called on where that many may be proposed."""
    return next((width for width in _WIDTHS if width > proposed), -(-(proposed + 1) // 64) * 64)


def rule_for(settled: Settled, assistant: Assistant | None) -> Rule:
    """Returns how tokens are proposed.

    Args:
        settled: the settings of a call.
        assistant: what proposes; None is prompt lookup.

    Raises:
        ValueError: a setting in the assistant's generation config is out of range.
    """
    count, schedule, threshold = settled.prompt_lookup_num_tokens, SCHEDULES[0], 0.0
    if assistant is not None:
        count, schedule, threshold = _assistant_settings(settled, assistant)
    # No more can be accepted than there may come.
    count = min(count, max(settled.max_new_tokens - 1, 1))
    adaptive = schedule != SCHEDULES[0]
    most = max(count, DEFAULTS["num_assistant_tokens"]) if adaptive else count
    ngram = settled.max_matching_ngram_size
    return Rule(
        count=np.int32(count),
        max_new_tokens=np.int32(settled.max_new_tokens),
        ngram=np.int32(ngram),
        adaptive=np.bool_(adaptive),
        threshold=np.float32(threshold),
        width=width_for(most),
        most=bucket(ngram, smallest=2) if assistant is None else 0,
    )


def schedule_of(settled: Settled, assistant: Assistant) -> str:
    """Returns how the number of proposed tokens changes, one of `SCHEDULES`."""
    return _assistant_settings(settled, assistant)[1]


def _assistant_settings(settled: Settled, assistant: Assistant) -> tuple[int, str, float]:
    values: dict[str, Any] = dict(DEFAULTS)
    for name, default in DEFAULTS.items():
        own, asked = getattr(assistant.defaults, name, None), getattr(settled, name)
        values[name] = asked if asked is not None else own if own is not None else default
    count, schedule, threshold = values.values()
    where = f"in the generation_config of the assistant_model {assistant.name}"
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"num_assistant_tokens={count!r} {where}: expected an integer of at least 1.")
    if schedule not in SCHEDULES:
        raise ValueError(
            f"num_assistant_tokens_schedule={schedule!r} {where}: expected one of {', '.join(map(repr, SCHEDULES))}."
        )
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0.0 <= threshold <= 1.0:
        raise ValueError(f"assistant_confidence_threshold={threshold!r} {where}: expected a number from 0 to 1.")
    return int(count), schedule, float(threshold)


def check_speculation(
    settled: Settled,
    prompts: Prompts,
    functional: Functional,
    leaves: Leaves,
    config: ModelConfig,
    assistant: Assistant | None,
    tokenizers: tuple[Any, Any] = (None, None),
) -> bool:
    """Returns whether a call decodes speculatively, after checking it.

    Args:
        settled: the settings.
        prompts: of the call.
        functional, leaves, config: of the model.
        assistant: the call's, or None.
        tokenizers: of the model and of the assistant, as given.

    Raises:
        ValueError: the call asks for another way of decoding as well, the model cannot go back in its text, or the
            assistant does not fit the model.
    """
    lookup = settled.prompt_lookup_num_tokens
    if assistant is None:
        if tokenizers[1] is not None:
            raise ValueError("assistant_tokenizer= is given without assistant_model=; give both or none.")
        _note_unused(settled)
        if not lookup:
            return False
    what = f"prompt_lookup_num_tokens={lookup}" if assistant is None else f"assistant_model={assistant.name}"
    if assistant is not None and lookup:
        raise ValueError(f"{what} and prompt_lookup_num_tokens={lookup} both propose tokens; give one of them.")
    others = {
        "num_beams": (settled.num_beams, 1),
        "penalty_alpha": (settled.penalty_alpha if settled.candidates else 0, 0),
        "dola_layers": (settled.dola_layers, None),
        "guidance_scale": (settled.guidance_scale, 1.0),
    }
    for name, (value, neutral) in others.items():
        if value != neutral:
            raise ValueError(
                f"{what} cannot be used with {name}={value!r}: only greedy decoding and sampling can be speculative. "
                f"Leave one of them out; {name}={neutral!r} is neutral."
            )
    rule = rule_for(settled, assistant)
    _check_rollback(functional, leaves, config.model_type, what)
    _check_frequencies(settled, prompts, functional, leaves, config.model_type, what, rule.width)
    if assistant is not None:
        _check_assistant(settled, prompts, functional, config, assistant, tokenizers)
        _check_rollback(assistant.functional, assistant.leaves, assistant.config.model_type, what)
    return True


def _note_unused(settled: Settled) -> None:
    for name in ASSISTANT_ONLY:
        if getattr(settled, name) is not None:
            info_once(f"{name} is accepted and has no effect: it only acts with assistant_model.")


def _check_rollback(functional: Functional, leaves: Leaves, model_type: str, what: str) -> None:
    for layer in functional.module(leaves).cache_layers():
        if not isinstance(layer, tuple):
            raise ValueError(
                f"{what}: tokens that are proposed in vain must be taken back, but {model_type!r} keeps a running "
                f"state ({type(layer).__name__}), which cannot go back. Leave it out."
            )


def _ropes(module: Any) -> Iterator[Rope]:
    for _, part in nnx.iter_modules(module):
        for value in vars(part).values():
            if isinstance(value, Rope):
                yield value
            elif isinstance(value, LayerRopes):
                yield from (rope for _, rope in value.ropes)


def _check_frequencies(
    settled: Settled,
    prompts: Prompts,
    functional: Functional,
    leaves: Leaves,
    model_type: str,
    what: str,
    width: int,
) -> None:
    """Refuses texts in which a rotation depends on how long the text is: tokens of one call would share one length."""
    longest = prompts.longest() + settled.max_new_tokens + width
    for rope in _ropes(functional.module(leaves)):
        limit = rope.longest_unscaled
        if limit is not None and longest > limit:
            raise ValueError(
                f"{what}: beyond {limit} tokens the rotary frequencies of {model_type!r} depend on the length of the "
                f"text, and several tokens cannot be read at once; the prompt, max_new_tokens="
                f"{settled.max_new_tokens} and what is proposed come to {longest}. Leave it out or shorten the text."
            )


def _check_assistant(
    settled: Settled,
    prompts: Prompts,
    functional: Functional,
    config: ModelConfig,
    assistant: Assistant,
    tokenizers: tuple[Any, Any],
) -> None:
    name, other = assistant.name, assistant.config
    has_encoder = bool(getattr(other, "is_encoder_decoder", False))
    if has_encoder != (prompts.source_rows() is not None):
        kinds = ("a decoder", "an encoder-decoder")
        raise ValueError(
            f"assistant_model={name} is {kinds[has_encoder]} ({other.model_type!r}), but the model is "
            f"{kinds[not has_encoder]} ({config.model_type!r}); both must be of one kind."
        )
    if assistant.functional.mesh != functional.mesh:
        raise ValueError(
            f"assistant_model={name} lies on the mesh {dict(assistant.functional.mesh.shape)} of "
            f"{assistant.functional.mesh.devices.size} device(s), the model on {dict(functional.mesh.shape)} of "
            f"{functional.mesh.devices.size}: load it with mesh=model.mesh."
        )
    _check_vocabulary(config, assistant, tokenizers)
    source = prompts.source_rows()
    longest = other.longest_input()
    if longest is not None and source is not None and max(map(len, source)) > longest:
        raise ValueError(
            f"input_ids has {max(map(len, source))} tokens, but assistant_model={name} has positions for {longest}."
        )
    # The assistant reads all but the last token, and what it proposes but the last.
    prompts.check_room(settled.max_new_tokens, longest, f"{other.model_type} (assistant_model)")


def _check_vocabulary(config: ModelConfig, assistant: Assistant, tokenizers: tuple[Any, Any]) -> None:
    sizes = config.vocab_size, assistant.config.vocab_size
    if tokenizers[1] is None:
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"assistant_model={assistant.name} has a vocabulary of {sizes[1]} tokens, the model one of {sizes[0]}. "
                "If both have the same tokens and are padded differently, pass tokenizer= and assistant_tokenizer= to "
                "show it; another vocabulary is not supported."
            )
        return
    if tokenizers[0] is None:
        raise ValueError("assistant_tokenizer= is given without tokenizer=, the model's own; give both.")
    own, other = (tokenizer.get_vocab() for tokenizer in tokenizers)
    if own != other:
        different = next(iter(sorted(set(own.items()) ^ set(other.items()), key=lambda entry: entry[1])))
        raise ValueError(
            f"assistant_tokenizer= is another vocabulary than tokenizer= ({len(other)} and {len(own)} tokens; "
            f"{different[0]!r} with id {different[1]} is in one of them): an assistant proposes tokens of the model's "
            "own vocabulary. Use an assistant_model of the same family."
        )
