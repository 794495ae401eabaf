"""Phi-3 (Abdin et al., 2024; arXiv 2404.14219), as microsoft/Phi-3-mini-4k-instruct and Phi-4-mini-instruct hold it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxpipe.common.gguf_spec import GGUFSpec
from jaxpipe.models.decoder import GGUF_TENSORS, DecoderConfig, classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PreNormLayer, RotaryDecoder


class Phi3Config(DecoderConfig):
    """Configuration of Phi-3 and Phi-4."""

    model_type: ClassVar[str] = "phi3"
    inert: ClassVar[frozenset[str]] = frozenset({"resid_pdrop", "embd_pdrop"})
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "lm_head_bias": (False, None),
        "full_attn_mod": (1, None),
        "interpolate_factor": (1, None),
    }
    default_rotary_factor: ClassVar[float | None] = 1.0

    vocab_size: int = 32064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    original_max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 32000
    pad_token_id: int | None = 32000

    @classmethod
    def read_rope(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = values.get("rope_parameters") or values.get("rope_scaling")
        if isinstance(given, Mapping) and "yarn" in (given.get("rope_type"), given.get("type")):
            # The first checkpoints called by this name what LongRoPE became.
            values = {**values, "rope_parameters": {**given, "rope_type": "longrope"}}
        return super().read_rope(values)


class Phi3Model(RotaryDecoder):
    """The decoder without a head: Llama with the projections joined in the checkpoint."""

    def __init__(self, config: Phi3Config, init: Init):
        width, window = config.hidden_size, config.sliding_window

        def norm() -> RMSNorm:
            return RMSNorm(init, width, config.rms_norm_eps)

        def layer() -> PreNormLayer:
            attention = RotaryAttention(init, width, config.heads, names=("qkv_proj",), window=window)
            act = activation(config.hidden_act)
            mlp = GatedMLP(init, width, config.intermediate_size, act, names=("gate_up_proj",))
            return PreNormLayer(attention, mlp, norm)

        layers = [layer() for _ in range(config.num_hidden_layers)]
        super().__init__(init, config.vocab_size, width, layers, norm(), config.rope())


class Phi3ForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: Phi3Config, init: Init):
        model = Phi3Model(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=Phi3Config,
        heads={BASE: Phi3Model, CAUSAL_LM: Phi3ForCausalLM, **classifiers("Phi3", Phi3Model)},
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
        gguf=GGUFSpec(
            architecture="phi3",
            model_type="phi3",
            tensors={
                **GGUF_TENSORS,
                "blk.{bid}.attn_qkv": "model.layers.{bid}.self_attn.qkv_proj",
                "blk.{bid}.ffn_up": "model.layers.{bid}.mlp.gate_up_proj",
            },
            config_keys={
                "attention.sliding_window": "sliding_window",
                "rope.scaling.original_context_length": "original_max_position_embeddings",
            },
            derive=lambda config, _: {"sliding_window": config.get("sliding_window") or None},
        ),
    )
)
