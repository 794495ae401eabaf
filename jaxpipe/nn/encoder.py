"""What encoders share around their layers: the walk through them."""

from collections.abc import Iterable
from typing import Any

import jax

from jaxpipe.nn.decoder import Walk

Array = jax.Array


def run_encoder(layers: Iterable[Any], x: Array, *inputs: Any, weights: bool) -> Walk:
    """Calls every ``layer(x, *inputs, weights) -> (x, probabilities)`` in turn."""
    states, attentions = [], []
    for layer in layers:
        states.append(x)
        x, probabilities = layer(x, *inputs, weights)
        if probabilities is not None:
            attentions.append(probabilities)
    return Walk(x, states, attentions, None)
