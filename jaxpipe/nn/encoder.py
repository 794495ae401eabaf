"""What encoders share around their layers: the walk through them, and the heads."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.common.errors import ConfigError
from jaxpipe.common.outputs import BaseModelOutput, LogitsOutput, QuestionAnsweringOutput
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import Walk
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout import Direct, Transposed
from jaxpipe.nn.linear import Linear
from jaxpipe.sharding.rules import constrain

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


def head_output(out: BaseModelOutput, logits: Array) -> LogitsOutput:
    """Makes a head's output from the encoder's and the head's logits."""
    return LogitsOutput(logits=logits, hidden_states=out.hidden_states, attentions=out.attentions)


class VocabularyProjection(nnx.Module):
    """Logits over the vocabulary, with a weight of its own or the word embedding's, and a bias.

    Args:
        width: of the states.
        tied: with the word embedding.
        bias: whether there is one; it is never tied.
    """

    def __init__(self, init: Init, width: int, vocabulary: int, *, tied: bool, bias: bool = True):
        layout = Transposed("weight", (width, vocabulary))
        self.kernel = None if tied else init.param(("embed", "vocab"), (width, vocabulary), layout)
        shape = (vocabulary,)
        self.bias = init.param(("vocab",), shape, Direct("bias", shape), initializer="zeros") if bias else None

    def __call__(self, x: Array, embedding: Callable[[Array], Array]) -> Array:
        """Scores states x (B, T, D); `embedding` does so with the word embedding."""
        logits = embedding(x) if self.kernel is None else jnp.einsum("...d,dv->...v", x, self.kernel[...])
        if self.bias is not None:
            logits = logits + self.bias[...]
        return constrain(logits, "batch", "length", "vocab")  # (B, T, V)


class EncoderHead(nnx.Module):
    """An encoder with a head. An architecture extends it by the two that follow, its heads by `__call__`.

    Attributes of the class:
        base: attribute of the encoder, as the checkpoint has the name.
        width: key of the config that has the width of its states.
    """

    base: ClassVar[str]
    width: ClassVar[str] = "hidden_size"

    def __init__(self, config: Any, init: Init):
        setattr(self, self.base, self.encoder(config, init))

    @staticmethod
    def encoder(config: Any, init: Init) -> Any:
        """Makes the encoder; called with input_ids (B, T), it puts out a `BaseModelOutput`."""
        raise NotImplementedError

    @property
    def base_model(self) -> Any:
        """The encoder."""
        return getattr(self, self.base)

    def encode(self, input_ids: Array, **inputs: Any) -> BaseModelOutput:
        """Runs the encoder; its arguments are those of the bare model."""
        return self.base_model(input_ids, **inputs)

    def features(self, x: Array) -> Array:
        """What the head reads of the encoder's states x (..., D)."""
        return x


class TokenClassification(EncoderHead):
    """An encoder with a classifier on every token."""

    def __init__(self, config: Any, init: Init):
        super().__init__(config, init)
        self.classifier = Linear(init, config.hidden_size, config.num_labels)

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of the bare model."""
        out = self.encode(input_ids, **inputs)
        return head_output(out, self.classifier(self.features(out.last_hidden_state)))  # (B, T, labels)


class QuestionAnswering(EncoderHead):
    """An encoder with scores of every token as the first and as the last of an answer.

    Attributes of the class:
        span: attribute of the scores' projection, as the checkpoint has the name.
    """

    span: ClassVar[str] = "qa_outputs"

    def __init__(self, config: Any, init: Init):
        super().__init__(config, init)
        if config.num_labels != 2:
            raise ConfigError(
                f"config.json: question answering has 2 labels, the start and the end of the answer; found "
                f"{config.num_labels} in id2label or num_labels."
            )
        setattr(self, self.span, Linear(init, getattr(config, self.width), 2))

    def __call__(self, input_ids: Array, **inputs: Any) -> QuestionAnsweringOutput:
        """Runs the encoder; arguments as of the bare model."""
        out = self.encode(input_ids, **inputs)
        logits = getattr(self, self.span)(self.features(out.last_hidden_state))  # (B, T, 2)
        return QuestionAnsweringOutput(
            start_logits=logits[..., 0],
            end_logits=logits[..., 1],
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


class PooledClassification(EncoderHead):
    """An encoder that pools, with a classifier on what it pooled."""

    def __init__(self, config: Any, init: Init):
        super().__init__(config, init)
        self.classifier = Linear(init, config.hidden_size, config.num_labels)

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of the bare model."""
        out = self.encode(input_ids, **inputs)
        assert out.pooler_output is not None  # the class of the encoder pools
        return head_output(out, self.classifier(out.pooler_output))  # (B, labels)


class FirstTokenClassifier(nnx.Module):
    """Scores of the first token's state through a dense layer and an activation."""

    def __init__(self, init: Init, width: int, labels: int, act: str):
        self.dense = Linear(init, width, width)
        self.out_proj = Linear(init, width, labels)
        self.act = activation(act)

    def __call__(self, x: Array) -> Array:
        return self.out_proj(self.act(self.dense(x[:, 0])))  # (B, labels)


class FirstTokenClassification(EncoderHead):
    """An encoder with a classifier of two layers on the first token.

    Attributes of the class:
        act: name of the activation between them.
    """

    act: ClassVar[str] = "tanh"

    def __init__(self, config: Any, init: Init):
        super().__init__(config, init)
        self.classifier = FirstTokenClassifier(init, config.hidden_size, config.num_labels, self.act)

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of the bare model."""
        out = self.encode(input_ids, **inputs)
        return head_output(out, self.classifier(out.last_hidden_state))
