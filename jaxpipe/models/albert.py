"""ALBERT (Lan et al., 2020; arXiv 1909.11942), as albert/albert-base-v2 holds it: layers that share their weights."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.common.outputs import BaseModelOutput, LogitsOutput
from jaxpipe.models.encoder import EncoderConfig
from jaxpipe.models.registry import (
    BASE,
    MASKED_LM,
    QUESTION_ANSWERING,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Architecture,
    register,
)
from jaxpipe.nn.activations import activation
from jaxpipe.nn.attention import Span, attend, full_span
from jaxpipe.nn.bert import BertEmbeddings, FlatPredictionHead
from jaxpipe.nn.encoder import (
    EncoderHead,
    PooledClassification,
    QuestionAnswering,
    TokenClassification,
    head_output,
    run_encoder,
)
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import HeadsOutProjection, Linear, QKVProjection
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.sharding.rules import constrain

Array = jax.Array


class AlbertConfig(EncoderConfig):
    """Configuration of ALBERT."""

    model_type: ClassVar[str] = "albert"
    # The last four are left over from the original's options, which the network never read.
    inert: ClassVar[frozenset[str]] = frozenset(
        "classifier_dropout_prob down_scale_factor gap_size net_structure_type num_memory_blocks".split()
    )

    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 4096
    num_hidden_groups: int = 1
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    inner_group_num: int = 1
    hidden_act: str = "gelu_new"
    type_vocab_size: int = 2
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3


class AlbertAttention(nnx.Module):
    """Self-attention in both directions, added to the residual and normalised."""

    def __init__(self, config: AlbertConfig, init: Init):
        width, heads = config.hidden_size, config.num_attention_heads
        names = ("query", "key", "value")
        self.qkv_proj = QKVProjection(init, width, heads, heads, width // heads, bias=True, names=names)
        self.dense = HeadsOutProjection(init, heads, heads, width // heads, width, bias=True)
        self.LayerNorm = LayerNorm(init, width, config.layer_norm_eps)
        self.scale = (width // heads) ** -0.5

    def __call__(self, x: Array, span: Span, weights: bool) -> tuple[Array, Array | None]:
        q, k, v = self.qkv_proj(x)  # (B, T, H, h) each
        out, _, probabilities = attend(q, k, v, span, scale=self.scale, weights=weights)
        return self.LayerNorm(x + self.dense(out)), probabilities  # (B, T, D), (B, H, T, T)


class AlbertLayer(nnx.Module):
    """Attention and MLP, each normalised after it was added to the residual."""

    def __init__(self, config: AlbertConfig, init: Init):
        self.attention = AlbertAttention(config, init)
        self.ffn = Linear(init, config.hidden_size, config.intermediate_size, axes=("embed", "mlp"))
        self.ffn_output = Linear(init, config.intermediate_size, config.hidden_size, axes=("mlp", "embed"))
        self.full_layer_layer_norm = LayerNorm(init, config.hidden_size, config.layer_norm_eps)
        self.act = activation(config.hidden_act)

    def __call__(self, x: Array, span: Span, weights: bool) -> tuple[Array, Array | None]:
        x, probabilities = self.attention(x, span, weights)
        x = self.full_layer_layer_norm(self.ffn_output(self.act(self.ffn(x))) + x)
        return constrain(x, "batch", "length", None), probabilities  # (B, T, D)


class AlbertLayerGroup(nnx.Module):
    """Layers that follow one another wherever the group stands."""

    def __init__(self, config: AlbertConfig, init: Init):
        self.albert_layers = nnx.List([AlbertLayer(config, init) for _ in range(config.inner_group_num)])


class AlbertEncoder(nnx.Module):
    """The groups of layers; each stands several times in the network, its weights are there once."""

    def __init__(self, config: AlbertConfig, init: Init):
        self.embedding_hidden_mapping_in = Linear(init, config.embedding_size, config.hidden_size)
        self.albert_layer_groups = nnx.List([AlbertLayerGroup(config, init) for _ in range(config.num_hidden_groups)])
        self.depth = config.num_hidden_layers

    def layers(self) -> list[AlbertLayer]:
        """The layers in the order in which they are run."""
        per_group = self.depth / len(self.albert_layer_groups)
        groups = [self.albert_layer_groups[int(i / per_group)] for i in range(self.depth)]
        return [layer for group in groups for layer in group.albert_layers]


class AlbertModel(nnx.Module):
    """The encoder without a head.

    Args:
        pooler: with the pooler, which only the classifier of sequences needs.
    """

    def __init__(self, config: AlbertConfig, init: Init, *, pooler: bool = True):
        self.embeddings = BertEmbeddings(config, init, width=config.embedding_size)
        self.encoder = AlbertEncoder(config, init)
        self.pooler = Linear(init, config.hidden_size, config.hidden_size) if pooler else None

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
        x = self.embeddings(input_ids, token_type_ids, position_ids)  # (B, T, D of the embedding)
        x = self.encoder.embedding_hidden_mapping_in(x)  # (B, T, D)
        span = full_span(input_ids.shape[1], attention_mask)
        walk = run_encoder(self.encoder.layers(), x, span, weights=output_attentions)
        out = walk.finish(walk.x, output_hidden_states)
        if self.pooler is not None:
            out.pooler_output = jnp.tanh(self.pooler(walk.x[:, 0]))  # (B, D)
        return out


class AlbertHead(EncoderHead):
    """The encoder under a head."""

    base: ClassVar[str] = "albert"

    @staticmethod
    def encoder(config: AlbertConfig, init: Init) -> AlbertModel:
        """Makes the encoder."""
        return AlbertModel(config, init, pooler=False)


class AlbertForMaskedLM(AlbertHead):
    """The encoder with a masked-language-model head."""

    def __init__(self, config: AlbertConfig, init: Init):
        super().__init__(config, init)
        tied, width = config.tie_word_embeddings, config.embedding_size
        self.predictions = FlatPredictionHead(config, init, tied=tied, width=width)

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of `AlbertModel`."""
        out = self.encode(input_ids, **inputs)
        embedding = self.base_model.embeddings.word_embeddings.attend
        return head_output(out, self.predictions(out.last_hidden_state, embedding))  # (B, T, V)


class AlbertForSequenceClassification(AlbertHead, PooledClassification):
    """The encoder with a classifier on the pooled first token."""

    @staticmethod
    def encoder(config: AlbertConfig, init: Init) -> AlbertModel:
        """Makes the encoder, with its pooler."""
        return AlbertModel(config, init)


class AlbertForTokenClassification(AlbertHead, TokenClassification):
    """The encoder with a classifier on every token."""


class AlbertForQuestionAnswering(AlbertHead, QuestionAnswering):
    """The encoder with scores of the answer's first and last token."""


register(
    Architecture(
        config=AlbertConfig,
        heads={
            BASE: AlbertModel,
            MASKED_LM: AlbertForMaskedLM,
            SEQUENCE_CLASSIFICATION: AlbertForSequenceClassification,
            TOKEN_CLASSIFICATION: AlbertForTokenClassification,
            QUESTION_ANSWERING: AlbertForQuestionAnswering,
        },
        base="albert",
        optional=("pooler",),
        tied={
            "predictions.decoder.weight": "embeddings.word_embeddings.weight",
            "predictions.decoder.bias": "predictions.bias",
        },
    )
)
