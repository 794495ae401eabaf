"""Mixtral (Jiang et al., 2024; arXiv 2401.04088), as mistralai/Mixtral-8x7B-v0.1 holds it."""

from typing import Any, ClassVar

import jax.numpy as jnp

from jaxpipe.models.decoder import DecoderConfig, classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout_experts import fused_names, per_expert
from jaxpipe.nn.moe import Experts, Gated, SoftmaxRouter, SparseMoE, check_choices
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PreNormLayer, RotaryDecoder

NAMES = ("w1", "w3", "w2")


class MixtralConfig(DecoderConfig):
    """Configuration of Mixtral."""

    model_type: ClassVar[str] = "mixtral"
    inert: ClassVar[frozenset[str]] = frozenset({"output_router_logits", "router_aux_loss_coef", "router_jitter_noise"})
    attribute_map: ClassVar[dict[str, str]] = {"num_experts": "num_local_experts"}
    default_theta: ClassVar[float] = 1e6

    vocab_size: int = 32000
    intermediate_size: int = 14336
    num_key_value_heads: int = 8
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096 * 32
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None
    num_experts_per_tok: int = 2
    num_local_experts: int = 8
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self.num_experts_per_tok, self.num_local_experts)

    def to_dict(self) -> dict[str, Any]:
        """Returns the keys of a config.json; ``head_dim`` is null where the other sizes give it."""
        derived = self.head_dim == self.hidden_size // self.num_attention_heads
        return {**super().to_dict(), **({"head_dim": None} if derived else {})}


class MixtralModel(RotaryDecoder):
    """The decoder without a head."""

    def __init__(self, config: MixtralConfig, init: Init):
        def norm() -> RMSNorm:
            return RMSNorm(init, config.hidden_size, config.rms_norm_eps)

        shape = config.num_local_experts, config.hidden_size, config.intermediate_size
        layouts = per_expert(*shape, NAMES)
        chosen = config.num_experts_per_tok

        def layer() -> PreNormLayer:
            attention = RotaryAttention(init, config.hidden_size, config.heads, window=config.sliding_window)
            router = SoftmaxRouter(init, shape[1], shape[0], chosen, normalise=True, dtype=jnp.dtype("float32"))
            experts = Experts(init, shape, Gated(activation(config.hidden_act)), layouts)
            return PreNormLayer(attention, SparseMoE(router, experts), norm, name="block_sparse_moe")

        layers = [layer() for _ in range(config.num_hidden_layers)]
        super().__init__(init, config.vocab_size, config.hidden_size, layers, norm(), config.rope())


class MixtralForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: MixtralConfig, init: Init):
        model = MixtralModel(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=MixtralConfig,
        heads={
            BASE: MixtralModel,
            CAUSAL_LM: MixtralForCausalLM,
            **classifiers("Mixtral", MixtralModel, answers="model"),
        },
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
        # Names of Transformers 5.
        renamed=((r"\.mlp\.(gate|experts)\.", r".block_sparse_moe.\1."),),
        fused=fused_names(NAMES),
    )
)
