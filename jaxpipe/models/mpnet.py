"""MPNet (Song et al., 2020; arXiv 2004.09297), as microsoft/mpnet-base holds it."""

from typing import Any, ClassVar

import jax
from flax import nnx

from jaxpipe.common.errors import ConfigError
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
from jaxpipe.nn.attention import Span, attend, full_span
from jaxpipe.nn.bert import BertLayer, BertPooler, LMHead, positions_from_ids
from jaxpipe.nn.embedding import Embedding
from jaxpipe.nn.encoder import (
    EncoderHead,
    FirstTokenClassification,
    QuestionAnswering,
    TokenClassification,
    head_output,
    run_encoder,
)
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import HeadsOutProjection, QKVProjection
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.nn.relative_bias import RelativeBias, relative_buckets
from jaxpipe.sharding.rules import constrain

Array = jax.Array

# Whatever the config says, positions begin after 1 and distances have 32 buckets: so the network was trained.
PADDING, BUCKETS, MAX_DISTANCE = 1, 32, 128


class MPNetConfig(EncoderConfig):
    """Configuration of MPNet."""

    model_type: ClassVar[str] = "mpnet"

    vocab_size: int = 30527
    relative_attention_num_buckets: int = 32
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relative_attention_num_buckets < BUCKETS:
            raise ConfigError(
                f"config.json: relative_attention_num_buckets={self.relative_attention_num_buckets}, but MPNet reads "
                f"{BUCKETS} of them."
            )

    def longest_input(self) -> int:
        """Number of tokens that the positions after the padding's serve: 512 where the table holds 514."""
        return self.max_position_embeddings - PADDING - 1


class MPNetEmbeddings(nnx.Module):
    """The sum of the embeddings of word and position, normalised."""

    def __init__(self, config: MPNetConfig, init: Init):
        self.word_embeddings = Embedding(init, config.vocab_size, config.hidden_size, axis="vocab")
        self.position_embeddings = Embedding(init, config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = LayerNorm(init, config.hidden_size, config.layer_norm_eps)

    def __call__(self, input_ids: Array, position_ids: Array | None) -> Array:
        if position_ids is None:
            position_ids = positions_from_ids(input_ids, PADDING)
        x = self.word_embeddings(input_ids) + self.position_embeddings(position_ids)
        return constrain(self.LayerNorm(x), "batch", "length", None)  # (B, T, D)


class MPNetSelfAttention(nnx.Module):
    """Self-attention in both directions, with a bias by distance."""

    def __init__(self, config: MPNetConfig, init: Init):
        width, heads = config.hidden_size, config.num_attention_heads
        self.qkv_proj = QKVProjection(init, width, heads, heads, width // heads, bias=True, names=("q", "k", "v"))
        self.o = HeadsOutProjection(init, heads, heads, width // heads, width, bias=True)
        self.scale = (width // heads) ** -0.5

    def __call__(self, x: Array, span: Span, bias: Array, weights: bool) -> tuple[Array, Array | None]:
        q, k, v = self.qkv_proj(x)  # (B, T, H, h) each
        out, _, probabilities = attend(q, k, v, span, scale=self.scale, bias=bias, weights=weights)
        return self.o(out), probabilities  # (B, T, D), (B, H, T, T)


class MPNetAttention(nnx.Module):
    """Self-attention, added to the residual and normalised."""

    def __init__(self, config: MPNetConfig, init: Init):
        self.attn = MPNetSelfAttention(config, init)
        self.LayerNorm = LayerNorm(init, config.hidden_size, config.layer_norm_eps)

    def __call__(self, x: Array, span: Span, bias: Array, weights: bool) -> tuple[Array, Array | None]:
        out, probabilities = self.attn(x, span, bias, weights)
        return self.LayerNorm(out + x), probabilities


class MPNetEncoder(nnx.Module):
    """The layers, and the one bias by distance that all of them add."""

    def __init__(self, config: MPNetConfig, init: Init):
        layers = range(config.num_hidden_layers)
        self.layer = nnx.List([BertLayer(config, init, MPNetAttention(config, init)) for _ in layers])
        buckets = config.relative_attention_num_buckets
        self.relative_attention_bias = RelativeBias(init, buckets, config.num_attention_heads)

    def bias(self, span: Span) -> Array:
        """Biases (1, H, T, T); distances are those of the columns."""
        columns = span.queries
        buckets = relative_buckets(columns, columns, bidirectional=True, buckets=BUCKETS, max_distance=MAX_DISTANCE)
        return self.relative_attention_bias(buckets)


class MPNetModel(nnx.Module):
    """The encoder without a head.

    Args:
        pooler: with the pooler, which the heads do without.
    """

    def __init__(self, config: MPNetConfig, init: Init, *, pooler: bool = True):
        self.embeddings = MPNetEmbeddings(config, init)
        self.encoder = MPNetEncoder(config, init)
        self.pooler = BertPooler(config, init) if pooler else None

    def __call__(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BaseModelOutput:
        """Runs the encoder on input_ids (B, T); positions that are not given count the tokens but the padding."""
        x = self.embeddings(input_ids, position_ids)  # (B, T, D)
        span = full_span(input_ids.shape[1], attention_mask)
        walk = run_encoder(self.encoder.layer, x, span, self.encoder.bias(span), weights=output_attentions)
        out = walk.finish(walk.x, output_hidden_states)
        if self.pooler is not None:
            out.pooler_output = self.pooler(walk.x)
        return out


class MPNetHead(EncoderHead):
    """The encoder under a head."""

    base: ClassVar[str] = "mpnet"

    @staticmethod
    def encoder(config: MPNetConfig, init: Init) -> MPNetModel:
        """Makes the encoder."""
        return MPNetModel(config, init, pooler=False)


class MPNetForMaskedLM(MPNetHead):
    """The encoder with a masked-language-model head."""

    def __init__(self, config: MPNetConfig, init: Init):
        super().__init__(config, init)
        self.lm_head = LMHead(config, init, tied=config.tie_word_embeddings)

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of `MPNetModel`."""
        out = self.encode(input_ids, **inputs)
        embedding = self.base_model.embeddings.word_embeddings.attend
        return head_output(out, self.lm_head(out.last_hidden_state, embedding))  # (B, T, V)


class MPNetForSequenceClassification(MPNetHead, FirstTokenClassification):
    """The encoder with a classifier on the first token."""


class MPNetForTokenClassification(MPNetHead, TokenClassification):
    """The encoder with a classifier on every token."""


class MPNetForQuestionAnswering(MPNetHead, QuestionAnswering):
    """The encoder with scores of the answer's first and last token."""


register(
    Architecture(
        config=MPNetConfig,
        heads={
            BASE: MPNetModel,
            MASKED_LM: MPNetForMaskedLM,
            SEQUENCE_CLASSIFICATION: MPNetForSequenceClassification,
            TOKEN_CLASSIFICATION: MPNetForTokenClassification,
            QUESTION_ANSWERING: MPNetForQuestionAnswering,
        },
        base="mpnet",
        optional=("pooler",),
        tied={"lm_head.decoder.weight": "embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"},
    )
)
