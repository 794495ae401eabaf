"""ModernBERT (Warner et al., 2024; arXiv 2412.13663), as answerdotai/ModernBERT-base holds it."""

from typing import Any, ClassVar, Literal

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
from jaxpipe.nn.attention import Span, full_span
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
from jaxpipe.nn.linear import GateUp, Linear
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.nn.rope import LayerRopes, Table, rope_parameters
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.sharding.rules import constrain

Array = jax.Array

FULL, SLIDING = "full_attention", "sliding_attention"
THETA = {FULL: 160_000.0, SLIDING: 10_000.0}


class ModernBertConfig(ModelConfig):
    """Configuration of ModernBERT."""

    model_type: ClassVar[str] = "modernbert"
    # Of training and of one kernel, and left over from BERT in the files of the Hub.
    inert: ClassVar[frozenset[str]] = frozenset(
        """cls_token_id deterministic_flash_attn embedding_dropout initializer_cutoff_factor layer_norm_eps mlp_dropout
        position_embedding_type reference_compile repad_logits_with_grad sparse_pred_ignore_index
        sparse_prediction""".split()
    )

    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    hidden_activation: str = "gelu"
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    norm_eps: float = 1e-5
    norm_bias: bool = False
    pad_token_id: int | None = 50283
    eos_token_id: int | list[int] | None = 50282
    bos_token_id: int | None = 50281
    attention_bias: bool = False
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None
    rope_parameters: dict[str, Any] | None = None
    local_attention: int = 128
    mlp_bias: bool = False
    decoder_bias: bool = True
    classifier_pooling: Literal["cls", "mean"] = "cls"
    classifier_bias: bool = False
    classifier_activation: str = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.hidden_activation, "hidden_activation")
        activation(self.classifier_activation, "classifier_activation")
        self.layer_types = self.layer_types or _layer_types(self.num_hidden_layers, 3)
        self.rope_parameters = rope_parameters({"rope_parameters": self.rope_parameters}, theta=THETA)
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"config.json: hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}."
            )
        if len(self.layer_types) != self.num_hidden_layers:
            raise ConfigError(
                f"config.json: layer_types names {len(self.layer_types)} layers, but num_hidden_layers is "
                f"{self.num_hidden_layers}."
            )

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super().normalise(values)
        theta = dict(THETA)
        for kind, key in ((FULL, "global_rope_theta"), (SLIDING, "local_rope_theta")):
            given = values.pop(key, None)
            theta[kind] = theta[kind] if given is None else given
        values["rope_parameters"] = rope_parameters(values, theta=theta, scaled=tuple(THETA))
        values.pop("rope_scaling", None)
        every = values.pop("global_attn_every_n_layers", None)
        if every and values.get("layer_types") is None:
            values["layer_types"] = _layer_types(values.get("num_hidden_layers", cls.num_hidden_layers), every)
        return values

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_attention_heads


def _layer_types(layers: int, every: int) -> list[Any]:
    """The kinds of layers where every so many of them, the first among them, sees all tokens."""
    return [SLIDING if i % every else FULL for i in range(layers)]


class ModernBertEmbeddings(nnx.Module):
    """The embedding of the tokens, normalised."""

    def __init__(self, config: ModernBertConfig, init: Init):
        self.tok_embeddings = Embedding(init, config.vocab_size, config.hidden_size, axis="vocab")
        self.norm = LayerNorm(init, config.hidden_size, config.norm_eps, bias=config.norm_bias)

    def __call__(self, input_ids: Array) -> Array:
        return constrain(self.norm(self.tok_embeddings(input_ids)), "batch", "length", None)  # (B, T, D)


class ModernBertAttention(RotaryAttention):
    """Self-attention in both directions; sliding layers see as many tokens on each side as half the config's window."""

    output: ClassVar[str] = "Wo"

    def __init__(self, config: ModernBertConfig, init: Init, kind: str):
        heads = config.num_attention_heads
        window = config.local_attention // 2 + 1 if kind == SLIDING else None
        shape = (heads, heads, config.head_dim)
        super().__init__(init, config.hidden_size, shape, bias=config.attention_bias, names=("Wqkv",), window=window)


class ModernBertMLP(nnx.Module):
    """The gated MLP; gate and up lie in one tensor."""

    def __init__(self, config: ModernBertConfig, init: Init):
        sizes = config.hidden_size, config.intermediate_size
        self.gate_up_proj = GateUp(init, *sizes, bias=config.mlp_bias, names=("Wi",))
        self.Wo = Linear(init, *sizes[::-1], bias=config.mlp_bias, axes=("mlp", "embed"))
        self.act = activation(config.hidden_activation)

    def __call__(self, x: Array) -> Array:
        gate, up = self.gate_up_proj(x)
        return self.Wo(self.act(gate) * up)


class ModernBertLayer(nnx.Module):
    """Attention and MLP, each on its normalised input and added to the residual.

    Args:
        index: of the layer; the first's input was normalised with the embedding.
    """

    def __init__(self, config: ModernBertConfig, init: Init, index: int):
        self.kind = (config.layer_types or [])[index]
        norm: dict[str, Any] = {"width": config.hidden_size, "eps": config.norm_eps, "bias": config.norm_bias}
        self.attn_norm = LayerNorm(init, **norm) if index else None
        self.attn = ModernBertAttention(config, init, self.kind)
        self.mlp_norm = LayerNorm(init, **norm)
        self.mlp = ModernBertMLP(config, init)

    def __call__(self, x: Array, span: Span, tables: dict[str, Table], weights: bool) -> tuple[Array, Array | None]:
        normed = x if self.attn_norm is None else self.attn_norm(x)
        attended, _, probabilities = self.attn(normed, span, tables[self.kind], None, weights)
        x = x + attended
        x = x + self.mlp(self.mlp_norm(x))
        return constrain(x, "batch", "length", None), probabilities  # (B, T, D)


class ModernBertModel(nnx.Module):
    """The encoder without a head."""

    def __init__(self, config: ModernBertConfig, init: Init):
        self.embeddings = ModernBertEmbeddings(config, init)
        self.layers = nnx.List([ModernBertLayer(config, init, i) for i in range(config.num_hidden_layers)])
        self.final_norm = LayerNorm(init, config.hidden_size, config.norm_eps, bias=config.norm_bias)
        self.ropes = LayerRopes.of(config.rope_parameters or {}, config.head_dim, config.max_position_embeddings)

    def __call__(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BaseModelOutput:
        """Runs the encoder on input_ids (B, T); positions count the columns if not given, windows always do."""
        x = self.embeddings(input_ids)  # (B, T, D)
        span = full_span(input_ids.shape[1], attention_mask)
        tables = self.ropes(span.queries if position_ids is None else position_ids, attention_mask)
        walk = run_encoder(self.layers, x, span, tables, weights=output_attentions)
        return walk.finish(self.final_norm(walk.x), output_hidden_states)


class ModernBertPredictionHead(nnx.Module):
    """What every head begins with: dense, activation and norm."""

    def __init__(self, config: ModernBertConfig, init: Init):
        self.dense = Linear(init, config.hidden_size, config.hidden_size, bias=config.classifier_bias)
        self.norm = LayerNorm(init, config.hidden_size, config.norm_eps, bias=config.norm_bias)
        self.act = activation(config.classifier_activation)

    def __call__(self, x: Array) -> Array:
        return self.norm(self.act(self.dense(x)))


class ModernBertHead(EncoderHead):
    """The encoder under a head, all of which begin with the same block."""

    base: ClassVar[str] = "model"

    def __init__(self, config: ModernBertConfig, init: Init):
        super().__init__(config, init)
        self.head = ModernBertPredictionHead(config, init)

    @staticmethod
    def encoder(config: ModernBertConfig, init: Init) -> ModernBertModel:
        """Makes the encoder."""
        return ModernBertModel(config, init)

    def features(self, x: Array) -> Array:
        """The encoder's states x (..., D) through the block."""
        return self.head(x)


class ModernBertForMaskedLM(ModernBertHead):
    """The encoder with a masked-language-model head."""

    def __init__(self, config: ModernBertConfig, init: Init):
        super().__init__(config, init)
        sizes, tied = (config.hidden_size, config.vocab_size), config.tie_word_embeddings
        self.decoder = VocabularyProjection(init, *sizes, tied=tied, bias=config.decoder_bias)

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of `ModernBertModel`."""
        out = self.encode(input_ids, **inputs)
        x = self.head(out.last_hidden_state)
        return head_output(out, self.decoder(x, self.base_model.embeddings.tok_embeddings.attend))  # (B, T, V)


class ModernBertForSequenceClassification(ModernBertHead):
    """The encoder with a classifier on the first token, or on the mean of the tokens."""

    def __init__(self, config: ModernBertConfig, init: Init):
        super().__init__(config, init)
        self.classifier = Linear(init, config.hidden_size, config.num_labels)
        self.mean = config.classifier_pooling == "mean"

    def __call__(self, input_ids: Array, *, attention_mask: Array | None = None, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of `ModernBertModel`."""
        out = self.encode(input_ids, attention_mask=attention_mask, **inputs)
        x = out.last_hidden_state
        if self.mean:
            seen = None if attention_mask is None else attention_mask.astype(bool)[..., None]
            pooled = jnp.mean(x.astype(jnp.float32), axis=1, where=seen).astype(x.dtype)  # (B, D)
        else:
            pooled = x[:, 0]
        return head_output(out, self.classifier(self.head(pooled)))  # (B, labels)


class ModernBertForTokenClassification(ModernBertHead, TokenClassification):
    """The encoder with a classifier on every token."""


class ModernBertForQuestionAnswering(ModernBertHead, QuestionAnswering):
    """The encoder with scores of the answer's first and last token."""

    span: ClassVar[str] = "classifier"


register(
    Architecture(
        config=ModernBertConfig,
        heads={
            BASE: ModernBertModel,
            MASKED_LM: ModernBertForMaskedLM,
            SEQUENCE_CLASSIFICATION: ModernBertForSequenceClassification,
            TOKEN_CLASSIFICATION: ModernBertForTokenClassification,
            QUESTION_ANSWERING: ModernBertForQuestionAnswering,
        },
        base="model",
        tied={"decoder.weight": "embeddings.tok_embeddings.weight"},
    )
)
