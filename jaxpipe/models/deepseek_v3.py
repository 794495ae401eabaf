"""DeepSeek V3 and R1 (DeepSeek-AI, 2024; arXiv 2412.19437), as deepseek-ai/DeepSeek-V3 holds them, not quantised."""

import math
from collections.abc import Collection
from typing import Any, ClassVar

import jax

from jaxpipe.common.errors import ConfigError
from jaxpipe.models.decoder import DecoderConfig, classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout_experts import fused_names, per_expert
from jaxpipe.nn.mla import LatentAttention, LatentShape
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.moe import Experts, Gated, GroupLimitedRouter, SparseMoE, check_choices
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.rotary_decoder import PreNormLayer, RotaryDecoder

Array = jax.Array


class DeepseekV3Config(DecoderConfig):
    """Configuration of DeepSeek V3."""

    model_type: ClassVar[str] = "deepseek_v3"
    # The modules that predict several tokens ahead, which num_nextn_predict_layers counts, are not built.
    inert: ClassVar[frozenset[str]] = frozenset(
        {"output_router_logits", "num_nextn_predict_layers", "num_mtp_layers", "qk_head_dim", "ep_size"}
        | {"aux_loss_alpha", "seq_aux"}
    )
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "scoring_func": ("sigmoid", None),
        "topk_method": ("noaux_tc", None),
        "moe_layer_freq": (1, None),
    }
    attribute_map: ClassVar[dict[str, str]] = {"num_local_experts": "n_routed_experts"}

    vocab_size: int = 129280
    hidden_size: int = 7168
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 61
    num_attention_heads: int = 128
    num_key_value_heads: int = 128
    n_shared_experts: int = 1
    n_routed_experts: int = 256
    routed_scaling_factor: float = 2.5
    kv_lora_rank: int = 512
    q_lora_rank: int | None = 1536
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    qk_nope_head_dim: int = 128
    n_group: int = 8
    topk_group: int = 4
    num_experts_per_tok: int = 8
    first_k_dense_replace: int | None = 3
    norm_topk_prob: bool = True
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6
    rope_interleave: bool = True
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1

    def __post_init__(self) -> None:
        self.head_dim = self.qk_rope_head_dim
        super().__post_init__()
        if self.num_key_value_heads != self.num_attention_heads:
            raise ConfigError(
                f"config.json: num_key_value_heads={self.num_key_value_heads}, but latent attention has as many as "
                f"num_attention_heads={self.num_attention_heads}."
            )
        if self.dense:
            return
        if self.n_routed_experts % self.n_group or self.n_routed_experts < 2 * self.n_group:
            raise ConfigError(
                f"config.json: n_routed_experts={self.n_routed_experts} are not n_group={self.n_group} groups of "
                "two or more."
            )
        if self.topk_group > self.n_group:
            raise ConfigError(f"config.json: topk_group={self.topk_group} of n_group={self.n_group} groups.")
        check_choices(self.num_experts_per_tok, self.n_routed_experts // self.n_group * self.topk_group)

    @property
    def dense(self) -> bool:
        """Whether no layer has experts."""
        return (self.first_k_dense_replace or 0) >= self.num_hidden_layers

    def zeros(self) -> Collection[str]:
        sizes = ("moe_intermediate_size", "n_routed_experts", "num_experts_per_tok", "n_group", "topk_group")
        return ("n_shared_experts", *sizes) if self.dense else ("n_shared_experts",)

    @property
    def attention_scale(self) -> float:
        """Of the scores; YaRN's temperature of the plain part of the queries enters it squared."""
        rope = self.rope_parameters or {}
        factor, weight = rope.get("factor") or 1.0, rope.get("mscale_all_dim") or 0.0
        scale = (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5
        if rope.get("rope_type", "default") == "default" or not weight or factor <= 1:
            return scale
        return scale * (0.1 * weight * math.log(factor) + 1.0) ** 2


class DeepseekV3MoE(SparseMoE):
    """The chosen experts, and those that every token goes through."""

    def __init__(self, config: DeepseekV3Config, init: Init):
        shape = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        act = activation(config.hidden_act)
        router = GroupLimitedRouter(
            init,
            config.hidden_size,
            config.n_routed_experts,
            config.num_experts_per_tok,
            groups=config.n_group,
            chosen_groups=config.topk_group,
            normalise=config.norm_topk_prob,
            factor=config.routed_scaling_factor,
        )
        super().__init__(router, Experts(init, shape, Gated(act), per_expert(*shape)))
        features = config.moe_intermediate_size * config.n_shared_experts
        self.shared_experts = GatedMLP(init, config.hidden_size, features, act) if features else None

    def __call__(self, x: Array) -> Array:
        out = super().__call__(x)
        return out if self.shared_experts is None else out + self.shared_experts(x)


class DeepseekV3Model(RotaryDecoder):
    """The decoder without a head; its first layers have one gated MLP, the others experts."""

    def __init__(self, config: DeepseekV3Config, init: Init):
        width = config.hidden_size
        shape = LatentShape(
            heads=config.num_attention_heads,
            query_rank=config.q_lora_rank,
            kv_rank=config.kv_lora_rank,
            plain=config.qk_nope_head_dim,
            rotary=config.qk_rope_head_dim,
            value=config.v_head_dim,
        )

        def norm() -> RMSNorm:
            return RMSNorm(init, width, config.rms_norm_eps)

        def layer(i: int) -> PreNormLayer:
            interleaved, bias = config.rope_interleave, config.attention_bias
            attention = LatentAttention(
                init, width, shape, bias=bias, scale=config.attention_scale, interleaved=interleaved
            )
            if i >= (config.first_k_dense_replace or 0):
                return PreNormLayer(attention, DeepseekV3MoE(config, init), norm)
            mlp = GatedMLP(init, width, config.intermediate_size, activation(config.hidden_act))
            return PreNormLayer(attention, mlp, norm)

        layers = [layer(i) for i in range(config.num_hidden_layers)]
        super().__init__(init, config.vocab_size, width, layers, norm(), config.rope())


class DeepseekV3ForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: DeepseekV3Config, init: Init):
        model = DeepseekV3Model(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=DeepseekV3Config,
        heads={BASE: DeepseekV3Model, CAUSAL_LM: DeepseekV3ForCausalLM, **classifiers("DeepseekV3", DeepseekV3Model)},
        base="model",
        # The module that predicts a second token, after the last of the 61 layers.
        ignored=(r"layers\.61\..*",),
        tied={"lm_head.weight": "embed_tokens.weight"},
        fused=fused_names(),
    )
)
