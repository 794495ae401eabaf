"""What decoders share around their layers: the walk through them, and the language-model output."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.common.outputs import BaseModelOutput, LogitsOutput
from jaxpipe.nn.attention import Span, causal_span, full_span
from jaxpipe.nn.cache import Cache
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import Linear
from jaxpipe.sharding.rules import constrain

Array = jax.Array


@dataclass
class Walk:
    """What a walk through the layers leaves: x (B, T, D) after the last, states before each, attentions, cache."""

    x: Array
    states: list[Array]
    attentions: list[Array]
    cache: Cache | None

    def finish(self, x: Array, hidden_states: bool) -> BaseModelOutput:
        """Makes the output with x (B, T, D), which the final norm has been through."""
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=(*self.states, x) if hidden_states else None,
            attentions=tuple(self.attentions) or None,
            cache=self.cache,
        )


def run_layers(layers: Iterable[Any], x: Array, *inputs: Any, cache: Cache | None, weights: bool) -> Walk:
    """Calls every ``layer(x, *inputs, layer_cache, weights) -> (x, layer_cache, probabilities)`` in turn."""
    states, attentions, written = [], [], []
    for i, layer in enumerate(layers):
        states.append(x)
        x, layer_cache, probabilities = layer(x, *inputs, cache.layers[i] if cache else None, weights)
        written.append(layer_cache)
        if probabilities is not None:
            attentions.append(probabilities)
    return Walk(x, states, attentions, cache.leave(written, x.shape[1]) if cache else None)


def run_decoder(
    layers: Iterable[Any],
    norm: Callable[[Array], Array],
    rope: Callable[[Array, Array | None], Any] | None,
    x: Array,
    *,
    bias: Callable[[Span, Array | None], Any] | None = None,
    attention_mask: Array | None = None,
    position_ids: Array | None = None,
    cache: Cache | None = None,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    bidirectional: bool = False,
) -> BaseModelOutput:
    """Runs everything between the embedding and the head of a decoder.

    Args:
        layers: each called as ``layer(x, span, table, layer_cache, weights)``, or without a table where neither
            `rope` nor `bias` makes one; see `run_layers`.
        norm: after the last layer.
        rope: makes the layers' `table` of positions (1 or B, T) and of the mask; a `Rope` or `LayerRopes`.
        x: (B, T, D) embedded tokens.
        bias: makes the layers' table of the span and of the mask.
        attention_mask, position_ids: (B, T); see `causal_span`.
        cache: of the tokens before the call.
        bidirectional: tokens see later ones too, as in embedding models made of decoders.

    Raises:
        ValueError: a cache for a model whose tokens see later ones.
    """
    if bidirectional and cache is not None:
        raise ValueError("The model's tokens see later ones (use_bidirectional_attention): it cannot generate.")
    x = constrain(x, "batch", "length", None)  # (B, T, D)
    if cache is not None:
        cache = cache.enter(position_ids, attention_mask)
    if bidirectional:
        span = full_span(x.shape[1], attention_mask)
    else:
        span = causal_span(x.shape[1], attention_mask, position_ids, cache)
    tables = []
    if rope is not None:
        tables.append(rope(span.queries if position_ids is None else position_ids, attention_mask))
    if bias is not None:
        tables.append(bias(span, attention_mask))
    out = run_layers(layers, x, span, *tables, cache=cache, weights=output_attentions)
    return out.finish(norm(out.x), output_hidden_states)


def language_model_output(out: BaseModelOutput, head: Callable[[Array], Array], last: Array | None) -> LogitsOutput:
    """Applies the head; `last` (B,) picks the one column of each row whose logits are wanted."""
    x = out.last_hidden_state
    if last is not None:
        x = x[jnp.arange(x.shape[0]), last][:, None]  # (B, 1, D)
    return LogitsOutput(
        logits=constrain(head(x), "batch", None, "vocab"),  # (B, T, V)
        hidden_states=out.hidden_states,
        attentions=out.attentions,
        cache=out.cache,
    )


class CausalLM(nnx.Module):
    """A decoder with a language-model head, which is its embedding where the two are tied, else apart.

    Args:
        model: the decoder; called with input_ids (B, T), it puts out a `BaseModelOutput`.
        width, vocabulary: D and V.
        tied: the head is the embedding.
        bias: of a head apart.

    Attributes of the class, as the checkpoint has the names:
        base: attribute of the decoder.
        embedding: attribute of the tokens' embedding in it, with dots.
        head: attribute of a head apart.
    """

    base: ClassVar[str] = "model"
    embedding: ClassVar[str] = "embed_tokens"
    head: ClassVar[str] = "lm_head"

    def __init__(self, init: Init, model: Any, width: int, vocabulary: int, *, tied: bool, bias: bool = False):
        setattr(self, self.base, model)
        head = None if tied else Linear(init, width, vocabulary, bias=bias, axes=("embed", "vocab"))
        setattr(self, self.head, head)

    def cache_layers(self) -> list[Any]:
        """What each layer keeps of the tokens before a call; see `nn.cache.Cache.empty`."""
        return getattr(self, self.base).cache_layers()

    def logits(self, x: Array) -> Array:
        """Scores (B, T, V) of states x (B, T, D); architectures that scale or cap them extend it."""
        head = getattr(self, self.head)
        return attrgetter(self.embedding)(getattr(self, self.base)).attend(x) if head is None else head(x)

    def __call__(self, input_ids: Array, *, last: Array | None = None, **inputs: Any) -> LogitsOutput:
        """Runs the decoder; `last` (B,) picks the one column of each row whose logits are computed."""
        return language_model_output(getattr(self, self.base)(input_ids, **inputs), self.logits, last)


def head_scores(module: Any, x: Array) -> Array:
    """Returns scores (B, T, V) of states x (B, T, D) by the head alone, neither scaled nor capped by an architecture.

    Args:
        module: a causal language model.
        x: of any layer.
    """
    return CausalLM.logits(module, x) if isinstance(module, CausalLM) else module.logits(x)
