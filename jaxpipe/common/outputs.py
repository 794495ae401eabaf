"""Outputs of models: dataclasses that are pytrees, read by attribute, key or position."""

import dataclasses
from collections.abc import Iterator
from typing import Any, dataclass_transform

import jax

Array = jax.Array


@dataclass_transform()
class ModelOutput:
    """Base of the output dataclasses. ``out.logits``, ``out["logits"]`` and ``out[0]`` are the same;
    fields that are None are left out of ``keys``, ``to_tuple`` and positions, as in Transformers.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(cls)
        jax.tree_util.register_dataclass(cls)

    def keys(self) -> list[str]:
        """Names of the fields that are set."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None]  # type: ignore[arg-type]

    def to_tuple(self) -> tuple[Any, ...]:
        """Values of the fields that are set, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> list[tuple[str, Any]]:
        """Pairs of name and value of the fields that are set."""
        return [(name, getattr(self, name)) for name in self.keys()]

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in self.keys():
                raise KeyError(f"{type(self).__name__} has no {key!r}; it has {self.keys()}.")
            return getattr(self, key)
        return self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __len__(self) -> int:
        return len(self.keys())


class BaseModelOutput(ModelOutput):
    """Of a bare encoder or decoder: ``last_hidden_state`` (B, T, D), ``pooler_output`` (B, D),
    ``hidden_states`` L + 1 of (B, T, D), ``attentions`` L of (B, H, T, S), and a decoder's ``cache``
    where one was given.
    """

    last_hidden_state: Array
    pooler_output: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None
    cache: Any = None


class LogitsOutput(ModelOutput):
    """Of a head: ``logits`` (B, T, V) for a language model, (B, labels) for a classifier of sequences and
    (B, T, labels) for one of tokens.
    """

    logits: Array
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None
    cache: Any = None


class Seq2SeqModelOutput(ModelOutput):
    """Of an encoder-decoder without a head: ``last_hidden_state`` (B, T, D) of the decoder, its hidden states and
    attentions, those over the encoder's S tokens (``cross_attentions``, L of (B, H, T, S)), and what the encoder puts
    out.
    """

    last_hidden_state: Array
    decoder_hidden_states: tuple[Array, ...] | None = None
    decoder_attentions: tuple[Array, ...] | None = None
    cross_attentions: tuple[Array, ...] | None = None
    encoder_last_hidden_state: Array | None = None
    encoder_hidden_states: tuple[Array, ...] | None = None
    encoder_attentions: tuple[Array, ...] | None = None
    cache: Any = None


class Seq2SeqLogitsOutput(ModelOutput):
    """Of an encoder-decoder's head: ``logits`` (B, T, V), or (B, labels) of a classifier; the rest as in
    `Seq2SeqModelOutput`.
    """

    logits: Array
    decoder_hidden_states: tuple[Array, ...] | None = None
    decoder_attentions: tuple[Array, ...] | None = None
    cross_attentions: tuple[Array, ...] | None = None
    encoder_last_hidden_state: Array | None = None
    encoder_hidden_states: tuple[Array, ...] | None = None
    encoder_attentions: tuple[Array, ...] | None = None
    cache: Any = None


class QuestionAnsweringOutput(ModelOutput):
    """Of an extractive head: ``start_logits`` and ``end_logits`` (B, T), scores of every token as the first and the
    last of the answer.
    """

    start_logits: Array
    end_logits: Array
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None
