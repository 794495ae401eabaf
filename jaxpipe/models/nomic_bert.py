"""Nomic BERT (Nussbaum et al., 2024; arXiv 2402.01613), as nomic-ai/nomic-embed-text-v1.5 holds it."""

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
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Architecture,
    register,
)
from jaxpipe.nn.activations import activation
from jaxpipe.nn.attention import Span, full_span
from jaxpipe.nn.bert import BertPooler, Predictions
from jaxpipe.nn.embedding import Embedding
from jaxpipe.nn.encoder import (
    EncoderHead,
    PooledClassification,
    TokenClassification,
    head_output,
    run_encoder,
)
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import GateUp, Linear
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.nn.rope import Rope, Table, rope_parameters
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.sharding.rules import constrain

Array = jax.Array

THETA = 1000.0
# Activations of the gate by the names that they had before Transformers knew the type.
GATES = {"swiglu": "silu", "geglu": "gelu"}


class NomicBertConfig(ModelConfig):
    """Configuration of Nomic BERT, in Transformers' dialect and in the one of the repositories' own code."""

    model_type: ClassVar[str] = "nomic_bert"
    inert: ClassVar[frozenset[str]] = frozenset(
        """attn_pdrop dense_seq_output embd_pdrop fused_bias_fc fused_dropout_add_ln last_layer_subset
        max_trained_positions mlp_multiple_of pad_vocab_size_multiple parallel_block_tied_norm reorder_and_upcast_attn
        resid_pdrop scale_attn_by_inverse_layer_idx scale_attn_weights summary_activation summary_first_dropout
        summary_proj_to_labels summary_type summary_use_proj use_flash_attn use_xentropy""".split()
    )
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "causal": (False, None),
        "mlp_fc1_bias": (False, None),
        "mlp_fc2_bias": (False, None),
        "moe_every_n_layers": (0, None),
        "parallel_block": (False, None),
        "prenorm": (False, None),
        "qkv_proj_bias": (False, None),
        "rotary_emb_fraction": (1.0, None),
        "rotary_emb_interleaved": (False, None),
        "rotary_emb_scale_base": (None,),
        "rotary_scaling_factor": (None,),
        "use_rms_norm": (False, None),
    }
    attribute_map: ClassVar[Mapping[str, str]] = {
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_layer": "num_hidden_layers",
        "n_positions": "max_position_embeddings",
        "layer_norm_epsilon": "layer_norm_eps",
    }

    vocab_size: int = 30528
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    head_dim: int = 0  # hidden_size / num_attention_heads
    intermediate_size: int = 3072
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    rope_parameters: dict[str, Any] | None = None
    pad_token_id: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.hidden_act)
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.rope_parameters = rope_parameters({"rope_parameters": self.rope_parameters}, theta=THETA)

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super().normalise(values)
        gate = values.pop("activation_function", None)
        if gate is not None and gate not in GATES:
            raise ConfigError(f"config.json: activation_function={gate!r} has no gate; accepted: {', '.join(GATES)}.")
        values.setdefault("hidden_act", GATES[gate] if gate else "silu")
        base = values.pop("rotary_emb_base", None)
        values["rope_parameters"] = rope_parameters(values, theta=base or THETA)
        return {k: v for k, v in values.items() if k not in ("rope_theta", "rope_scaling")}

    def limits(self) -> dict[str, int]:
        """First value out of range of each input."""
        return {"input_ids": self.vocab_size, "token_type_ids": self.type_vocab_size}


class NomicBertEmbeddings(nnx.Module):
    """The sum of the embeddings of word and token type."""

    def __init__(self, config: NomicBertConfig, init: Init):
        self.word_embeddings = Embedding(init, config.vocab_size, config.hidden_size, axis="vocab")
        self.token_type_embeddings = Embedding(init, config.type_vocab_size, config.hidden_size)

    def __call__(self, input_ids: Array, token_type_ids: Array | None) -> Array:
        types = jnp.zeros((1, 1), jnp.int32) if token_type_ids is None else token_type_ids
        return self.word_embeddings(input_ids) + self.token_type_embeddings(types)  # (B, T, D)


class NomicBertAttention(RotaryAttention):
    """Self-attention in both directions, with rotary positions."""

    output: ClassVar[str] = "out_proj"

    def __init__(self, config: NomicBertConfig, init: Init):
        heads = config.num_attention_heads
        super().__init__(init, config.hidden_size, (heads, heads, config.head_dim), names=("Wqkv",))


class NomicBertMLP(nnx.Module):
    """The gated MLP, under the names of the checkpoints: fc12 is the gate."""

    def __init__(self, config: NomicBertConfig, init: Init):
        sizes = config.hidden_size, config.intermediate_size
        self.gate_up_proj = GateUp(init, *sizes, names=("fc12", "fc11"))
        self.fc2 = Linear(init, *sizes[::-1], bias=False, axes=("mlp", "embed"))
        self.act = activation(config.hidden_act)

    def __call__(self, x: Array) -> Array:
        gate, up = self.gate_up_proj(x)
        return self.fc2(self.act(gate) * up)


class NomicBertLayer(nnx.Module):
    """Attention and MLP, each normalised after it was added to the residual."""

    def __init__(self, config: NomicBertConfig, init: Init):
        self.attn = NomicBertAttention(config, init)
        self.norm1 = LayerNorm(init, config.hidden_size, config.layer_norm_eps)
        self.mlp = NomicBertMLP(config, init)
        self.norm2 = LayerNorm(init, config.hidden_size, config.layer_norm_eps)

    def __call__(self, x: Array, span: Span, table: Table, weights: bool) -> tuple[Array, Array | None]:
        attended, _, probabilities = self.attn(x, span, table, None, weights)
        x = self.norm1(x + attended)
        x = self.norm2(x + self.mlp(x))
        return constrain(x, "batch", "length", None), probabilities  # (B, T, D)


class NomicBertEncoder(nnx.Module):
    """The layers."""

    def __init__(self, config: NomicBertConfig, init: Init):
        self.layers = nnx.List([NomicBertLayer(config, init) for _ in range(config.num_hidden_layers)])


class NomicBertModel(nnx.Module):
    """The encoder without a head.

    Args:
        pooler: with the pooler, which only the classifier of sequences has.
    """

    def __init__(self, config: NomicBertConfig, init: Init, *, pooler: bool = False):
        self.embeddings = NomicBertEmbeddings(config, init)
        self.emb_ln = LayerNorm(init, config.hidden_size, config.layer_norm_eps)
        self.encoder = NomicBertEncoder(config, init)
        self.pooler = BertPooler(config, init) if pooler else None
        self.rope = Rope.of(config.rope_parameters or {}, config.head_dim, config.max_position_embeddings)

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
        x = self.emb_ln(self.embeddings(input_ids, token_type_ids))
        x = constrain(x, "batch", "length", None)  # (B, T, D)
        span = full_span(input_ids.shape[1], attention_mask)
        table = self.rope(span.queries if position_ids is None else position_ids, attention_mask)
        walk = run_encoder(self.encoder.layers, x, span, table, weights=output_attentions)
        out = walk.finish(walk.x, output_hidden_states)
        if self.pooler is not None:
            out.pooler_output = self.pooler(walk.x)
        return out


class NomicBertHead(EncoderHead):
    """The encoder under a head."""

    base: ClassVar[str] = "nomic_bert"

    @staticmethod
    def encoder(config: NomicBertConfig, init: Init) -> NomicBertModel:
        """Makes the encoder."""
        return NomicBertModel(config, init)


class NomicBertForMaskedLM(NomicBertHead):
    """The encoder with a masked-language-model head."""

    def __init__(self, config: NomicBertConfig, init: Init):
        super().__init__(config, init)
        self.cls = Predictions(config, init, tied=config.tie_word_embeddings, norm="layer_norm")

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of `NomicBertModel`."""
        out = self.encode(input_ids, **inputs)
        embedding = self.base_model.embeddings.word_embeddings.attend
        return head_output(out, self.cls.predictions(out.last_hidden_state, embedding))  # (B, T, V)


class NomicBertForSequenceClassification(NomicBertHead, PooledClassification):
    """The encoder with a classifier on the pooled first token."""

    @staticmethod
    def encoder(config: NomicBertConfig, init: Init) -> NomicBertModel:
        """Makes the encoder, with its pooler."""
        return NomicBertModel(config, init, pooler=True)


class NomicBertForTokenClassification(NomicBertHead, TokenClassification):
    """The encoder with a classifier on every token."""


register(
    Architecture(
        config=NomicBertConfig,
        heads={
            BASE: NomicBertModel,
            MASKED_LM: NomicBertForMaskedLM,
            SEQUENCE_CLASSIFICATION: NomicBertForSequenceClassification,
            TOKEN_CLASSIFICATION: NomicBertForTokenClassification,
        },
        base="nomic_bert",
        # As the code of nomic-ai/nomic-bert-2048 calls the base model.
        renamed=((r"^bert\.", "nomic_bert."),),
        tied={
            "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
    )
)
