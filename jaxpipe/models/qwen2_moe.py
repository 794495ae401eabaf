"""Qwen1.5 and Qwen2 with mixtures of experts (Qwen Team, 2024; arXiv 2407.10671), as Qwen/Qwen1.5-MoE-A2.7B has it."""

from collections.abc import Collection
from typing import ClassVar

import jax

from jaxpipe.models.decoder import FULL, SLIDING, DecoderConfig, classifiers, layer_types
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout_experts import fused_names, per_expert
from jaxpipe.nn.linear import Linear
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.moe import Experts, Gated, SoftmaxRouter, SparseMoE, check_choices
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PreNormLayer, RotaryDecoder

Array = jax.Array


class SparseLayersConfig(DecoderConfig):
    """What Qwen's configurations with mixtures of experts have in common: which layers have experts."""

    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] | None = None
    moe_intermediate_size: int = 1408
    num_experts_per_tok: int = 4
    norm_topk_prob: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mlp_only_layers = self.mlp_only_layers or []
        if not self.dense:
            check_choices(self.num_experts_per_tok, self.num_experts)

    @property
    def dense(self) -> bool:
        """Whether no layer has experts."""
        step, dense = self.decoder_sparse_step, self.mlp_only_layers or ()
        return not self.num_experts or all(
            i in dense or (step and (i + 1) % step) for i in range(self.num_hidden_layers)
        )

    def zeros(self) -> Collection[str]:
        sizes = ("num_experts", "num_local_experts", "num_experts_per_tok", "decoder_sparse_step")
        shared = ("shared_expert_intermediate_size",)
        return (*shared, *sizes, "moe_intermediate_size") if self.dense else shared

    def sparse(self, layer: int) -> bool:
        """Whether a layer has experts; others have one gated MLP."""
        return (
            not self.dense and layer not in (self.mlp_only_layers or ()) and not (layer + 1) % self.decoder_sparse_step
        )


class Qwen2MoeConfig(SparseLayersConfig):
    """Configuration of Qwen1.5 and Qwen2 with mixtures of experts."""

    model_type: ClassVar[str] = "qwen2_moe"
    inert: ClassVar[frozenset[str]] = frozenset({"output_router_logits", "router_aux_loss_coef"})

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    qkv_bias: bool = True
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int | None = 28
    layer_types: list[str] | None = None
    shared_expert_intermediate_size: int = 5632
    num_experts: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_sliding_window:
            self.sliding_window = 0
        if self.layer_types is None:
            sliding = (self.max_window_layers or 0) if self.use_sliding_window else 0
            self.layer_types = [SLIDING if i < sliding and i % 2 == 0 else FULL for i in range(self.num_hidden_layers)]
        self.layer_types = layer_types(self.layer_types, self.num_hidden_layers, 2, self.sliding_window)


class Qwen2MoeSparseMoeBlock(SparseMoE):
    """The chosen experts, and one that every token goes through, weighed by a gate of its own."""

    def __init__(self, config: Qwen2MoeConfig, init: Init):
        shape = config.num_experts, config.hidden_size, config.moe_intermediate_size
        act, normalise = activation(config.hidden_act), config.norm_topk_prob
        router = SoftmaxRouter(init, shape[1], shape[0], config.num_experts_per_tok, normalise=normalise)
        super().__init__(router, Experts(init, shape, Gated(act), per_expert(*shape)))
        features = config.shared_expert_intermediate_size
        self.shared_expert = GatedMLP(init, config.hidden_size, features, act) if features else None
        self.shared_expert_gate = Linear(init, config.hidden_size, 1, bias=False)

    def __call__(self, x: Array) -> Array:
        out = super().__call__(x)
        if self.shared_expert is None:
            return out
        return out + jax.nn.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x)


class Qwen2MoeModel(RotaryDecoder):
    """The decoder without a head."""

    def __init__(self, config: Qwen2MoeConfig, init: Init):
        width, act = config.hidden_size, activation(config.hidden_act)

        def norm() -> RMSNorm:
            return RMSNorm(init, width, config.rms_norm_eps)

        def layer(i: int, kind: str) -> PreNormLayer:
            sparse = config.sparse(i)
            block = (
                Qwen2MoeSparseMoeBlock(config, init) if sparse else GatedMLP(init, width, config.intermediate_size, act)
            )
            window = config.sliding_window if kind == SLIDING else None
            attention = RotaryAttention(
                init, width, config.heads, bias=config.qkv_bias, output_bias=False, window=window
            )
            return PreNormLayer(attention, block, norm)

        layers = [layer(i, kind) for i, kind in enumerate(config.layer_types or ())]
        super().__init__(init, config.vocab_size, width, layers, norm(), config.rope())


class Qwen2MoeForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: Qwen2MoeConfig, init: Init):
        model = Qwen2MoeModel(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=Qwen2MoeConfig,
        heads={
            BASE: Qwen2MoeModel,
            CAUSAL_LM: Qwen2MoeForCausalLM,
            **classifiers("Qwen2Moe", Qwen2MoeModel, answers="model"),
        },
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
        fused=fused_names(),
    )
)
