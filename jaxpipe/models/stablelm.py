"""StableLM (Bellagente et al., 2024; arXiv 2402.17834), as stabilityai/stablelm-2-12b holds it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.common.errors import ConfigError
from jaxpipe.models.decoder import DecoderConfig, classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.attention import Span
from jaxpipe.nn.cache import KVLayer
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout import Stacked
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import RotaryDecoder
from jaxpipe.sharding.rules import constrain

Array = jax.Array


class StableLmConfig(DecoderConfig):
    """Configuration of StableLM."""

    model_type: ClassVar[str] = "stablelm"
    inert: ClassVar[frozenset[str]] = frozenset({"hidden_dropout"})
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"rotary_scaling_factor": (1.0, None)}
    default_rotary_factor: ClassVar[float | None] = 0.25

    vocab_size: int = 50304
    hidden_size: int = 2560
    intermediate_size: int = 6912
    num_key_value_heads: int = 32
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    layer_norm_eps: float = 1e-5
    use_qkv_bias: bool = False
    qk_layernorm: bool = False
    use_parallel_residual: bool = False
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim * self.num_attention_heads != self.hidden_size:
            raise ConfigError(
                f"config.json: hidden_size={self.hidden_size} must be num_attention_heads="
                f"{self.num_attention_heads} times the width of a head, which is {self.head_dim}."
            )


class HeadLayerNorm(nnx.Module):
    """Layer norm of each head (B, T, H, h) with a scale of its own and no bias."""

    def __init__(self, init: Init, heads: int, width: int, eps: float):
        names = tuple(f"norms.{i}.weight" for i in range(heads))
        self.scale = init.param((None, None), (heads, width), Stacked(names, width, None), initializer="ones")
        self.heads, self.eps = heads, eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        scale = jnp.repeat(self.scale[...].astype(jnp.float32), x.shape[-2] // self.heads, axis=0)
        return (x32 * scale).astype(x.dtype)


class StableLmAttention(RotaryAttention):
    """Attention of which a part of each head is rotated."""

    norms: ClassVar[tuple[str, str]] = ("q_layernorm", "k_layernorm")


class StableLmDecoderLayer(nnx.Module):
    """Attention and MLP, one after the other, or side by side on the same normalised input."""

    def __init__(self, config: StableLmConfig, init: Init):
        width, eps = config.hidden_size, config.layer_norm_eps
        self.input_layernorm = LayerNorm(init, width, eps)
        self.self_attn = StableLmAttention(
            init,
            width,
            config.heads,
            bias=config.use_qkv_bias,
            output_bias=False,
            qk_norm=(lambda heads: HeadLayerNorm(init, heads, config.head_dim, eps)) if config.qk_layernorm else None,
        )
        self.post_attention_layernorm = None if config.use_parallel_residual else LayerNorm(init, width, eps)
        self.mlp = GatedMLP(init, width, config.intermediate_size, activation(config.hidden_act))

    def __call__(
        self, x: Array, span: Span, table: Any, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        normed = self.input_layernorm(x)
        attended, cache, probabilities = self.self_attn(normed, span, table, cache, weights)
        x = x + attended
        if self.post_attention_layernorm is not None:
            normed = self.post_attention_layernorm(x)
        x = x + self.mlp(normed)
        return constrain(x, "batch", "length", None), cache, probabilities  # (B, T, D)


class StableLmModel(RotaryDecoder):
    """The decoder without a head."""

    def __init__(self, config: StableLmConfig, init: Init):
        layers = [StableLmDecoderLayer(config, init) for _ in range(config.num_hidden_layers)]
        norm = LayerNorm(init, config.hidden_size, config.layer_norm_eps)
        super().__init__(init, config.vocab_size, config.hidden_size, layers, norm, config.rope())


class StableLmForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: StableLmConfig, init: Init):
        model = StableLmModel(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=StableLmConfig,
        heads={BASE: StableLmModel, CAUSAL_LM: StableLmForCausalLM, **classifiers("StableLm", StableLmModel)},
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
    )
)
