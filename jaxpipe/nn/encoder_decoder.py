"""What encoder-decoders share around their layers: the call of both halves, the walk, the language-model output."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.common.outputs import BaseModelOutput, Seq2SeqLogitsOutput, Seq2SeqModelOutput
from jaxpipe.nn.cross_attention import EncoderDecoderCache, Memory
from jaxpipe.nn.decoder import Walk
from jaxpipe.sharding.rules import constrain

Array = jax.Array
Embed = Callable[[Array], Array]  # ids (B, T) -> (B, T, D)


@dataclass
class DecoderWalk(Walk):
    """A `Walk` with the attentions to the encoder's output, (B, H, T, S) each."""

    cross: list[Array] = field(default_factory=list)


def run_decoder_layers(
    layers: Iterable[Callable[..., Any]],
    x: Array,
    *inputs: Any,
    memory: Memory,
    cache: EncoderDecoderCache | None,
    weights: bool,
) -> DecoderWalk:
    """Calls every ``layer(x, *inputs, memory, memory_span, layer_cache, weights)`` in turn.

    A layer returns x, its cache, and its probabilities over the decoder's own tokens and over the memory.
    """
    walk = DecoderWalk(x, [], [], None)
    span = memory.span(x.shape[1])
    written = []
    for i, layer in enumerate(layers):
        walk.states.append(x)
        layer_cache = cache.layers[i] if cache else None
        x, layer_cache, own, cross = layer(x, *inputs, memory.layers[i], span, layer_cache, weights)
        written.append(layer_cache)
        if weights:
            walk.attentions.append(own)
            walk.cross.append(cross)
    walk.x, walk.cache = x, cache.leave(written, x.shape[1]) if cache else None
    return walk


class EncoderDecoder(nnx.Module):
    """An encoder and a decoder around one embedding, without a head.

    Subclasses set:
        shared: the embedding of both.
        encoder: ``encoder(input_ids, embed, attention_mask, states, weights) -> BaseModelOutput``.
        decoder: ``decoder(ids, embed, mask, position_ids, memory, cache, weights) -> (DecoderWalk, normed x)``, with
            ``remember(states)`` making the layers' memory and ``cache_layers()``.
    """

    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")

    shared: Any
    encoder: Any
    decoder: Any

    def cache_layers(self) -> list[tuple[int, int]]:
        """Heads and head width of each layer's cache of the decoder's tokens."""
        return self.decoder.cache_layers()

    def memory_layers(self) -> list[tuple[int, int]]:
        """Heads and head width of each layer's memory of the encoder's output."""
        return self.decoder.cache_layers()

    def embed(self, ids: Array) -> Array:
        """Embeds ids (B, T); architectures that scale the embedding extend it."""
        return self.shared(ids)

    def decoder_ids(self, input_ids: Array) -> Array:
        """What the decoder reads where a call gives it no ids; architectures that derive them from the encoder's do."""
        raise ValueError(f"{type(self).__name__} needs decoder_input_ids, an int array (batch, length).")

    def __call__(
        self,
        input_ids: Array | None = None,
        *,
        attention_mask: Array | None = None,
        decoder_input_ids: Array | None = None,
        decoder_attention_mask: Array | None = None,
        decoder_position_ids: Array | None = None,
        cache: EncoderDecoderCache | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Seq2SeqModelOutput:
        """Runs both halves; with a cache that is not fresh, the decoder alone, on its memory.

        Args:
            input_ids: (B, S); None where the cache holds the memory.
            attention_mask: (B, S), of the encoder's tokens.
            decoder_input_ids: (B, T).
            decoder_attention_mask: (B, T), of the decoder's tokens.
            decoder_position_ids: (B, T), with a cache.
            cache: of the decoder's tokens before the call.
            output_hidden_states, output_attentions: put out the states, the probabilities.
        """
        encoded: BaseModelOutput | None = None
        memory = cache.memory if cache is not None else None
        if memory is None:
            if input_ids is None:
                raise ValueError(f"{type(self).__name__} needs input_ids, an int array (batch, length).")
            switches = output_hidden_states, output_attentions
            out: BaseModelOutput = self.encoder(input_ids, self.embed, attention_mask, *switches)
            memory = Memory(tuple(self.decoder.remember(out.last_hidden_state)), attention_mask)
            encoded = out
        if decoder_input_ids is None:
            assert input_ids is not None  # a cache that is not fresh comes with decoder_input_ids
            decoder_input_ids = self.decoder_ids(input_ids)
        if cache is not None:
            cache = replace(cache.enter(decoder_position_ids, decoder_attention_mask), memory=memory)
        walk, x = self.decoder(
            decoder_input_ids,
            self.embed,
            decoder_attention_mask,
            decoder_position_ids,
            memory,
            cache,
            output_attentions,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=x,
            decoder_hidden_states=(*walk.states, x) if output_hidden_states else None,
            decoder_attentions=tuple(walk.attentions) or None,
            cross_attentions=tuple(walk.cross) or None,
            encoder_last_hidden_state=encoded.last_hidden_state if encoded else None,
            encoder_hidden_states=encoded.hidden_states if encoded else None,
            encoder_attentions=encoded.attentions if encoded else None,
            cache=walk.cache,
        )


def with_logits(out: Seq2SeqModelOutput, logits: Array) -> Seq2SeqLogitsOutput:
    """Returns the output of a head."""
    rest = {name: value for name, value in out.items() if name != "last_hidden_state"}
    return Seq2SeqLogitsOutput(logits=logits, **rest)


def seq2seq_output(out: Seq2SeqModelOutput, head: Callable[[Array], Array], last: Array | None) -> Seq2SeqLogitsOutput:
    """Applies a language-model head; `last` (B,) picks the one column of each row whose logits are wanted."""
    x = out.last_hidden_state
    if last is not None:
        x = x[jnp.arange(x.shape[0]), last][:, None]  # (B, 1, D)
    return with_logits(out, constrain(head(x), "batch", None, "vocab"))  # (B, T, V)
