"""BERT (Devlin et al., 2019; arXiv 1810.04805), as google-bert/bert-base-uncased holds it."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.common.errors import ConfigError
from jaxpipe.common.outputs import BaseModelOutput, LogitsOutput
from jaxpipe.models.config import ModelConfig
from jaxpipe.models.registry import BASE, MASKED_LM, SEQUENCE_CLASSIFICATION, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.attention import Span, attend, full_span
from jaxpipe.nn.embedding import Embedding
from jaxpipe.nn.encoder import run_encoder
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout import Direct
from jaxpipe.nn.linear import HeadsOutProjection, Linear, QKVProjection
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.sharding.rules import constrain

Array = jax.Array


class BertConfig(ModelConfig):
    """Configuration of BERT."""

    model_type: ClassVar[str] = "bert"
    # Left in config.json by the scripts that converted and distilled old checkpoints.
    inert: ClassVar[frozenset[str]] = frozenset(
        """directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head
        pooler_type""".split()
    )
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"position_embedding_type": ("absolute", None)}

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.hidden_act)
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"config.json: hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}."
            )

    def limits(self) -> dict[str, int]:
        """First value out of range of each input."""
        return {
            "input_ids": self.vocab_size,
            "token_type_ids": self.type_vocab_size,
            "position_ids": self.max_position_embeddings,
        }


class BertEmbeddings(nnx.Module):
    """The sum of the embeddings of word, token type and position, normalised."""

    def __init__(self, config: BertConfig, init: Init):
        width = config.hidden_size
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

    def __init__(self, config: BertConfig, init: Init):
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

    def __init__(self, config: BertConfig, init: Init, dense: Linear | HeadsOutProjection):
        self.dense = dense
        self.LayerNorm = LayerNorm(init, config.hidden_size, config.layer_norm_eps)

    def __call__(self, x: Array, residual: Array) -> Array:
        return self.LayerNorm(self.dense(x) + residual)  # (B, T, D)


class BertAttention(nnx.Module):
    """Self-attention with its residual."""

    def __init__(self, config: BertConfig, init: Init):
        width, heads = config.hidden_size, config.num_attention_heads
        self.self = BertSelfAttention(config, init)
        dense = HeadsOutProjection(init, heads, heads, width // heads, width, bias=True)
        self.output = BertResidual(config, init, dense)

    def __call__(self, x: Array, span: Span, weights: bool) -> tuple[Array, Array | None]:
        out, probabilities = self.self(x, span, weights)
        return self.output(out, x), probabilities


class BertIntermediate(nnx.Module):
    """The first half of the MLP."""

    def __init__(self, config: BertConfig, init: Init):
        self.dense = Linear(init, config.hidden_size, config.intermediate_size, axes=("embed", "mlp"))
        self.act = activation(config.hidden_act)

    def __call__(self, x: Array) -> Array:
        return self.act(self.dense(x))  # (B, T, F)


class BertLayer(nnx.Module):
    """Attention and MLP, each normalised after it was added to the residual."""

    def __init__(self, config: BertConfig, init: Init):
        self.attention = BertAttention(config, init)
        self.intermediate = BertIntermediate(config, init)
        dense = Linear(init, config.intermediate_size, config.hidden_size, axes=("mlp", "embed"))
        self.output = BertResidual(config, init, dense)

    def __call__(self, x: Array, span: Span, weights: bool) -> tuple[Array, Array | None]:
        x, probabilities = self.attention(x, span, weights)
        x = self.output(self.intermediate(x), x)
        return constrain(x, "batch", "length", None), probabilities  # (B, T, D)


class BertEncoder(nnx.Module):
    """The layers."""

    def __init__(self, config: BertConfig, init: Init):
        self.layer = nnx.List([BertLayer(config, init) for _ in range(config.num_hidden_layers)])


class BertPooler(nnx.Module):
    """The first token's state through a tanh layer."""

    def __init__(self, config: BertConfig, init: Init):
        self.dense = Linear(init, config.hidden_size, config.hidden_size)

    def __call__(self, x: Array) -> Array:
        return jnp.tanh(self.dense(x[:, 0]))  # (B, D)


class BertModel(nnx.Module):
    """The encoder without a head.

    Args:
        pooler: with the pooler, which the masked language model does without.
    """

    def __init__(self, config: BertConfig, init: Init, *, pooler: bool = True):
        self.embeddings = BertEmbeddings(config, init)
        self.encoder = BertEncoder(config, init)
        self.pooler = BertPooler(config, init) if pooler else None

    def __call__(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BaseModelOutput:
        """Runs the encoder on input_ids (B, T); token types are 0 and positions count the columns if not given."""
        x = self.embeddings(input_ids, token_type_ids, position_ids)  # (B, T, D)
        span = full_span(input_ids.shape[1], attention_mask)
        walk = run_encoder(self.encoder.layer, x, span, weights=output_attentions)
        out = walk.finish(walk.x, output_hidden_states)
        if self.pooler is not None:
            out.pooler_output = self.pooler(walk.x)
        return out


class BertPredictionHeadTransform(nnx.Module):
    """What comes before the masked language model's decoder."""

    def __init__(self, config: BertConfig, init: Init):
        self.dense = Linear(init, config.hidden_size, config.hidden_size)
        self.act = activation(config.hidden_act)
        self.LayerNorm = LayerNorm(init, config.hidden_size, config.layer_norm_eps)

    def __call__(self, x: Array) -> Array:
        return self.LayerNorm(self.act(self.dense(x)))


class BertLMPredictionHead(nnx.Module):
    """Logits over the vocabulary; a tied decoder is the word embedding with a bias of its own."""

    def __init__(self, config: BertConfig, init: Init):
        self.transform = BertPredictionHeadTransform(config, init)
        shape = (config.vocab_size,)
        bias = init.param(("vocab",), shape, Direct("bias", shape), initializer="zeros")
        self.bias, self.decoder = bias, None
        if not config.tie_word_embeddings:
            self.bias, self.decoder = None, Linear(init, config.hidden_size, *shape, axes=("embed", "vocab"))

    def __call__(self, x: Array, embedding: Callable[[Array], Array]) -> Array:
        x = self.transform(x)  # (B, T, D)
        logits = self.decoder(x) if self.decoder is not None else embedding(x)
        if self.bias is not None:
            logits = logits + self.bias[...]
        return constrain(logits, "batch", "length", "vocab")  # (B, T, V)


class BertOnlyMLMHead(nnx.Module):
    """The masked language model's head, under the name that checkpoints give it."""

    def __init__(self, config: BertConfig, init: Init):
        self.predictions = BertLMPredictionHead(config, init)


class BertForMaskedLM(nnx.Module):
    """The encoder with a masked-language-model head."""

    def __init__(self, config: BertConfig, init: Init):
        self.bert = BertModel(config, init, pooler=False)
        self.cls = BertOnlyMLMHead(config, init)

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of `BertModel`."""
        out = self.bert(input_ids, **inputs)
        logits = self.cls.predictions(out.last_hidden_state, self.bert.embeddings.word_embeddings.attend)
        return LogitsOutput(logits=logits, hidden_states=out.hidden_states, attentions=out.attentions)


class BertForSequenceClassification(nnx.Module):
    """The encoder with a classifier on the pooled first token."""

    def __init__(self, config: BertConfig, init: Init):
        self.bert = BertModel(config, init)
        self.classifier = Linear(init, config.hidden_size, config.num_labels)

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of `BertModel`."""
        out = self.bert(input_ids, **inputs)
        logits = self.classifier(out.pooler_output)  # (B, labels)
        return LogitsOutput(logits=logits, hidden_states=out.hidden_states, attentions=out.attentions)


register(
    Architecture(
        config=BertConfig,
        heads={
            BASE: BertModel,
            MASKED_LM: BertForMaskedLM,
            SEQUENCE_CLASSIFICATION: BertForSequenceClassification,
        },
        base="bert",
        optional=("pooler",),
        tied={
            "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        # The next-sentence head of pre-training checkpoints lies beside the masked language model's.
        other_heads=(r"cls\.seq_relationship\..*",),
    )
)
