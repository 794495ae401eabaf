"""Qwen3 with mixtures of experts (Qwen Team, 2025; arXiv 2505.09388), as Qwen/Qwen3-30B-A3B holds it."""

from typing import ClassVar

from jaxpipe.models.decoder import classifiers
from jaxpipe.models.qwen2_moe import SparseLayersConfig
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout_experts import fused_names, per_expert
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.moe import Experts, Gated, SoftmaxRouter, SparseMoE
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PreNormLayer, RotaryDecoder


class Qwen3MoeConfig(SparseLayersConfig):
    """Configuration of Qwen3 with mixtures of experts."""

    model_type: ClassVar[str] = "qwen3_moe"
    inert: ClassVar[frozenset[str]] = frozenset({"output_router_logits", "router_aux_loss_coef", "max_window_layers"})
    attribute_map: ClassVar[dict[str, str]] = {"num_experts": "num_local_experts"}

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    num_key_value_heads: int = 4
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    moe_intermediate_size: int = 768
    num_experts_per_tok: int = 8
    num_local_experts: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_sliding_window:
            self.sliding_window = None


class Qwen3MoeModel(RotaryDecoder):
    """The decoder without a head."""

    def __init__(self, config: Qwen3MoeConfig, init: Init):
        shape = config.num_local_experts, config.hidden_size, config.moe_intermediate_size
        layouts, act = per_expert(*shape), activation(config.hidden_act)
        chosen, normalise = config.num_experts_per_tok, config.norm_topk_prob

        def norm(width: int = config.hidden_size) -> RMSNorm:
            return RMSNorm(init, width, config.rms_norm_eps)

        def block(layer: int) -> SparseMoE | GatedMLP:
            if not config.sparse(layer):
                return GatedMLP(init, config.hidden_size, config.intermediate_size, act)
            router = SoftmaxRouter(init, shape[1], shape[0], chosen, normalise=normalise)
            return SparseMoE(router, Experts(init, shape, Gated(act), layouts))

        def attention() -> RotaryAttention:
            return RotaryAttention(
                init,
                config.hidden_size,
                config.heads,
                bias=config.attention_bias,
                qk_norm=lambda _: norm(config.head_dim),
                window=config.sliding_window,
            )

        layers = [PreNormLayer(attention(), block(i), norm) for i in range(config.num_hidden_layers)]
        super().__init__(init, config.vocab_size, config.hidden_size, layers, norm(), config.rope())


class Qwen3MoeForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: Qwen3MoeConfig, init: Init):
        model = Qwen3MoeModel(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=Qwen3MoeConfig,
        heads={
            BASE: Qwen3MoeModel,
            CAUSAL_LM: Qwen3MoeForCausalLM,
            **classifiers("Qwen3Moe", Qwen3MoeModel, answers="transformer"),
        },
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
        fused=fused_names(),
    )
)
