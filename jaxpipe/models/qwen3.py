"""Qwen3 (Qwen Team, 2025; arXiv 2505.09388), as Qwen/Qwen3-8B holds it."""

from typing import ClassVar

from jaxpipe.common.gguf_spec import GGUFSpec
from jaxpipe.models.decoder import GGUF_TENSORS, SLIDING, classifiers
from jaxpipe.models.qwen2 import Qwen2Config
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PreNormLayer, RotaryDecoder


class Qwen3Config(Qwen2Config):
    """Configuration of Qwen3."""

    model_type: ClassVar[str] = "qwen3"

    head_dim: int = 128
    attention_bias: bool = False


class Qwen3Model(RotaryDecoder):
    """The decoder without a head: Qwen2 with normalised queries and keys, and biases only where the config says so."""

    def __init__(self, config: Qwen3Config, init: Init):
        def norm(width: int = config.hidden_size) -> RMSNorm:
            return RMSNorm(init, width, config.rms_norm_eps)

        def layer(kind: str) -> PreNormLayer:
            attention = RotaryAttention(
                init,
                config.hidden_size,
                config.heads,
                bias=config.attention_bias,
                qk_norm=lambda _: norm(config.head_dim),
                window=config.sliding_window if kind == SLIDING else None,
            )
            mlp = GatedMLP(init, config.hidden_size, config.intermediate_size, activation(config.hidden_act))
            return PreNormLayer(attention, mlp, norm)

        layers = [layer(kind) for kind in config.layer_types or ()]
        super().__init__(init, config.vocab_size, config.hidden_size, layers, norm(), config.rope())


class Qwen3ForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: Qwen3Config, init: Init):
        model = Qwen3Model(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=Qwen3Config,
        heads={
            BASE: Qwen3Model,
            CAUSAL_LM: Qwen3ForCausalLM,
            **classifiers("Qwen3", Qwen3Model, answers="transformer"),
        },
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
        gguf=GGUFSpec(
            architecture="qwen3",
            model_type="qwen3",
            tensors={
                **GGUF_TENSORS,
                "blk.{bid}.attn_q_norm": "model.layers.{bid}.self_attn.q_norm",
                "blk.{bid}.attn_k_norm": "model.layers.{bid}.self_attn.k_norm",
            },
        ),
    )
)
