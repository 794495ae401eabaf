"""DoLa, decoding by contrasting layers (Chuang et al., 2023; arXiv 2309.03883), with the rules of Transformers 4.49.

The head reads the states of some early layers too. Of these, the one whose distribution differs most from the last
layer's is subtracted from it, and tokens that the last layer finds much less likely than its best are left out.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxpipe.generation.step import StepState, drop
from jaxpipe.kernels.compute import tracing_for
from jaxpipe.nn.decoder import head_scores
from jaxpipe.nn.functional import Functional, Leaves
from jaxpipe.nn.ssm import SSMShape

Array = jax.Array

# Tokens below this share of the most likely one's probability are left out (arXiv 2309.03883, section 2.3).
RELATIVE_TOP = 0.1
# Layers of a half of a deep model, and the depth above which it counts as one.
_HALF, _DEEP = 20, 40


def early_layers(asked: str | tuple[int, ...], layers: int, tied: bool) -> tuple[int, ...]:
    """Returns which states are contrasted with the last; 0 is the embedding.

    Args:
        asked: ``dola_layers``: ``"low"``, ``"high"``, or the layers themselves.
        layers: L, of the model.
        tied: the head is the embedding, so that its own layer says nothing.

    Raises:
        ValueError: there is none, or one is not below L.
    """
    if not isinstance(asked, str):
        if max(asked) >= layers:
            raise ValueError(
                f"dola_layers={list(asked)}: expected layers from 0, the embedding, to {layers - 1}; the model has "
                f"{layers} layers, and the last is what the others are contrasted with."
            )
        return asked
    half = layers // 2
    if asked == "high":
        return tuple(range(half, layers, 2) if layers <= _DEEP else range(layers - _HALF, layers, 2))
    first = 0 if not tied else 2 if layers > 2 else layers - 1
    if first == half:
        return (first,)
    low = tuple(range(first, half if layers <= _DEEP else _HALF, 2))
    if not low:
        raise ValueError(
            f'dola_layers="low" leaves no layer of a model with {layers} layers whose head is its embedding; pass a '
            "list, such as dola_layers=[1]."
        )
    return low


def check_dola(asked: str | tuple[int, ...], layers: list[Any], has_encoder: bool, model_type: str) -> None:
    """Raises ValueError where a model has an encoder or recurrent layers, for which DoLa is not defined.

    Args:
        asked: ``dola_layers``.
        layers: shapes of what each layer remembers.
        has_encoder: the decoder is not alone.
        model_type: of the model.
    """
    reason = "has an encoder" if has_encoder else None
    if any(isinstance(layer, SSMShape) for layer in layers):
        reason = "has recurrent layers"
    if reason is not None:
        raise ValueError(
            f"dola_layers={asked!r}: DoLa is for decoders made of attention layers, and {model_type!r} {reason}; leave "
            "it out."
        )


@dataclass(frozen=True)
class LayerLogits(Functional):
    """A causal language model whose calls put out the logits of early layers too, as rows after each row's own.

    Attributes:
        layers: n numbers of states, see `early_layers`.
    """

    layers: tuple[int, ...] = ()

    @classmethod
    def of(cls, functional: Functional, layers: tuple[int, ...]) -> "LayerLogits":
        """Makes it of a model."""
        return cls(**vars(functional), layers=layers)

    def call(self, leaves: Leaves, *args: Any, **kwargs: Any) -> Any:
        """Calls the module on B rows for one column each; logits are (B * (1 + n), 1, V) float32."""
        last = kwargs.get("last")
        with tracing_for(self.mesh.devices.flat[0].platform, self.dtype, self.matmul_precision):
            module = self.module(leaves)
            out = module(*args, output_hidden_states=True, **kwargs)
            states = [out.hidden_states[layer] for layer in self.layers]
            widths = {state.shape[-1] for state in (*states, out.hidden_states[-1])}
            if len(widths) > 1:
                raise ValueError(
                    f"dola_layers: the model's states have different widths, {sorted(widths)}, so its head cannot "
                    "read early layers; leave it out."
                )
            if last is None:
                columns = [state[:, -1] for state in states]
            else:
                columns = [state[jnp.arange(len(last)), last] for state in states]  # (B, D) each
            early = head_scores(module, jnp.stack(columns, axis=1))  # (B, n, V)
        logits = jnp.concatenate([out.logits.astype(jnp.float32), early.astype(jnp.float32)], axis=1)
        return replace(out, logits=logits.reshape(-1, 1, logits.shape[-1]))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerContrast:
    """Makes one row of scores of the last layer's logits and those of the early layers."""

    def __call__(self, logits: Array, state: StepState) -> Array:
        """Returns (B, V) of logits (B * (1 + n), V), the last layer's first; -inf at what is left out."""
        scores = jax.nn.log_softmax(logits.reshape(len(state.tokens), -1, logits.shape[-1]), axis=-1)
        last, early = scores[:, 0], scores[:, 1:]  # (B, V), (B, n, V)
        if early.shape[1] > 1:
            index = jnp.argmax(_divergences(last[:, None], early), axis=1)  # (B,)
            early = jnp.take_along_axis(early, index[:, None, None], axis=1)
        likely = last >= jnp.max(last, axis=-1, keepdims=True) + math.log(RELATIVE_TOP)
        return drop(last - early[:, 0], ~likely)


def _divergences(last: Array, early: Array) -> Array:
    """Jensen-Shannon divergences (B, n), as Transformers has them, of log-probabilities (B, 1, V) and (B, n, V).

    The mean of both is compared with each, not each with the mean.
    """
    mean = 0.5 * (jnp.exp(last) + jnp.exp(early))  # (B, n, V)
    entropy = jax.scipy.special.xlogy(mean, mean)
    return jnp.mean(entropy - 0.5 * mean * (last + early), axis=-1)
