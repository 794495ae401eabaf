"""OLMo (Groeneveld et al., 2024; arXiv 2402.00838), as allenai/OLMo-7B-0724-hf holds it."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.models.decoder import DecoderConfig, classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.rope import rotate
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PreNormLayer, RotaryDecoder

Array = jax.Array
EPS = 1e-5


class OlmoConfig(DecoderConfig):
    """Configuration of OLMo."""

    model_type: ClassVar[str] = "olmo"

    vocab_size: int = 50304
    intermediate_size: int = 11008
    hidden_act: str = "silu"
    attention_bias: bool = False
    clip_qkv: float | None = None
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 50279


class OlmoLayerNorm(nnx.Module):
    """Layer norm without weights."""

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + EPS)).astype(x.dtype)


class OlmoAttention(RotaryAttention):
    """Attention whose queries, keys and values are clipped to `clip` on either side of zero, if it is given."""

    def __init__(self, config: OlmoConfig, init: Init):
        super().__init__(init, config.hidden_size, config.heads, bias=config.attention_bias)
        self.clip = config.clip_qkv

    def project(self, x: Array, table: Any) -> tuple[Array, Array, Array]:
        """Queries, keys and values of x (B, T, D), clipped and rotated."""
        q, k, v = self.qkv_proj(x)
        if self.clip is not None:
            q, k, v = (jnp.clip(part, -self.clip, self.clip) for part in (q, k, v))
        return rotate(q, table), rotate(k, table), v


class OlmoModel(RotaryDecoder):
    """The decoder without a head."""

    def __init__(self, config: OlmoConfig, init: Init):
        def layer() -> PreNormLayer:
            mlp = GatedMLP(init, config.hidden_size, config.intermediate_size, activation(config.hidden_act))
            return PreNormLayer(OlmoAttention(config, init), mlp, OlmoLayerNorm)

        layers = [layer() for _ in range(config.num_hidden_layers)]
        super().__init__(init, config.vocab_size, config.hidden_size, layers, OlmoLayerNorm(), config.rope())


class OlmoForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: OlmoConfig, init: Init):
        model = OlmoModel(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=OlmoConfig,
        heads={BASE: OlmoModel, CAUSAL_LM: OlmoForCausalLM, **classifiers("Olmo", OlmoModel, tokens=None)},
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
    )
)
