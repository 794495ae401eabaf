"""OLMo 2 (OLMo Team, 2024; arXiv 2501.00656), as allenai/OLMo-2-1124-7B holds it."""

from typing import ClassVar

from jaxpipe.models.decoder import DecoderConfig, classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.norms import FloatRMSNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PostNormLayer, RotaryDecoder


class Olmo2Config(DecoderConfig):
    """Configuration of OLMo 2."""

    model_type: ClassVar[str] = "olmo2"

    vocab_size: int = 50304
    intermediate_size: int = 11008
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 50279


class Olmo2Model(RotaryDecoder):
    """The decoder without a head; queries and keys are normed over all heads at once."""

    def __init__(self, config: Olmo2Config, init: Init):
        def norm() -> FloatRMSNorm:
            return FloatRMSNorm(init, config.hidden_size, config.rms_norm_eps)

        def layer() -> PostNormLayer:
            attention = RotaryAttention(
                init,
                config.hidden_size,
                config.heads,
                bias=config.attention_bias,
                qk_norm=lambda heads: FloatRMSNorm(init, config.head_dim, config.rms_norm_eps, heads=heads),
            )
            mlp = GatedMLP(init, config.hidden_size, config.intermediate_size, activation(config.hidden_act))
            return PostNormLayer(attention, mlp, norm)

        layers = [layer() for _ in range(config.num_hidden_layers)]
        super().__init__(init, config.vocab_size, config.hidden_size, layers, norm(), config.rope())


class Olmo2ForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: Olmo2Config, init: Init):
        model = Olmo2Model(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=Olmo2Config,
        heads={BASE: Olmo2Model, CAUSAL_LM: Olmo2ForCausalLM, **classifiers("Olmo2", Olmo2Model, tokens=None)},
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
    )
)
