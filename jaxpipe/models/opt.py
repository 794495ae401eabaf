"""OPT (Zhang et al., 2022; arXiv 2205.01068), as facebook/opt-125m and, with its norms behind, opt-350m hold it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
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
from jaxpipe.nn.linear import HeadsOutProjection, Linear, QKVProjection
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.nn.positions import LearnedPositions
from jaxpipe.sharding.rules import constrain

Array = jax.Array

EPS = 1e-5


class OPTConfig(ModelConfig):
    """Configuration of OPT."""

    model_type: ClassVar[str] = "opt"
    inert: ClassVar[frozenset[str]] = frozenset({"activation_dropout", "dropout", "layerdrop"})
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "_remove_final_layer_norm": (False, None),
        "layer_norm_elementwise_affine": (True, None),
    }
    attribute_map: ClassVar[Mapping[str, str]] = {"initializer_range": "init_std"}

    vocab_size: int = 50272
    hidden_size: int = 768
    num_hidden_layers: int = 12
    ffn_dim: int = 3072
    max_position_embeddings: int = 2048
    do_layer_norm_before: bool = True
    word_embed_proj_dim: int = 0  # hidden_size
    num_attention_heads: int = 12
    activation_function: str = "relu"
    init_std: float = 0.02
    enable_bias: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.activation_function, "activation_function")
        self.word_embed_proj_dim = self.word_embed_proj_dim or self.hidden_size
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"config.json: hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}."
            )

    def limits(self) -> dict[str, int]:
        """First value that is out of range of each input."""
        return {"input_ids": self.vocab_size, "position_ids": self.max_position_embeddings}


class OPTAttention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, config: OPTConfig, init: Init):
        head_dim = config.hidden_size // config.num_attention_heads
        shape = config.num_attention_heads, config.num_attention_heads, head_dim
        self.qkv_proj = QKVProjection(init, config.hidden_size, *shape, bias=config.enable_bias)
        self.out_proj = HeadsOutProjection(init, *shape, config.hidden_size, bias=config.enable_bias)
        self.scale = head_dim**-0.5

    def __call__(
        self, x: Array, span: Span, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        q, k, v = self.qkv_proj(x)  # (B, T, H, h) each
        out, cache, probabilities = attend(q, k, v, span, cache, scale=self.scale, weights=weights)
        return self.out_proj(out), cache, probabilities


class OPTDecoderLayer(nnx.Module):
    """Attention and MLP, each added to the residual, with the norm before each or behind."""

    def __init__(self, config: OPTConfig, init: Init):
        width, bias = config.hidden_size, config.enable_bias
        self.self_attn = OPTAttention(config, init)
        self.self_attn_layer_norm = LayerNorm(init, width, EPS)
        self.fc1 = Linear(init, width, config.ffn_dim, bias=bias, axes=("embed", "mlp"))
        self.fc2 = Linear(init, config.ffn_dim, width, bias=bias, axes=("mlp", "embed"))
        self.final_layer_norm = LayerNorm(init, width, EPS)
        self.act = activation(config.activation_function, "activation_function")
        self.norm_first = config.do_layer_norm_before

    def __call__(
        self, x: Array, span: Span, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        normed = self.self_attn_layer_norm(x) if self.norm_first else x
        attended, cache, probabilities = self.self_attn(normed, span, cache, weights)
        x = x + attended
        x = x if self.norm_first else self.self_attn_layer_norm(x)
        normed = self.final_layer_norm(x) if self.norm_first else x
        x = x + self.fc2(self.act(self.fc1(normed)))
        x = x if self.norm_first else self.final_layer_norm(x)
        return constrain(x, "batch", "length", None), cache, probabilities  # (B, T, D)


class OPTDecoder(nnx.Module):
    """The decoder; its embedding may be narrower than its layers."""

    def __init__(self, config: OPTConfig, init: Init):
        width, narrow = config.hidden_size, config.word_embed_proj_dim
        self.embed_tokens = Embedding(init, config.vocab_size, narrow, axis="vocab")
        self.embed_positions = LearnedPositions(init, config.max_position_embeddings, width)
        self.project_in = None if narrow == width else Linear(init, narrow, width, bias=False, axes=(None, "embed"))
        self.project_out = None if narrow == width else Linear(init, width, narrow, bias=False)
        self.layers = nnx.List([OPTDecoderLayer(config, init) for _ in range(config.num_hidden_layers)])
        self.final_layer_norm = LayerNorm(init, width, EPS) if config.do_layer_norm_before else None

    def __call__(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        **inputs: Any,
    ) -> BaseModelOutput:
        """Runs the decoder on input_ids (B, T); positions are counted along the mask where none are given.

        See `run_decoder` for the other inputs.
        """
        x = self.embed_tokens(input_ids)
        if self.project_in is not None:
            x = self.project_in(x)
        x = x + self.embed_positions(input_ids, _positions(attention_mask, position_ids))
        given = {"attention_mask": attention_mask, "position_ids": position_ids, **inputs}
        return run_decoder(self.layers, self._finish, None, x, **given)

    def _finish(self, x: Array) -> Array:
        x = x if self.final_layer_norm is None else self.final_layer_norm(x)
        return x if self.project_out is None else self.project_out(x)


def _positions(attention_mask: Array | None, position_ids: Array | None) -> Array | None:
    """The positions (B, T): those given, else the number of tokens before, -1 at padding; None for the columns."""
    if position_ids is not None or attention_mask is None:
        return position_ids
    valid = attention_mask.astype(jnp.int32)
    return jnp.cumsum(valid, axis=1) * valid - 1


class OPTModel(nnx.Module):
    """The decoder without a head, under the name that its weights have."""

    def __init__(self, config: OPTConfig, init: Init):
        self.decoder = OPTDecoder(config, init)

    def cache_layers(self) -> list[tuple[int, int]]:
        """Key-value heads and head width of each layer's cache."""
        projections = [layer.self_attn.qkv_proj for layer in self.decoder.layers]
        return [(projection.groups, projection.head_dim) for projection in projections]

    def __call__(self, input_ids: Array, **inputs: Any) -> BaseModelOutput:
        """Runs the decoder; see `OPTDecoder`."""
        return self.decoder(input_ids, **inputs)


class OPTForCausalLM(CausalLM):
    """The decoder with a language-model head, tied to the embedding where the config says so."""

    embedding: ClassVar[str] = "decoder.embed_tokens"

    def __init__(self, config: OPTConfig, init: Init):
        width, tied = config.word_embed_proj_dim, config.tie_word_embeddings
        super().__init__(init, OPTModel(config, init), width, config.vocab_size, tied=tied)


register(
    Architecture(
        config=OPTConfig,
        heads={
            BASE: OPTModel,
            CAUSAL_LM: OPTForCausalLM,
            **classifiers("OPT", OPTModel, tokens=None, answers="model", width="word_embed_proj_dim"),
        },
        base="model",
        tied={"lm_head.weight": "decoder.embed_tokens.weight"},
    )
)
