"""Falcon (Almazrouei et al., 2023; arXiv 2311.16867), as tiiuae/falcon-7b (one key-value head), falcon-40b (groups)
and falcon-rw-1b (linear biases) hold it.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, ClassVar

import jax
from flax import nnx

from jaxpipe.common.errors import ConfigError
from jaxpipe.common.gguf_spec import GGUFSpec
from jaxpipe.common.outputs import BaseModelOutput
from jaxpipe.models.config import ModelConfig
from jaxpipe.models.decoder import classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.alibi import alibi
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
# Cosine and sine of rotary positions, or linear biases.
Table = Any


class FalconConfig(ModelConfig):
    """Configuration of Falcon, in both of its architectures."""

    model_type: ClassVar[str] = "falcon"
    inert: ClassVar[frozenset[str]] = frozenset({"hidden_dropout"})
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "apply_residual_connection_post_layernorm": (False, None),
    }

    vocab_size: int = 65024
    hidden_size: int = 4544
    num_hidden_layers: int = 32
    num_attention_heads: int = 71
    num_ln_in_parallel_attn: int | None = None  # 2 in the new architecture, else 1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    num_kv_heads: int = 0  # as many as there are heads; read in the new architecture
    alibi: bool = False
    new_decoder_architecture: bool = False
    multi_query: bool = True
    parallel_attn: bool = True
    bias: bool = False
    max_position_embeddings: int = 2048
    rope_parameters: dict[str, Any] | None = None
    ffn_hidden_size: int = 0  # 4 * hidden_size
    activation: str = "gelu"
    bos_token_id: int | None = 11
    eos_token_id: int | list[int] | None = 11

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.activation, "activation")
        self.num_kv_heads = self.num_kv_heads or self.num_attention_heads
        self.ffn_hidden_size = self.ffn_hidden_size or 4 * self.hidden_size
        self.rope_parameters = rope_parameters({"rope_parameters": self.rope_parameters})
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.kv_heads:
            raise ConfigError(
                f"config.json: hidden_size={self.hidden_size} must be a multiple of "
                f"num_attention_heads={self.num_attention_heads}, and that of num_kv_heads={self.num_kv_heads}."
            )
        if self.norms == 2 and not self.new_decoder_architecture:
            raise ConfigError("config.json: num_ln_in_parallel_attn=2 needs new_decoder_architecture=true.")

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super().normalise(values)
        if values.get("n_embed") is not None:
            values["hidden_size"] = values["n_embed"]
        values["rope_parameters"] = rope_parameters(values)
        return {k: v for k, v in values.items() if k not in ("n_embed", "rope_theta", "rope_scaling")}

    @property
    def kv_heads(self) -> int:
        """Key-value heads, as the architecture has them."""
        if self.new_decoder_architecture:
            return self.num_kv_heads
        return 1 if self.multi_query else self.num_attention_heads

    @property
    def norms(self) -> int:
        """Norms before parallel attention and MLP: one for both, or one each."""
        return self.num_ln_in_parallel_attn or (2 if self.new_decoder_architecture else 1)


class FalconAttention(nnx.Module):
    """Grouped or multi-query attention with rotary positions or linear biases."""

    def __init__(self, config: FalconConfig, init: Init):
        width, heads = config.hidden_size, config.num_attention_heads
        shape = heads, config.kv_heads, width // heads
        self.qkv_proj = QKVProjection(
            init, width, *shape, bias=config.bias, names=("query_key_value",), packing=GroupedHeads
        )
        self.dense = HeadsOutProjection(init, *shape, width, bias=config.bias)
        self.alibi = config.alibi
        self.scale = (width // heads) ** -0.5

    def __call__(
        self, x: Array, span: Span, table: Table, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        q, k, v = self.qkv_proj(x)  # (B, T, H, h), (B, T, K, h), (B, T, K, h)
        bias = None
        if self.alibi:
            bias = self.scale * table
        else:
            q, k = rotate(q, table), rotate(k, table)
        out, cache, probabilities = attend(q, k, v, span, cache, scale=self.scale, weights=weights, bias=bias)
        return self.dense(out), cache, probabilities


class FalconDecoderLayer(nnx.Module):
    """Attention and MLP side by side, under one norm or two, or one after the other."""

    def __init__(self, config: FalconConfig, init: Init):
        width = config.hidden_size

        def norm() -> LayerNorm:
            return LayerNorm(init, width, config.layer_norm_epsilon)

        self.parallel = config.parallel_attn or config.new_decoder_architecture
        self.norms = config.norms
        self.self_attention = FalconAttention(config, init)
        self.mlp = DenseMLP(
            init, width, config.ffn_hidden_size, activation(config.activation, "activation"), bias=config.bias
        )
        if self.parallel and self.norms == 2:
            self.ln_attn, self.ln_mlp = norm(), norm()
        else:
            self.input_layernorm = norm()
            self.post_attention_layernorm = None if self.parallel else norm()

    def __call__(
        self, x: Array, span: Span, table: Table, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        two = self.parallel and self.norms == 2
        normed = self.ln_attn(x) if two else self.input_layernorm(x)
        attended, cache, probabilities = self.self_attention(normed, span, table, cache, weights)
        x, before = x + attended, x
        if two:
            normed = self.ln_mlp(before)
        elif self.post_attention_layernorm is not None:
            normed = self.post_attention_layernorm(x)
        x = x + self.mlp(normed)
        return constrain(x, "batch", "length", None), cache, probabilities  # (B, T, D)


class FalconModel(nnx.Module):
    """The decoder without a head."""

    def __init__(self, config: FalconConfig, init: Init):
        self.word_embeddings = Embedding(init, config.vocab_size, config.hidden_size, axis="vocab")
        self.h = nnx.List([FalconDecoderLayer(config, init) for _ in range(config.num_hidden_layers)])
        self.ln_f = LayerNorm(init, config.hidden_size, config.layer_norm_epsilon)
        self.heads = config.num_attention_heads
        head_dim = config.hidden_size // config.num_attention_heads
        self.rope = (
            None if config.alibi else Rope.of(config.rope_parameters or {}, head_dim, config.max_position_embeddings)
        )

    def cache_layers(self) -> list[tuple[int, int]]:
        """Key-value heads and head width of each layer's cache."""
        projections = [block.self_attention.qkv_proj for block in self.h]
        return [(projection.groups, projection.head_dim) for projection in projections]

    def __call__(self, input_ids: Array, **inputs: Any) -> BaseModelOutput:
        """Runs the decoder on input_ids (B, T); with linear biases and no cache the mask alone tells the positions.

        See `run_decoder` for the other inputs.
        """
        bias = None if self.rope is not None else partial(alibi, self.heads, rounded=True)
        return run_decoder(self.h, self.ln_f, self.rope, self.word_embeddings(input_ids), bias=bias, **inputs)


class FalconForCausalLM(CausalLM):
    """The decoder with a language-model head, tied to the embedding where the config says so."""

    base: ClassVar[str] = "transformer"
    embedding: ClassVar[str] = "word_embeddings"

    def __init__(self, config: FalconConfig, init: Init):
        width, tied = config.hidden_size, config.tie_word_embeddings
        super().__init__(init, FalconModel(config, init), width, config.vocab_size, tied=tied)


def _gguf_architecture(config: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """Makes the keys that tell the architectures apart; with one key-value head and one norm both compute the same."""
    two = "blk.0.attn_norm_2.weight" in tensors
    kv_heads = config.get("num_kv_heads", config.get("num_attention_heads"))
    return {"new_decoder_architecture": two or kv_heads != 1, "num_ln_in_parallel_attn": 1 + two}


register(
    Architecture(
        config=FalconConfig,
        heads={
            BASE: FalconModel,
            CAUSAL_LM: FalconForCausalLM,
            **classifiers("Falcon", FalconModel, base="transformer", tokens="classifier", answers="transformer"),
        },
        base="transformer",
        tied={"lm_head.weight": "word_embeddings.weight"},
        gguf=GGUFSpec(
            architecture="falcon",
            model_type="falcon",
            tensors={
                "token_embd": "transformer.word_embeddings",
                "output_norm": "transformer.ln_f",
                "output": "lm_head",
                "blk.{bid}.attn_norm": "transformer.h.{bid}.input_layernorm",
                "blk.{bid}.attn_norm_2": "transformer.h.{bid}.ln_attn",
                "blk.{bid}.attn_qkv": "transformer.h.{bid}.self_attention.query_key_value",
                "blk.{bid}.attn_output": "transformer.h.{bid}.self_attention.dense",
                "blk.{bid}.ffn_up": "transformer.h.{bid}.mlp.dense_h_to_4h",
                "blk.{bid}.ffn_down": "transformer.h.{bid}.mlp.dense_4h_to_h",
            },
            config_keys={
                "attention.head_count_kv": "num_kv_heads",
                "attention.layer_norm_epsilon": "layer_norm_epsilon",
                "feed_forward_length": "ffn_hidden_size",
                "attention.key_length": None,
            },
            transforms={r".*\.query_key_value\.weight": "regroup_heads"},
            variants={"blk.0.attn_norm_2.weight": {"blk.{bid}.attn_norm": "transformer.h.{bid}.ln_mlp"}},
            derive=_gguf_architecture,
        ),
    )
)
