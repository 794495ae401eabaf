"""Granite 3 with mixtures of experts (IBM, 2024), as ibm-granite/granite-3.1-1b-a400m-instruct holds it."""

from typing import ClassVar

import jax

from jaxpipe.models.decoder import DecoderConfig
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout_experts import fused_linear
from jaxpipe.nn.moe import Experts, Gated, SoftmaxRouter, SparseMoE, check_choices
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PreNormLayer, RotaryDecoder

Array = jax.Array


class GraniteMoeConfig(DecoderConfig):
    """Configuration of Granite with mixtures of experts."""

    model_type: ClassVar[str] = "granitemoe"
    inert: ClassVar[frozenset[str]] = frozenset({"output_router_logits", "router_aux_loss_coef"})

    vocab_size: int = 32000
    intermediate_size: int = 11008
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self.num_experts_per_tok, self.num_local_experts)


class GraniteMoeModel(RotaryDecoder):
    """The decoder without a head."""

    def __init__(self, config: GraniteMoeConfig, init: Init):
        width, bias = config.hidden_size, config.attention_bias
        shape = config.num_local_experts, width, config.intermediate_size
        layouts = fused_linear(*shape, names=("input_linear", "output_linear"))

        def norm() -> RMSNorm:
            return RMSNorm(init, width, config.rms_norm_eps)

        def layer() -> PreNormLayer:
            attention = RotaryAttention(init, width, config.heads, bias=bias, scale=config.attention_multiplier)
            router = SoftmaxRouter(init, width, shape[0], config.num_experts_per_tok, normalise=True, name="layer")
            experts = Experts(init, shape, Gated(activation(config.hidden_act)), layouts, up=1)
            block = SparseMoE(router, experts, name="router")
            return PreNormLayer(attention, block, norm, name="block_sparse_moe", residual=config.residual_multiplier)

        layers = [layer() for _ in range(config.num_hidden_layers)]
        super().__init__(init, config.vocab_size, width, layers, norm(), config.rope())
        self.scale = config.embedding_multiplier

    def embed(self, input_ids: Array) -> Array:
        """Embeds input_ids (B, T) as (B, T, D)."""
        return super().embed(input_ids) * self.scale


class GraniteMoeForCausalLM(CausalLM):
    """The decoder with a language-model head, whose scores are divided."""

    def __init__(self, config: GraniteMoeConfig, init: Init):
        model = GraniteMoeModel(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)
        self.divisor = config.logits_scaling

    def logits(self, x: Array) -> Array:
        """Scores (B, T, V) of states x (B, T, D)."""
        return super().logits(x) / self.divisor


register(
    Architecture(
        config=GraniteMoeConfig,
        heads={BASE: GraniteMoeModel, CAUSAL_LM: GraniteMoeForCausalLM},
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
        # Names of Transformers 5.
        renamed=(
            (r"\.experts\.gate_up_proj$", ".input_linear.weight"),
            (r"\.experts\.down_proj$", ".output_linear.weight"),
            (r"\.router\.weight$", ".router.layer.weight"),
        ),
    )
)
