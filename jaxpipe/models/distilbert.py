"""DistilBERT (Sanh et al., 2019; arXiv 1910.01108), as distilbert/distilbert-base-uncased holds it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.common.errors import ConfigError
from jaxpipe.common.outputs import BaseModelOutput, LogitsOutput
from jaxpipe.models.config import ModelConfig
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
from jaxpipe.nn.embedding import Embedding
from jaxpipe.nn.encoder import (
    EncoderHead,
    QuestionAnswering,
    TokenClassification,
    VocabularyProjection,
    head_output,
    run_encoder,
)
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import HeadsOutProjection, Linear, QKVProjection
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.sharding.rules import constrain

Array = jax.Array

EPS = 1e-12


class DistilBertConfig(ModelConfig):
    """Configuration of DistilBERT."""

    model_type: ClassVar[str] = "distilbert"
    # Sinusoids are but where the position table began: checkpoints hold the table.
    inert: ClassVar[frozenset[str]] = frozenset("dropout qa_dropout seq_classif_dropout sinusoidal_pos_embds".split())
    attribute_map: ClassVar[Mapping[str, str]] = {
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    }

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    n_layers: int = 6
    n_heads: int = 12
    dim: int = 768
    hidden_dim: int = 3072
    activation: str = "gelu"
    initializer_range: float = 0.02
    pad_token_id: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.activation, "activation")
        if self.dim % self.n_heads:
            raise ConfigError(f"config.json: dim={self.dim} is not a multiple of n_heads={self.n_heads}.")

    def limits(self) -> dict[str, int]:
        """First value out of range of each input."""
        return {"input_ids": self.vocab_size, "position_ids": self.max_position_embeddings}


class DistilBertEmbeddings(nnx.Module):
    """The sum of the embeddings of word and position, normalised."""

    def __init__(self, config: DistilBertConfig, init: Init):
        self.word_embeddings = Embedding(init, config.vocab_size, config.dim, axis="vocab")
        self.position_embeddings = Embedding(init, config.max_position_embeddings, config.dim)
        self.LayerNorm = LayerNorm(init, config.dim, EPS)

    def __call__(self, input_ids: Array, position_ids: Array | None) -> Array:
        if position_ids is None:
            position_ids = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None]
        x = self.word_embeddings(input_ids) + self.position_embeddings(position_ids)
        return constrain(self.LayerNorm(x), "batch", "length", None)  # (B, T, D)


class DistilBertAttention(nnx.Module):
    """Self-attention in both directions."""

    def __init__(self, config: DistilBertConfig, init: Init):
        heads, head_dim = config.n_heads, config.dim // config.n_heads
        names = ("q_lin", "k_lin", "v_lin")
        self.qkv_proj = QKVProjection(init, config.dim, heads, heads, head_dim, bias=True, names=names)
        self.out_lin = HeadsOutProjection(init, heads, heads, head_dim, config.dim, bias=True)
        self.scale = head_dim**-0.5

    def __call__(self, x: Array, span: Span, weights: bool) -> tuple[Array, Array | None]:
        q, k, v = self.qkv_proj(x)  # (B, T, H, h) each
        out, _, probabilities = attend(q, k, v, span, scale=self.scale, weights=weights)
        return self.out_lin(out), probabilities  # (B, T, D), (B, H, T, T)


class DistilBertMLP(nnx.Module):
    """Two projections with an activation between them."""

    def __init__(self, config: DistilBertConfig, init: Init):
        self.lin1 = Linear(init, config.dim, config.hidden_dim, axes=("embed", "mlp"))
        self.lin2 = Linear(init, config.hidden_dim, config.dim, axes=("mlp", "embed"))
        self.act = activation(config.activation)

    def __call__(self, x: Array) -> Array:
        return self.lin2(self.act(self.lin1(x)))


class DistilBertLayer(nnx.Module):
    """Attention and MLP, each normalised after it was added to the residual."""

    def __init__(self, config: DistilBertConfig, init: Init):
        self.attention = DistilBertAttention(config, init)
        self.sa_layer_norm = LayerNorm(init, config.dim, EPS)
        self.ffn = DistilBertMLP(config, init)
        self.output_layer_norm = LayerNorm(init, config.dim, EPS)

    def __call__(self, x: Array, span: Span, weights: bool) -> tuple[Array, Array | None]:
        attended, probabilities = self.attention(x, span, weights)
        x = self.sa_layer_norm(x + attended)
        x = self.output_layer_norm(x + self.ffn(x))
        return constrain(x, "batch", "length", None), probabilities  # (B, T, D)


class DistilBertEncoder(nnx.Module):
    """The layers."""

    def __init__(self, config: DistilBertConfig, init: Init):
        self.layer = nnx.List([DistilBertLayer(config, init) for _ in range(config.n_layers)])


class DistilBertModel(nnx.Module):
    """The encoder without a head."""

    def __init__(self, config: DistilBertConfig, init: Init):
        self.embeddings = DistilBertEmbeddings(config, init)
        self.transformer = DistilBertEncoder(config, init)

    def __call__(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BaseModelOutput:
        """Runs the encoder on input_ids (B, T); positions count the columns if they are not given."""
        x = self.embeddings(input_ids, position_ids)  # (B, T, D)
        span = full_span(input_ids.shape[1], attention_mask)
        walk = run_encoder(self.transformer.layer, x, span, weights=output_attentions)
        return walk.finish(walk.x, output_hidden_states)


class DistilBertHead(EncoderHead):
    """The encoder under a head."""

    base: ClassVar[str] = "distilbert"

    @staticmethod
    def encoder(config: DistilBertConfig, init: Init) -> DistilBertModel:
        """Makes the encoder."""
        return DistilBertModel(config, init)


class DistilBertForMaskedLM(DistilBertHead):
    """The encoder with a masked-language-model head."""

    def __init__(self, config: DistilBertConfig, init: Init):
        super().__init__(config, init)
        self.vocab_transform = Linear(init, config.dim, config.dim)
        self.vocab_layer_norm = LayerNorm(init, config.dim, EPS)
        tied = config.tie_word_embeddings
        self.vocab_projector = VocabularyProjection(init, config.dim, config.vocab_size, tied=tied)
        self.act = activation(config.activation)

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of `DistilBertModel`."""
        out = self.encode(input_ids, **inputs)
        x = self.vocab_layer_norm(self.act(self.vocab_transform(out.last_hidden_state)))
        return head_output(out, self.vocab_projector(x, self.base_model.embeddings.word_embeddings.attend))


class DistilBertForSequenceClassification(DistilBertHead):
    """The encoder with a classifier on the first token."""

    def __init__(self, config: DistilBertConfig, init: Init):
        super().__init__(config, init)
        self.pre_classifier = Linear(init, config.dim, config.dim)
        self.classifier = Linear(init, config.dim, config.num_labels)

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of `DistilBertModel`."""
        out = self.encode(input_ids, **inputs)
        pooled = jax.nn.relu(self.pre_classifier(out.last_hidden_state[:, 0]))  # (B, D)
        return head_output(out, self.classifier(pooled))  # (B, labels)


class DistilBertForTokenClassification(DistilBertHead, TokenClassification):
    """The encoder with a classifier on every token."""


class DistilBertForQuestionAnswering(DistilBertHead, QuestionAnswering):
    """The encoder with scores of the answer's first and last token."""


register(
    Architecture(
        config=DistilBertConfig,
        heads={
            BASE: DistilBertModel,
            MASKED_LM: DistilBertForMaskedLM,
            SEQUENCE_CLASSIFICATION: DistilBertForSequenceClassification,
            TOKEN_CLASSIFICATION: DistilBertForTokenClassification,
            QUESTION_ANSWERING: DistilBertForQuestionAnswering,
        },
        base="distilbert",
        tied={"vocab_projector.weight": "embeddings.word_embeddings.weight"},
    )
)
