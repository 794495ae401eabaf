"""GLM-4-0414 (GLM Team, 2024; arXiv 2406.12793), as zai-org/GLM-4-9B-0414 holds it."""

from typing import ClassVar

from jaxpipe.models.decoder import DecoderConfig, classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import RotaryDecoder, SandwichLayer


class Glm4Config(DecoderConfig):
    """Configuration of GLM-4-0414, of which a part of each head is rotated."""

    model_type: ClassVar[str] = "glm4"
    default_rotary_factor: ClassVar[float | None] = 0.5

    vocab_size: int = 151552
    hidden_size: int = 4096
    intermediate_size: int = 13696
    num_hidden_layers: int = 40
    num_attention_heads: int = 32
    num_key_value_heads: int = 2
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1.5625e-07
    attention_bias: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 151329
    eos_token_id: int | list[int] | None = None  # the three below

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eos_token_id is None:
            self.eos_token_id = [151329, 151336, 151338]


class Glm4DecoderLayer(SandwichLayer):
    """Norms before and behind attention and MLP, under the names of GLM."""

    norms: ClassVar[tuple[str, str, str, str]] = (
        "input_layernorm",
        "post_self_attn_layernorm",
        "post_attention_layernorm",
        "post_mlp_layernorm",
    )


class Glm4Model(RotaryDecoder):
    """The decoder without a head; positions turn neighbouring pairs."""

    def __init__(self, config: Glm4Config, init: Init):
        width, bias = config.hidden_size, config.attention_bias

        def norm() -> RMSNorm:
            return RMSNorm(init, width, config.rms_norm_eps)

        def layer() -> Glm4DecoderLayer:
            attention = RotaryAttention(init, width, config.heads, bias=bias, output_bias=False, interleaved=True)
            act = activation(config.hidden_act)
            mlp = GatedMLP(init, width, config.intermediate_size, act, names=("gate_up_proj",))
            return Glm4DecoderLayer(attention, mlp, norm)

        layers = [layer() for _ in range(config.num_hidden_layers)]
        super().__init__(init, config.vocab_size, width, layers, norm(), config.rope())


class Glm4ForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: Glm4Config, init: Init):
        model = Glm4Model(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=Glm4Config,
        heads={BASE: Glm4Model, CAUSAL_LM: Glm4ForCausalLM, **classifiers("Glm4", Glm4Model)},
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
    )
)
