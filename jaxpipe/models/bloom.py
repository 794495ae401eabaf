"""BLOOM (BigScience, 2022; arXiv 2211.05100), as bigscience/bloom-560m holds it."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
from flax import nnx

from jaxpipe.common.errors import ConfigError
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
from jaxpipe.sharding.rules import constrain

Array = jax.Array


class BloomConfig(ModelConfig):
    """Configuration of BLOOM."""

    model_type: ClassVar[str] = "bloom"
    # slow_but_exact sums the parts of a product as several devices did; the sum is the same.
    inert: ClassVar[frozenset[str]] = frozenset(
        """attention_softmax_in_fp32 bias_dropout_fusion hidden_dropout masked_softmax_fusion n_inner offset_alibi
        seq_length skip_bias_add skip_bias_add_qkv slow_but_exact unk_token_id""".split()
    )
    attribute_map: ClassVar[Mapping[str, str]] = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}

    vocab_size: int = 250880
    hidden_size: int = 64
    n_layer: int = 2
    n_head: int = 8
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    apply_residual_connection_post_layernorm: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.n_head:
            raise ConfigError(f"config.json: hidden_size={self.hidden_size} is not a multiple of n_head={self.n_head}.")

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super().normalise(values)
        width = values.pop("n_embed", None)
        return values if width is None else {**values, "hidden_size": width}


class BloomAttention(nnx.Module):
    """Multi-head self-attention; linear biases tell its positions."""

    def __init__(self, config: BloomConfig, init: Init):
        width, heads = config.hidden_size, config.n_head
        shape = heads, heads, width // heads
        self.qkv_proj = QKVProjection(init, width, *shape, bias=True, names=("query_key_value",), packing=GroupedHeads)
        self.dense = HeadsOutProjection(init, *shape, width, bias=True)
        self.scale = (width // heads) ** -0.5

    def __call__(
        self, x: Array, span: Span, bias: Array, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        q, k, v = self.qkv_proj(x)  # (B, T, H, h) each
        out, cache, probabilities = attend(q, k, v, span, cache, scale=self.scale, weights=weights, bias=bias)
        return self.dense(out), cache, probabilities


class BloomBlock(nnx.Module):
    """Attention and MLP, each on its normalised input and added to the residual, which may be the normalised one."""

    def __init__(self, config: BloomConfig, init: Init):
        width = config.hidden_size
        self.input_layernorm = LayerNorm(init, width, config.layer_norm_epsilon)
        self.self_attention = BloomAttention(config, init)
        self.post_attention_layernorm = LayerNorm(init, width, config.layer_norm_epsilon)
        self.mlp = DenseMLP(init, width, 4 * width, activation("gelu_new"))
        self.normed_residual = config.apply_residual_connection_post_layernorm

    def __call__(
        self, x: Array, span: Span, bias: Array, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        normed = self.input_layernorm(x)
        attended, cache, probabilities = self.self_attention(normed, span, bias, cache, weights)
        x = (normed if self.normed_residual else x) + attended
        normed = self.post_attention_layernorm(x)
        x = (normed if self.normed_residual else x) + self.mlp(normed)
        return constrain(x, "batch", "length", None), cache, probabilities  # (B, T, D)


class BloomModel(nnx.Module):
    """The decoder without a head."""

    def __init__(self, config: BloomConfig, init: Init):
        self.word_embeddings = Embedding(init, config.vocab_size, config.hidden_size, axis="vocab")
        self.word_embeddings_layernorm = LayerNorm(init, config.hidden_size, config.layer_norm_epsilon)
        self.h = nnx.List([BloomBlock(config, init) for _ in range(config.n_layer)])
        self.ln_f = LayerNorm(init, config.hidden_size, config.layer_norm_epsilon)
        self.heads = config.n_head

    def cache_layers(self) -> list[tuple[int, int]]:
        """Key-value heads and head width of each layer's cache."""
        projections = [block.self_attention.qkv_proj for block in self.h]
        return [(projection.groups, projection.head_dim) for projection in projections]

    def __call__(self, input_ids: Array, **inputs: Any) -> BaseModelOutput:
        """Runs the decoder on input_ids (B, T); without a cache the mask alone tells the positions.

        See `run_decoder` for the other inputs.
        """
        x = self.word_embeddings_layernorm(self.word_embeddings(input_ids))
        return run_decoder(self.h, self.ln_f, None, x, bias=partial(alibi, self.heads), **inputs)


class BloomForCausalLM(CausalLM):
    """The decoder with a language-model head, tied to the embedding where the config says so."""

    base: ClassVar[str] = "transformer"
    embedding: ClassVar[str] = "word_embeddings"

    def __init__(self, config: BloomConfig, init: Init):
        width, tied = config.hidden_size, config.tie_word_embeddings
        super().__init__(init, BloomModel(config, init), width, config.vocab_size, tied=tied)


register(
    Architecture(
        config=BloomConfig,
        heads={
            BASE: BloomModel,
            CAUSAL_LM: BloomForCausalLM,
            **classifiers("Bloom", BloomModel, base="transformer", tokens="classifier", answers="transformer"),
        },
        base="transformer",
        tied={"lm_head.weight": "word_embeddings.weight"},
    )
)
