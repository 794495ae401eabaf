"""DeBERTa v2 and v3 (He et al., 2021; arXiv 2006.03654 and 2111.09543), as microsoft/deberta-v3-base holds it."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
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
from jaxpipe.nn.bert import BertLayer, FlatPredictionHead, Predictions, attention_residual
from jaxpipe.nn.decoder import Walk
from jaxpipe.nn.embedding import Embedding
from jaxpipe.nn.encoder import (
    EncoderHead,
    QuestionAnswering,
    TokenClassification,
    head_output,
    run_encoder,
)
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout import Direct
from jaxpipe.nn.linear import HeadsProjection, Linear, QKVProjection
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.sharding.rules import constrain

Array = jax.Array


class DebertaV2Config(ModelConfig):
    """Configuration of DeBERTa v2 and v3."""

    model_type: ClassVar[str] = "deberta-v2"
    inert: ClassVar[frozenset[str]] = frozenset({"cls_dropout", "pooler_dropout"})

    vocab_size: int = 128100
    hidden_size: int = 1536
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-7
    relative_attention: bool = False
    max_relative_positions: int | None = -1  # max_position_embeddings
    position_buckets: int | None = -1  # one for every distance
    position_biased_input: bool = True
    pos_att_type: list[str] | None = None
    share_att_key: bool = False
    norm_rel_ebd: str = "none"
    embedding_size: int = 0  # hidden_size
    attention_head_size: int = 0  # hidden_size / num_attention_heads
    conv_kernel_size: int = 0
    conv_act: str = "tanh"
    conv_groups: int = 1
    pooler_hidden_size: int = 0  # hidden_size
    pooler_hidden_act: str = "gelu"
    legacy: bool = True
    pad_token_id: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("hidden_act", "pooler_hidden_act", "conv_act"):
            activation(getattr(self, key), key)
        self.embedding_size = self.embedding_size or self.hidden_size
        self.pooler_hidden_size = self.pooler_hidden_size or self.hidden_size
        self.attention_head_size = self.attention_head_size or self.hidden_size // self.num_attention_heads
        if self.attention_head_size * self.num_attention_heads != self.hidden_size:
            raise ConfigError(
                f"config.json: hidden_size={self.hidden_size} is not num_attention_heads={self.num_attention_heads} "
                f"times the width of a head, {self.attention_head_size}."
            )
        if self.pooler_hidden_size != self.hidden_size:
            raise ConfigError(
                f"config.json: pooler_hidden_size={self.pooler_hidden_size} is not hidden_size={self.hidden_size}."
            )
        if self.conv_kernel_size and not self.conv_kernel_size % 2:
            raise ConfigError(f"config.json: conv_kernel_size={self.conv_kernel_size} must be odd.")
        if self.buckets and self.buckets // 2 >= self.farthest - 1:
            raise ConfigError(
                f"config.json: position_buckets={self.position_buckets} leave no distance to join below "
                f"max_relative_positions={self.farthest}."
            )

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super().normalise(values)
        kinds = values.get("pos_att_type")
        if isinstance(kinds, str):
            values["pos_att_type"] = [kind.strip() for kind in kinds.lower().split("|")]
        return values

    @property
    def farthest(self) -> int:
        """Distance from which on all are alike."""
        given = self.max_relative_positions or 0
        return given if given > 0 else self.max_position_embeddings

    @property
    def buckets(self) -> int:
        """Number of buckets of distances to either side, 0 where every distance is one."""
        return max(self.position_buckets or 0, 0)

    def limits(self) -> dict[str, int]:
        """First value out of range of each input; without a table, token types of sentence pairs are passed over."""
        positions = {"position_ids": self.max_position_embeddings} if self.position_biased_input else {}
        return {"input_ids": self.vocab_size, "token_type_ids": self.type_vocab_size or 2, **positions}


class DebertaV2Embeddings(nnx.Module):
    """The embedding of the words, and of position and token type where there are such, normalised."""

    def __init__(self, config: DebertaV2Config, init: Init):
        width = config.embedding_size
        self.word_embeddings = Embedding(init, config.vocab_size, width, axis="vocab")
        table = functools.partial(Embedding, init, width=width)
        self.position_embeddings = table(config.max_position_embeddings) if config.position_biased_input else None
        self.token_type_embeddings = table(config.type_vocab_size) if config.type_vocab_size else None
        project = width != config.hidden_size
        self.embed_proj = Linear(init, width, config.hidden_size, bias=False) if project else None
        self.LayerNorm = LayerNorm(init, config.hidden_size, config.layer_norm_eps)

    def __call__(
        self, input_ids: Array, token_type_ids: Array | None, position_ids: Array | None, mask: Array | None
    ) -> Array:
        x = self.word_embeddings(input_ids)
        if self.position_embeddings is not None:
            columns = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None]
            x = x + self.position_embeddings(columns if position_ids is None else position_ids)
        if self.token_type_embeddings is not None:
            types = jnp.zeros((1, 1), jnp.int32) if token_type_ids is None else token_type_ids
            x = x + self.token_type_embeddings(types)
        if self.embed_proj is not None:
            x = self.embed_proj(x)
        return constrain(_masked(self.LayerNorm(x), mask), "batch", "length", None)  # (B, T, D)


def _masked(x: Array, mask: Array | None) -> Array:
    """States x (B, T, D) with zeros where there is padding."""
    return x if mask is None else x * mask.astype(x.dtype)[..., None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MutualSpan(Span):
    """An encoder's span in which padding sees nothing, so that it attends to all alike."""

    def mask(self, window: int | None = None) -> Array | None:
        """Returns which keys are seen; see `Span.mask`."""
        seen = super().mask(window)
        return None if seen is None else seen & (self.keys >= 0)[:, :, None]


@functools.lru_cache(maxsize=64)
def distance_rows(tokens: int, buckets: int, farthest: int) -> np.ndarray:
    """Returns the row of the table of distances for each distance ``query - key`` from ``1 - tokens`` on, int32.

    Distances of up to half the buckets have one each; the others share them by their logarithm.
    """
    distance = np.arange(1 - tokens, tokens)
    span = buckets or farthest
    if buckets:
        middle = buckets // 2
        far = np.maximum(np.abs(distance), middle).astype(np.float32) / np.float32(middle)
        # In float32, as the model was trained: on the borders between buckets the rounding decides.
        steps = np.log(far) / np.log(np.float32((farthest - 1) / middle)) * np.float32(middle - 1)
        joined = np.sign(distance) * (np.ceil(steps) + middle)
        distance = np.where(np.abs(distance) <= middle, distance, joined)
    return np.clip(distance + span, 0, 2 * span - 1).astype(np.int32)


def _slanted(scores: Array) -> Array:
    """Takes of scores (B, H, T, 2 T - 1) the columns ``T - 1 - i`` to ``2 T - 2 - i`` of every row i, (B, H, T, T)."""
    *rest, t, width = scores.shape
    flat = jnp.pad(scores, [(0, 0)] * (len(rest) + 1) + [(0, 1)]).reshape(*rest, t * (width + 1))
    return flat[..., t - 1 : t - 1 + t * width].reshape(*rest, t, width)[..., :t]


class DisentangledSelfAttention(nnx.Module):
    """Self-attention whose scores add those of content against distance to those of content against content."""

    def __init__(self, config: DebertaV2Config, init: Init):
        width, heads, head_dim = config.hidden_size, config.num_attention_heads, config.attention_head_size
        names = ("query_proj", "key_proj", "value_proj")
        self.qkv_proj = QKVProjection(init, width, heads, heads, head_dim, bias=True, names=names)
        kinds = config.pos_att_type or []
        self.content_to_position, self.position_to_content = "c2p" in kinds, "p2c" in kinds
        own = config.relative_attention and not config.share_att_key
        shape: dict[str, Any] = {"width": width, "heads": heads, "head_dim": head_dim, "bias": True}
        key, query = own and self.content_to_position, own and self.position_to_content
        self.position_key = HeadsProjection(init, names=("pos_key_proj",), **shape) if key else None
        self.position_query = HeadsProjection(init, names=("pos_query_proj",), **shape) if query else None
        self.shared = config.share_att_key
        self.scale = (head_dim * (1 + self.content_to_position + self.position_to_content)) ** -0.5

    def bias(self, q: Array, k: Array, distances: Array) -> Array:
        """Scores (B, H, T, T) of content against position, of the embeddings of all distances (2 T - 1, D)."""
        score = jnp.zeros((), jnp.float32)
        shared = self.qkv_proj(distances[None]) if self.shared else None
        dot = functools.partial(jnp.einsum, "bthd,rhd->bhtr", preferred_element_type=jnp.float32)
        if self.content_to_position:
            keys = shared[1] if shared else self.position_key(distances[None])[0]  # type: ignore[misc]
            score = score + _slanted(dot(q, keys[0, ::-1]))
        if self.position_to_content:
            queries = shared[0] if shared else self.position_query(distances[None])[0]  # type: ignore[misc]
            score = score + jnp.swapaxes(_slanted(dot(k, queries[0])), -1, -2)
        return score * self.scale

    def __call__(self, x: Array, span: Span, distances: Array | None, weights: bool) -> tuple[Array, Array | None]:
        q, k, v = self.qkv_proj(x)  # (B, T, H, h) each
        relative = self.content_to_position or self.position_to_content
        bias = self.bias(q, k, distances) if relative and distances is not None else None
        out, _, probabilities = attend(q, k, v, span, scale=self.scale, bias=bias, weights=weights)
        return out, probabilities  # (B, T, H, h), (B, H, T, T)


class DebertaV2Attention(nnx.Module):
    """Self-attention with its residual."""

    def __init__(self, config: DebertaV2Config, init: Init):
        self.self = DisentangledSelfAttention(config, init)
        self.output = attention_residual(config, init)

    def __call__(self, x: Array, span: Span, distances: Array | None, weights: bool) -> tuple[Array, Array | None]:
        out, probabilities = self.self(x, span, distances, weights)
        return self.output(out, x), probabilities


class Convolution(nnx.Module):
    """A convolution over neighbouring tokens of states (B, T, D)."""

    def __init__(self, config: DebertaV2Config, init: Init):
        width, self.groups = config.hidden_size, config.conv_groups
        shape = (width, width // self.groups, config.conv_kernel_size)
        self.kernel = init.param((None, "embed", None), shape, Direct("weight", shape))
        self.bias = init.param((None,), (width,), Direct("bias", (width,)), initializer="zeros")

    def __call__(self, x: Array) -> Array:
        kernel, axes = self.kernel[...], ("NWC", "OIW", "NWC")
        x = jax.lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=axes, feature_group_count=self.groups
        )
        return x + self.bias[...]


class ConvLayer(nnx.Module):
    """What the first layer's output is joined with in the largest models: a convolution over its input."""

    def __init__(self, config: DebertaV2Config, init: Init):
        self.conv = Convolution(config, init)
        self.LayerNorm = LayerNorm(init, config.hidden_size, config.layer_norm_eps)
        self.act = activation(config.conv_act)

    def __call__(self, x: Array, residual: Array, mask: Array | None) -> Array:
        return _masked(self.LayerNorm(residual + self.act(_masked(self.conv(x), mask))), mask)  # (B, T, D)


class DebertaV2Encoder(nnx.Module):
    """The layers, and the embeddings of the distances that all of them share."""

    def __init__(self, config: DebertaV2Config, init: Init):
        layers = range(config.num_hidden_layers)
        self.layer = nnx.List([BertLayer(config, init, DebertaV2Attention(config, init)) for _ in layers])
        self.buckets, self.farthest = config.buckets, config.farthest
        width, rows = config.hidden_size, 2 * (config.buckets or config.farthest)
        self.rel_embeddings = Embedding(init, rows, width) if config.relative_attention else None
        normed = "layer_norm" in [kind.strip() for kind in config.norm_rel_ebd.lower().split("|")]
        self.LayerNorm = LayerNorm(init, width, config.layer_norm_eps) if normed else None
        self.conv = ConvLayer(config, init) if config.conv_kernel_size else None

    def distances(self, tokens: int) -> Array | None:
        """Embeddings (2 T - 1, D) of the distances from 1 - T to T - 1; None for absolute positions alone."""
        if self.rel_embeddings is None:
            return None
        table = self.rel_embeddings(jnp.asarray(distance_rows(tokens, self.buckets, self.farthest)))
        return table if self.LayerNorm is None else self.LayerNorm(table)

    def __call__(self, x: Array, mask: Array | None, weights: bool) -> Walk:
        span, layers = full_span(x.shape[1], mask), list(self.layer)
        span = MutualSpan(span.queries, span.keys, None, causal=False, whole=span.whole)
        distances = self.distances(x.shape[1])
        if self.conv is None:
            return run_encoder(layers, x, span, distances, weights=weights)
        first = run_encoder(layers[:1], x, span, distances, weights=weights)
        rest = run_encoder(layers[1:], self.conv(x, first.x, mask), span, distances, weights=weights)
        return Walk(rest.x, first.states + rest.states, first.attentions + rest.attentions, None)


class DebertaV2Model(nnx.Module):
    """The encoder without a head."""

    def __init__(self, config: DebertaV2Config, init: Init):
        self.embeddings = DebertaV2Embeddings(config, init)
        self.encoder = DebertaV2Encoder(config, init)

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
        """Runs the encoder on input_ids (B, T); `position_ids` are of the table of positions, distances of columns."""
        x = self.embeddings(input_ids, token_type_ids, position_ids, attention_mask)  # (B, T, D)
        walk = self.encoder(x, attention_mask, output_attentions)
        return walk.finish(walk.x, output_hidden_states)


class LMPredictions(nnx.Module):
    """The head under the attribute ``lm_head``, as checkpoints of the pre-training have it."""

    def __init__(self, config: DebertaV2Config, init: Init):
        self.lm_head = FlatPredictionHead(config, init, tied=True)


class DebertaV2Head(EncoderHead):
    """The encoder under a head."""

    base: ClassVar[str] = "deberta"

    @staticmethod
    def encoder(config: DebertaV2Config, init: Init) -> DebertaV2Model:
        """Makes the encoder."""
        return DebertaV2Model(config, init)


class DebertaV2ForMaskedLM(DebertaV2Head):
    """The encoder with a masked-language-model head: BERT's, or where ``legacy`` is false that of the pre-training."""

    def __init__(self, config: DebertaV2Config, init: Init):
        super().__init__(config, init)
        tied, width = config.tie_word_embeddings, config.embedding_size
        self.cls = Predictions(config, init, tied=tied, width=width) if config.legacy else None
        self.lm_predictions = None if config.legacy else LMPredictions(config, init)

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of `DebertaV2Model`."""
        out = self.encode(input_ids, **inputs)
        head = self.cls.predictions if self.cls is not None else self.lm_predictions.lm_head  # type: ignore[union-attr]
        return head_output(out, head(out.last_hidden_state, self.base_model.embeddings.word_embeddings.attend))


class ContextPooler(nnx.Module):
    """The first token's state through a dense layer and an activation."""

    def __init__(self, config: DebertaV2Config, init: Init):
        self.dense = Linear(init, config.hidden_size, config.hidden_size)
        self.act = activation(config.pooler_hidden_act)

    def __call__(self, x: Array) -> Array:
        return self.act(self.dense(x[:, 0]))  # (B, D)


class DebertaV2ForSequenceClassification(DebertaV2Head):
    """The encoder with a classifier on the pooled first token."""

    def __init__(self, config: DebertaV2Config, init: Init):
        super().__init__(config, init)
        self.pooler = ContextPooler(config, init)
        self.classifier = Linear(init, config.hidden_size, config.num_labels)

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of `DebertaV2Model`."""
        out = self.encode(input_ids, **inputs)
        return head_output(out, self.classifier(self.pooler(out.last_hidden_state)))  # (B, labels)


class DebertaV2ForTokenClassification(DebertaV2Head, TokenClassification):
    """The encoder with a classifier on every token."""


class DebertaV2ForQuestionAnswering(DebertaV2Head, QuestionAnswering):
    """The encoder with scores of the answer's first and last token."""


register(
    Architecture(
        config=DebertaV2Config,
        heads={
            BASE: DebertaV2Model,
            MASKED_LM: DebertaV2ForMaskedLM,
            SEQUENCE_CLASSIFICATION: DebertaV2ForSequenceClassification,
            TOKEN_CLASSIFICATION: DebertaV2ForTokenClassification,
            QUESTION_ANSWERING: DebertaV2ForQuestionAnswering,
        },
        base="deberta",
        # Saved by the pre-training, though `position_biased_input` is false.
        ignored=(r"embeddings\.position_embeddings\.weight",),
        tied={
            "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
    )
)
