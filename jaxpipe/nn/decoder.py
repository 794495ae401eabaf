"""What decoders share around their layers: the walk through them, and the language-model output."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpipe.common.outputs import BaseModelOutput, LogitsOutput
from jaxpipe.nn.cache import Cache
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
