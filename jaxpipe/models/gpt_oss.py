"""gpt-oss (OpenAI, 2025; arXiv 2508.10925), as openai/gpt-oss-20b holds it once its experts are not quantised."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxpipe.models.decoder import SLIDING, DecoderConfig, classifiers, layer_types
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout_experts import interleaved_biased
from jaxpipe.nn.moe import Experts, SoftmaxRouter, SparseMoE, check_choices
from jaxpipe.nn.norms import FloatRMSNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PreNormLayer, RotaryDecoder

Array = jax.Array

# Of a config.json without rope parameters.
ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


class GptOssConfig(DecoderConfig):
    """Configuration of gpt-oss."""

    model_type: ClassVar[str] = "gpt_oss"
    inert: ClassVar[frozenset[str]] = frozenset(
        {"hidden_act", "output_router_logits", "router_aux_loss_coef", "experts_per_token", "initial_context_length"}
    )
    attribute_map: ClassVar[dict[str, str]] = {"num_experts": "num_local_experts"}
    default_theta: ClassVar[float] = 150_000.0

    vocab_size: int = 201088
    hidden_size: int = 2880
    intermediate_size: int = 2880
    num_hidden_layers: int = 36
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    head_dim: int = 64
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    attention_bias: bool = True
    sliding_window: int | None = 128
    layer_types: list[str] | None = None
    num_experts_per_tok: int = 4
    num_local_experts: int = 128
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self.num_experts_per_tok, self.num_local_experts)
        self.layer_types = layer_types(self.layer_types, self.num_hidden_layers, 2, self.sliding_window)

    @classmethod
    def read_rope(cls, values: dict[str, Any]) -> dict[str, Any]:
        if not values.get("rope_parameters") and not values.get("rope_scaling"):
            values = {**values, "rope_parameters": ROPE}
        return super().read_rope(values)


@dataclass(frozen=True)
class ClampedGate:
    """``(up + 1) * gate * sigmoid(alpha * gate)``, where gate is at most `limit` and up between minus and plus it."""

    alpha: float
    limit: float

    def __call__(self, gate: Array, up: Array) -> Array:
        gate, up = jnp.minimum(gate, self.limit), jnp.clip(up, -self.limit, self.limit)
        return (up + 1) * (gate * jax.nn.sigmoid(gate * self.alpha))


class GptOssModel(RotaryDecoder):
    """The decoder without a head."""

    def __init__(self, config: GptOssConfig, init: Init):
        shape = config.num_local_experts, config.hidden_size, config.intermediate_size
        gate = ClampedGate(config.swiglu_alpha, config.swiglu_limit)

        def norm() -> FloatRMSNorm:
            return FloatRMSNorm(init, config.hidden_size, config.rms_norm_eps)

        def layer(kind: str) -> PreNormLayer:
            attention = RotaryAttention(
                init,
                config.hidden_size,
                config.heads,
                bias=config.attention_bias,
                window=config.sliding_window if kind == SLIDING else None,
                sinks=True,
            )
            router = SoftmaxRouter(init, shape[1], shape[0], config.num_experts_per_tok, normalise=True, bias=True)
            experts = Experts(init, shape, gate, interleaved_biased(*shape))
            return PreNormLayer(attention, SparseMoE(router, experts, name="router"), norm)

        layers = [layer(kind) for kind in config.layer_types or ()]
        super().__init__(init, config.vocab_size, config.hidden_size, layers, norm(), config.rope())


class GptOssForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: GptOssConfig, init: Init):
        model = GptOssModel(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=GptOssConfig,
        heads={BASE: GptOssModel, CAUSAL_LM: GptOssForCausalLM, **classifiers("GptOss", GptOssModel)},
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
    )
)
