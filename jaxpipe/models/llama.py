"""Llama (Touvron et al., 2023; arXiv 2302.13971 and 2407.21783), as meta-llama/Llama-3.1-8B holds it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import nnx

from jaxpipe.common.errors import ConfigError
from jaxpipe.common.gguf_spec import GGUFSpec
from jaxpipe.common.outputs import BaseModelOutput, LogitsOutput
from jaxpipe.models.config import ModelConfig
from jaxpipe.models.decoder import GGUF_TENSORS, classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.attention import Span, attend, causal_span
from jaxpipe.nn.cache import Cache, KVLayer
from jaxpipe.nn.decoder import language_model_output, run_layers
from jaxpipe.nn.embedding import Embedding
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import HeadsOutProjection, Linear, QKVProjection
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.rope import Rope, rope_parameters, rotate
from jaxpipe.sharding.rules import constrain

Array = jax.Array
Table = tuple[Array, Array]


class LlamaConfig(ModelConfig):
    """Configuration of Llama and of what is built like it."""

    model_type: ClassVar[str] = "llama"
    inert: ClassVar[frozenset[str]] = frozenset({"is_llama_config", "mlp_dropout"})
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"rope_interleaved": (False, None)}

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 0  # as many as there are heads
    head_dim: int = 0  # hidden_size / num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.hidden_act)
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.rope_parameters = rope_parameters({"rope_parameters": self.rope_parameters})
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"config.json: num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}."
            )

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super().normalise(values)
        values["rope_parameters"] = rope_parameters(values)
        return {k: v for k, v in values.items() if k not in ("rope_theta", "rope_scaling", "partial_rotary_factor")}


class LlamaAttention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: LlamaConfig, init: Init):
        shape = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.qkv_proj = QKVProjection(init, config.hidden_size, *shape, bias=config.attention_bias)
        self.o_proj = HeadsOutProjection(init, *shape, config.hidden_size, bias=config.attention_bias)
        self.scale = config.head_dim**-0.5

    def __call__(
        self, x: Array, span: Span, rope: Table, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        q, k, v = self.qkv_proj(x)  # (B, T, H, h), (B, T, K, h), (B, T, K, h)
        out, cache, probabilities = attend(
            rotate(q, rope), rotate(k, rope), v, span, cache, scale=self.scale, weights=weights
        )
        return self.o_proj(out), cache, probabilities


class LlamaDecoderLayer(nnx.Module):
    """Attention and MLP, each on its normalised input and added to the residual."""

    def __init__(self, config: LlamaConfig, init: Init):
        self.input_layernorm = RMSNorm(init, config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config, init)
        self.post_attention_layernorm = RMSNorm(init, config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(
            init, config.hidden_size, config.intermediate_size, activation(config.hidden_act), bias=config.mlp_bias
        )

    def __call__(
        self, x: Array, span: Span, rope: Table, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        attended, cache, probabilities = self.self_attn(self.input_layernorm(x), span, rope, cache, weights)
        x = x + attended
        x = x + self.mlp(self.post_attention_layernorm(x))
        return constrain(x, "batch", "length", None), cache, probabilities  # (B, T, D)


class LlamaModel(nnx.Module):
    """The decoder without a head."""

    def __init__(self, config: LlamaConfig, init: Init):
        self.embed_tokens = Embedding(init, config.vocab_size, config.hidden_size, axis="vocab")
        self.layers = nnx.List([LlamaDecoderLayer(config, init) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(init, config.hidden_size, config.rms_norm_eps)
        self.rope = Rope.of(config.rope_parameters or {}, config.head_dim, config.max_position_embeddings)

    def cache_layers(self) -> list[tuple[int, int]]:
        """Key-value heads and head width of each layer's cache."""
        return [(layer.self_attn.qkv_proj.groups, layer.self_attn.qkv_proj.head_dim) for layer in self.layers]

    def __call__(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        cache: Cache | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BaseModelOutput:
        """Runs the decoder on input_ids (B, T); see `Span` for what the mask and the positions mean."""
        x = constrain(self.embed_tokens(input_ids), "batch", "length", None)  # (B, T, D)
        if cache is not None:
            cache = cache.enter(position_ids, attention_mask)
        span = causal_span(input_ids.shape[1], attention_mask, position_ids, cache)
        rope = self.rope(span.queries if position_ids is None else position_ids, attention_mask)
        out = run_layers(self.layers, x, span, rope, cache=cache, weights=output_attentions)
        return out.finish(self.norm(out.x), output_hidden_states)


class LlamaForCausalLM(nnx.Module):
    """The decoder with a language-model head, tied to the embedding where the config says so."""

    def __init__(self, config: LlamaConfig, init: Init):
        self.model = LlamaModel(config, init)
        head = (config.hidden_size, config.vocab_size)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(init, *head, bias=False, axes=("embed", "vocab"))

    def cache_layers(self) -> list[tuple[int, int]]:
        """Key-value heads and head width of each layer's cache."""
        return self.model.cache_layers()

    def logits(self, x: Array) -> Array:
        """Scores (B, T, V) of states x (B, T, D)."""
        return self.model.embed_tokens.attend(x) if self.lm_head is None else self.lm_head(x)

    def __call__(self, input_ids: Array, *, last: Array | None = None, **inputs: Any) -> LogitsOutput:
        """Runs the decoder; `last` (B,) picks the one column of each row whose logits are computed."""
        return language_model_output(self.model(input_ids, **inputs), self.logits, last)


register(
    Architecture(
        config=LlamaConfig,
        heads={
            BASE: LlamaModel,
            CAUSAL_LM: LlamaForCausalLM,
            **classifiers("Llama", LlamaModel, answers="transformer"),
        },
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
        gguf=GGUFSpec(
            architecture="llama",
            model_type="llama",
            tensors=GGUF_TENSORS,
            flags={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"},
            transforms={
                r".*\.q_proj\.(weight|bias)": "unpermute_heads",
                r".*\.k_proj\.(weight|bias)": "unpermute_kv_heads",
            },
        ),
    )
)
