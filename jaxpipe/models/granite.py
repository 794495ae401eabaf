"""Granite 3 (IBM, 2024), as ibm-granite/granite-3.3-8b-instruct holds it."""

from typing import ClassVar

import jax

from jaxpipe.models.decoder import DecoderConfig
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PreNormLayer, RotaryDecoder

Array = jax.Array


class GraniteConfig(DecoderConfig):
    """Configuration of Granite."""

    model_type: ClassVar[str] = "granite"

    vocab_size: int = 32000
    intermediate_size: int = 11008
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2


class GraniteModel(RotaryDecoder):
    """The decoder without a head: Llama with a factor at the embedding, the scores and each addition."""

    def __init__(self, config: GraniteConfig, init: Init):
        def norm() -> RMSNorm:
            return RMSNorm(init, config.hidden_size, config.rms_norm_eps)

        def layer() -> PreNormLayer:
            attention = RotaryAttention(
                init, config.hidden_size, config.heads, bias=config.attention_bias, scale=config.attention_multiplier
            )
            act = activation(config.hidden_act)
            mlp = GatedMLP(init, config.hidden_size, config.intermediate_size, act, bias=config.mlp_bias)
            return PreNormLayer(attention, mlp, norm, residual=config.residual_multiplier)

        layers = [layer() for _ in range(config.num_hidden_layers)]
        super().__init__(init, config.vocab_size, config.hidden_size, layers, norm(), config.rope())
        self.embedding_multiplier = config.embedding_multiplier

    def embed(self, input_ids: Array) -> Array:
        """Embeds input_ids (B, T) as (B, T, D)."""
        return super().embed(input_ids) * self.embedding_multiplier


class GraniteForCausalLM(CausalLM):
    """The decoder with a language-model head, whose scores are divided by ``logits_scaling``."""

    def __init__(self, config: GraniteConfig, init: Init):
        model = GraniteModel(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)
        self.logits_scaling = config.logits_scaling

    def logits(self, x: Array) -> Array:
        """Scores (B, T, V) of states x (B, T, D)."""
        return super().logits(x) / self.logits_scaling


register(
    Architecture(
        config=GraniteConfig,
        heads={BASE: GraniteModel, CAUSAL_LM: GraniteForCausalLM},
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
    )
)
