"""Command R (Cohere, 2024), as CohereForAI/c4ai-command-r-v01 holds it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from jaxpipe.models.decoder import DecoderConfig
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.norms import HeadsLayerNorm, LayerNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import ParallelLayer, RotaryDecoder

Array = jax.Array


class CohereConfig(DecoderConfig):
    """Configuration of Command R."""

    model_type: ClassVar[str] = "cohere"
    default_theta: ClassVar[float | Mapping[str, float]] = 500_000.0

    vocab_size: int = 256000
    hidden_size: int = 8192
    intermediate_size: int = 22528
    num_hidden_layers: int = 40
    num_attention_heads: int = 64
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    layer_norm_eps: float = 1e-5
    logit_scale: float = 0.0625
    attention_bias: bool = False
    use_qk_norm: bool = False
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 5
    eos_token_id: int | list[int] | None = 255001


class CohereModel(RotaryDecoder):
    """The decoder without a head: attention and MLP side by side, and positions in neighbouring pairs."""

    def __init__(self, config: Any, init: Init):
        width, eps = config.hidden_size, config.layer_norm_eps

        def norm() -> LayerNorm:
            return LayerNorm(init, width, eps, bias=False)

        def layer(index: int) -> ParallelLayer:
            mlp = GatedMLP(init, width, config.intermediate_size, activation(config.hidden_act))
            return ParallelLayer(self.attention(config, init, index), mlp, norm)

        layers = [layer(i) for i in range(config.num_hidden_layers)]
        super().__init__(init, config.vocab_size, width, layers, norm(), config.rope())

    @staticmethod
    def attention(config: Any, init: Init, layer: int) -> RotaryAttention:
        """Makes the attention of a layer."""

        def norm(heads: int) -> HeadsLayerNorm:
            return HeadsLayerNorm(init, heads, config.head_dim, config.layer_norm_eps)

        qk_norm = norm if config.use_qk_norm else None
        kwargs: dict[str, Any] = {"bias": config.attention_bias, "qk_norm": qk_norm, "interleaved": True}
        return RotaryAttention(init, config.hidden_size, config.heads, **kwargs)


class CohereForCausalLM(CausalLM):
    """The decoder with a language-model head, whose scores are scaled."""

    decoder: ClassVar[type[CohereModel]] = CohereModel

    def __init__(self, config: Any, init: Init):
        model = self.decoder(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)
        self.logit_scale = config.logit_scale

    def logits(self, x: Array) -> Array:
        """Scores (B, T, V) of states x (B, T, D)."""
        return super().logits(x) * self.logit_scale


register(
    Architecture(
        config=CohereConfig,
        heads={BASE: CohereModel, CAUSAL_LM: CohereForCausalLM},
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
    )
)
