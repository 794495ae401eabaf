"""GPT-NeoX (Black et al., 2022; arXiv 2204.06745), as EleutherAI/pythia-160m and gpt-neox-20b hold it."""

from typing import Any, ClassVar

import jax
from flax import nnx

from jaxpipe.common.errors import ConfigError
from jaxpipe.common.outputs import BaseModelOutput
from jaxpipe.models.config import ModelConfig
from jaxpipe.models.decoder import classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.attention import Span, attend
from jaxpipe.nn.cache import KVLayer
from jaxpipe.nn.decoder import CausalLM, run_decoder
from jaxpipe.nn.embedding import Embedding
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout import GroupedHeads
from jaxpipe.nn.linear import HeadsOutProjection, QKVProjection
from jaxpipe.nn.mlp import DenseMLP
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.nn.rope import Rope, rope_parameters, rotate
from jaxpipe.sharding.rules import constrain

Array = jax.Array
Table = tuple[Array, Array]

# Rotated part of a head where config.json does not say.
ROTARY_PCT = 0.25


class GPTNeoXConfig(ModelConfig):
    """Configuration of GPT-NeoX and Pythia."""

    model_type: ClassVar[str] = "gpt_neox"
    inert: ClassVar[frozenset[str]] = frozenset({"hidden_dropout"})

    vocab_size: int = 50432
    hidden_size: int = 6144
    num_hidden_layers: int = 44
    num_attention_heads: int = 64
    intermediate_size: int = 24576
    hidden_act: str = "gelu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    use_parallel_residual: bool = True
    attention_bias: bool = True
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.hidden_act)
        self.rope_parameters = rope_parameters({"rope_parameters": self.rope_parameters}, partial=ROTARY_PCT)
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"config.json: hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}."
            )

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super().normalise(values)
        for old, new in (("rotary_emb_base", "rope_theta"), ("rotary_pct", "partial_rotary_factor")):
            if values.get(old) is not None:
                values[new] = values[old]
        values["rope_parameters"] = rope_parameters(values, partial=ROTARY_PCT)
        read = ("rotary_emb_base", "rotary_pct", "rope_theta", "rope_scaling", "partial_rotary_factor")
        return {key: value for key, value in values.items() if key not in read}


class GPTNeoXAttention(nnx.Module):
    """Multi-head self-attention, the first part of each head with rotary positions."""

    def __init__(self, config: GPTNeoXConfig, init: Init):
        width, heads, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
        shape = heads, heads, width // heads
        self.qkv_proj = QKVProjection(init, width, *shape, bias=bias, names=("query_key_value",), packing=GroupedHeads)
        self.dense = HeadsOutProjection(init, *shape, width, bias=bias)
        self.scale = (width // heads) ** -0.5

    def __call__(
        self, x: Array, span: Span, rope: Table, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        q, k, v = self.qkv_proj(x)  # (B, T, H, h) each
        out, cache, probabilities = attend(
            rotate(q, rope), rotate(k, rope), v, span, cache, scale=self.scale, weights=weights
        )
        return self.dense(out), cache, probabilities


class GPTNeoXLayer(nnx.Module):
    """Attention and MLP, each with a norm of its own, side by side or one after the other."""

    def __init__(self, config: GPTNeoXConfig, init: Init):
        width = config.hidden_size
        self.input_layernorm = LayerNorm(init, width, config.layer_norm_eps)
        self.post_attention_layernorm = LayerNorm(init, width, config.layer_norm_eps)
        self.attention = GPTNeoXAttention(config, init)
        self.mlp = DenseMLP(init, width, config.intermediate_size, activation(config.hidden_act))
        self.parallel = config.use_parallel_residual

    def __call__(
        self, x: Array, span: Span, rope: Table, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        attended, cache, probabilities = self.attention(self.input_layernorm(x), span, rope, cache, weights)
        seen = x if self.parallel else x + attended
        x = x + attended + self.mlp(self.post_attention_layernorm(seen))
        return constrain(x, "batch", "length", None), cache, probabilities  # (B, T, D)


class GPTNeoXModel(nnx.Module):
    """The decoder without a head."""

    def __init__(self, config: GPTNeoXConfig, init: Init):
        self.embed_in = Embedding(init, config.vocab_size, config.hidden_size, axis="vocab")
        self.layers = nnx.List([GPTNeoXLayer(config, init) for _ in range(config.num_hidden_layers)])
        self.final_layer_norm = LayerNorm(init, config.hidden_size, config.layer_norm_eps)
        head_dim = config.hidden_size // config.num_attention_heads
        self.rope = Rope.of(config.rope_parameters or {}, head_dim, config.max_position_embeddings)

    def cache_layers(self) -> list[tuple[int, int]]:
        """Key-value heads and head width of each layer's cache."""
        return [(layer.attention.qkv_proj.groups, layer.attention.qkv_proj.head_dim) for layer in self.layers]

    def __call__(self, input_ids: Array, **inputs: Any) -> BaseModelOutput:
        """Runs the decoder on input_ids (B, T); see `run_decoder` for the other inputs."""
        return run_decoder(self.layers, self.final_layer_norm, self.rope, self.embed_in(input_ids), **inputs)


class GPTNeoXForCausalLM(CausalLM):
    """The decoder with a language-model head, tied to the embedding where the config says so."""

    base: ClassVar[str] = "gpt_neox"
    embedding: ClassVar[str] = "embed_in"
    head: ClassVar[str] = "embed_out"

    def __init__(self, config: GPTNeoXConfig, init: Init):
        width, tied = config.hidden_size, config.tie_word_embeddings
        super().__init__(init, GPTNeoXModel(config, init), width, config.vocab_size, tied=tied)


register(
    Architecture(
        config=GPTNeoXConfig,
        heads={
            BASE: GPTNeoXModel,
            CAUSAL_LM: GPTNeoXForCausalLM,
            **classifiers("GPTNeoX", GPTNeoXModel, base="gpt_neox", tokens="classifier", answers="gpt_neox"),
        },
        base="gpt_neox",
        ignored=(r"layers\.\d+\.attention\.(bias|masked_bias)",),
        renamed=((r"^lm_head\.", "embed_out."),),
        tied={"embed_out.weight": "embed_in.weight"},
    )
)
