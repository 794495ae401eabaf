"""BERT's blocks, which its descendants share, under the names that their checkpoints give them."""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.nn.activations import activation
from jaxpipe.nn.attention import Span, attend
from jaxpipe.nn.embedding import Embedding
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout import Direct
from jaxpipe.nn.linear import HeadsOutProjection, Linear, QKVProjection
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.sharding.rules import constrain

Array = jax.Array


class BertSizes(Protocol):
    """What the blocks read of a config."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    max_position_embeddings: int
    layer_norm_eps: float


class TypedSizes(BertSizes, Protocol):
    """Of an architecture with token types."""

    type_vocab_size: int


class BertEmbeddings(nnx.Module):
    """The sum of the embeddings of word, token type and position, normalised.

    Args:
        width: of the tables, where it is not the model's.
    """

    def __init__(self, config: TypedSizes, init: Init, *, width: int = 0):
        width = width or config.hidden_size
        self.word_embeddings = Embedding(init, config.vocab_size, width, axis="vocab")
        self.position_embeddings = Embedding(init, config.max_position_embeddings, width)
        self.token_type_embeddings = Embedding(init, config.type_vocab_size, width)
        self.LayerNorm = LayerNorm(init, width, config.layer_norm_eps)

    def __call__(self, input_ids: Array, token_type_ids: Array | None, position_ids: Array | None) -> Array:
        if position_ids is None:
            position_ids = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None]
        if token_type_ids is None:
            token_type_ids = jnp.zeros((1, 1), jnp.int32)
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = x + self.position_embeddings(position_ids)
        return constrain(self.LayerNorm(x), "batch", "length", None)  # (B, T, D)


class BertSelfAttention(nnx.Module):
    """Self-attention in both directions, before its output projection."""

    def __init__(self, config: BertSizes, init: Init):
        heads = config.num_attention_heads
        head_dim = config.hidden_size // heads
        names = ("query", "key", "value")
        self.qkv_proj = QKVProjection(init, config.hidden_size, heads, heads, head_dim, bias=True, names=names)
        self.scale = head_dim**-0.5

    def __call__(self, x: Array, span: Span, weights: bool) -> tuple[Array, Array | None]:
        q, k, v = self.qkv_proj(x)  # (B, T, H, h) each
        out, _, probabilities = attend(q, k, v, span, scale=self.scale, weights=weights)
        return out, probabilities  # (B, T, H, h), (B, H, T, T)


class BertResidual(nnx.Module):
    """A projection, added to the residual and normalised: the end of attention and of the MLP."""

    def __init__(self, config: BertSizes, init: Init, dense: Linear | HeadsOutProjection):
        self.dense = dense
        self.LayerNorm = LayerNorm(init, config.hidden_size, config.layer_norm_eps)

    def __call__(self, x: Array, residual: Array) -> Array:
        return self.LayerNorm(self.dense(x) + residual)  # (B, T, D)


def attention_residual(config: BertSizes, init: Init) -> BertResidual:
    """Makes the residual after attention."""
    width, heads = config.hidden_size, config.num_attention_heads
    return BertResidual(config, init, HeadsOutProjection(init, heads, heads, width // heads, width, bias=True))


class BertAttention(nnx.Module):
    """Self-attention with its residual."""

    def __init__(self, config: BertSizes, init: Init):
        self.self = BertSelfAttention(config, init)
        self.output = attention_residual(config, init)

    def __call__(self, x: Array, span: Span, weights: bool) -> tuple[Array, Array | None]:
        out, probabilities = self.self(x, span, weights)
        return self.output(out, x), probabilities


class BertIntermediate(nnx.Module):
    """The first half of the MLP."""

    def __init__(self, config: BertSizes, init: Init):
        self.dense = Linear(init, config.hidden_size, config.intermediate_size, axes=("embed", "mlp"))
        self.act = activation(config.hidden_act)

    def __call__(self, x: Array) -> Array:
        return self.act(self.dense(x))  # (B, T, F)


class BertLayer(nnx.Module):
    """Attention and MLP, each normalised after it was added to the residual.

    Args:
        attention: called as ``attention(x, *inputs, weights)``; `BertAttention` by default.
    """

    def __init__(self, config: BertSizes, init: Init, attention: nnx.Module | None = None):
        self.attention = attention or BertAttention(config, init)
        self.intermediate = BertIntermediate(config, init)
        dense = Linear(init, config.intermediate_size, config.hidden_size, axes=("mlp", "embed"))
        self.output = BertResidual(config, init, dense)

    def __call__(self, x: Array, *inputs: Span | Array | bool | None) -> tuple[Array, Array | None]:
        x, probabilities = self.attention(x, *inputs)  # type: ignore[operator]
        x = self.output(self.intermediate(x), x)
        return constrain(x, "batch", "length", None), probabilities  # (B, T, D)


class BertEncoder(nnx.Module):
    """The layers."""

    def __init__(self, config: BertSizes, init: Init):
        self.layer = nnx.List([BertLayer(config, init) for _ in range(config.num_hidden_layers)])


class BertPooler(nnx.Module):
    """The first token's state through a tanh layer."""

    def __init__(self, config: BertSizes, init: Init):
        self.dense = Linear(init, config.hidden_size, config.hidden_size)

    def __call__(self, x: Array) -> Array:
        return jnp.tanh(self.dense(x[:, 0]))  # (B, D)


class TiedDecoder(nnx.Module):
    """Logits over the vocabulary: the word embedding with a bias beside it, or a projection ``decoder`` of its own.

    Args:
        width: of the states.
        tied: with the word embedding.
    """

    def __init__(self, init: Init, width: int, vocabulary: int, *, tied: bool):
        layout = Direct("bias", (vocabulary,))
        self.bias = init.param(("vocab",), (vocabulary,), layout, initializer="zeros") if tied else None
        self.decoder = None if tied else Linear(init, width, vocabulary, axes=("embed", "vocab"))

    def decode(self, x: Array, embedding: Callable[[Array], Array]) -> Array:
        """Scores states x (B, T, D); `embedding` does so with the word embedding."""
        logits = self.decoder(x) if self.decoder is not None else embedding(x)
        if self.bias is not None:
            logits = logits + self.bias[...]
        return constrain(logits, "batch", "length", "vocab")  # (B, T, V)


class PredictionTransform(nnx.Module):
    """What comes before the decoder of BERT's masked language model: dense, activation and norm.

    Args:
        width: of the word embedding, where it is not the model's.
        norm: name of the norm in the checkpoint.
    """

    def __init__(self, config: BertSizes, init: Init, *, width: int = 0, norm: str = "LayerNorm"):
        width = width or config.hidden_size
        self.dense = Linear(init, config.hidden_size, width)
        self.act = activation(config.hidden_act)
        setattr(self, norm, LayerNorm(init, width, config.layer_norm_eps))
        self.norm = norm

    def __call__(self, x: Array) -> Array:
        return getattr(self, self.norm)(self.act(self.dense(x)))


class PredictionHead(TiedDecoder):
    """BERT's masked language model's head: ``transform`` and ``decoder``; see `PredictionTransform`."""

    def __init__(self, config: BertSizes, init: Init, *, tied: bool, width: int = 0, norm: str = "LayerNorm"):
        super().__init__(init, width or config.hidden_size, config.vocab_size, tied=tied)
        self.transform = PredictionTransform(config, init, width=width, norm=norm)

    def __call__(self, x: Array, embedding: Callable[[Array], Array]) -> Array:
        return self.decode(self.transform(x), embedding)


class Predictions(nnx.Module):
    """The head under the attribute ``predictions``, as it lies in BERT's checkpoints."""

    def __init__(self, config: BertSizes, init: Init, *, tied: bool, width: int = 0, norm: str = "LayerNorm"):
        self.predictions = PredictionHead(config, init, tied=tied, width=width, norm=norm)


class FlatPredictionHead(TiedDecoder):
    """The same head without the name ``transform``: dense, activation, ``LayerNorm`` and decoder side by side.

    Args:
        width: of the word embedding, where it is not the model's.
    """

    def __init__(self, config: BertSizes, init: Init, *, tied: bool, width: int = 0):
        width = width or config.hidden_size
        super().__init__(init, width, config.vocab_size, tied=tied)
        self.dense = Linear(init, config.hidden_size, width)
        self.LayerNorm = LayerNorm(init, width, config.layer_norm_eps)
        self.act = activation(config.hidden_act)

    def __call__(self, x: Array, embedding: Callable[[Array], Array]) -> Array:
        return self.decode(self.LayerNorm(self.act(self.dense(x))), embedding)


class LMHead(TiedDecoder):
    """RoBERTa's masked language model's head: dense, GELU, ``layer_norm`` and decoder."""

    def __init__(self, config: BertSizes, init: Init, *, tied: bool):
        super().__init__(init, config.hidden_size, config.vocab_size, tied=tied)
        self.dense = Linear(init, config.hidden_size, config.hidden_size)
        self.layer_norm = LayerNorm(init, config.hidden_size, config.layer_norm_eps)

    def __call__(self, x: Array, embedding: Callable[[Array], Array]) -> Array:
        return self.decode(self.layer_norm(activation("gelu")(self.dense(x))), embedding)


def positions_from_ids(input_ids: Array, pad: int) -> Array:
    """Positions (B, T) that count from ``pad + 1`` on the tokens that are not the padding token, which have `pad`."""
    token = (input_ids != pad).astype(jnp.int32)
    return jnp.cumsum(token, axis=1) * token + pad
