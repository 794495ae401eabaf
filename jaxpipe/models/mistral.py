"""Mistral (Jiang et al., 2023; arXiv 2310.06825), as mistralai/Mistral-7B-v0.3 holds it."""

from typing import ClassVar

from jaxpipe.models.decoder import DecoderConfig, classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PreNormLayer, RotaryDecoder


class MistralConfig(DecoderConfig):
    """Configuration of Mistral."""

    model_type: ClassVar[str] = "mistral"

    vocab_size: int = 32000
    intermediate_size: int = 14336
    num_key_value_heads: int = 8
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096 * 32
    rms_norm_eps: float = 1e-6
    sliding_window: int | None = 4096
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2


class MistralModel(RotaryDecoder):
    """The decoder without a head; every layer sees the last tokens only, where the config gives a window."""

    def __init__(self, config: MistralConfig, init: Init):
        def norm() -> RMSNorm:
            return RMSNorm(init, config.hidden_size, config.rms_norm_eps)

        def layer() -> PreNormLayer:
            attention = RotaryAttention(init, config.hidden_size, config.heads, window=config.sliding_window)
            mlp = GatedMLP(init, config.hidden_size, config.intermediate_size, activation(config.hidden_act))
            return PreNormLayer(attention, mlp, norm)

        layers = [layer() for _ in range(config.num_hidden_layers)]
        super().__init__(init, config.vocab_size, config.hidden_size, layers, norm(), config.rope())


class MistralForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: MistralConfig, init: Init):
        model = MistralModel(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=MistralConfig,
        heads={
            BASE: MistralModel,
            CAUSAL_LM: MistralForCausalLM,
            **classifiers("Mistral", MistralModel, answers="model"),
        },
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
    )
)
