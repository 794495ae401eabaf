"""Gemma 2 (Gemma Team, 2024; arXiv 2408.00118), as google/gemma-2-9b holds it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxpipe.common.gguf_spec import GGUFSpec
from jaxpipe.models.decoder import GGUF_TENSORS, SLIDING, DecoderConfig, classifiers, layer_types
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.norms import OffsetRMSNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import RotaryDecoder, SandwichLayer

Array = jax.Array


# Names in GGUF files of layers with a norm on both sides of each block.
GGUF_SANDWICH_TENSORS = {
    **GGUF_TENSORS,
    "blk.{bid}.post_attention_norm": "model.layers.{bid}.post_attention_layernorm",
    "blk.{bid}.ffn_norm": "model.layers.{bid}.pre_feedforward_layernorm",
    "blk.{bid}.post_ffw_norm": "model.layers.{bid}.post_feedforward_layernorm",
}


class Gemma2Config(DecoderConfig):
    """Configuration of Gemma 2."""

    model_type: ClassVar[str] = "gemma2"
    inert: ClassVar[frozenset[str]] = frozenset({"hidden_act", "cache_implementation", "sliding_window_size"})
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"use_bidirectional_attention": (None, False)}

    vocab_size: int = 256000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    query_pre_attn_scalar: int = 256
    sliding_window: int | None = 4096
    layer_types: list[str] | None = None
    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float | None = 50.0
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    bos_token_id: int | None = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        given, window = self.layer_types, self.sliding_window
        self.layer_types = layer_types(given, self.num_hidden_layers, self.period, window)

    @property
    def period(self) -> int:
        """Which layers are full where ``layer_types`` does not say: every second."""
        return 2


def gguf_scale(config: Mapping[str, Any], *, largest: int) -> dict[str, Any]:
    """Makes ``query_pre_attn_scalar``, which GGUF files lack: the width of a head, but in the largest of the family,
    known by its number of layers, the model's width by the number of heads; as llama.cpp does.
    """
    if config.get("num_hidden_layers") == largest:
        return {"query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"]}
    return {"query_pre_attn_scalar": config["head_dim"]} if "head_dim" in config else {}


class Gemma2Model(RotaryDecoder):
    """The decoder without a head: every second layer sees a window only, and scores are capped."""

    def __init__(self, config: Gemma2Config, init: Init):
        width = config.hidden_size

        def norm() -> OffsetRMSNorm:
            return OffsetRMSNorm(init, width, config.rms_norm_eps)

        def layer(kind: str) -> SandwichLayer:
            mlp = GatedMLP(init, width, config.intermediate_size, activation(config.hidden_activation))
            return SandwichLayer(self.attention(config, init, kind), mlp, norm)

        layers = [layer(kind) for kind in config.layer_types or ()]
        super().__init__(init, config.vocab_size, width, layers, norm(), self.frequencies(config))
        self.scale = width**0.5

    @staticmethod
    def attention(config: Any, init: Init, kind: str) -> RotaryAttention:
        """Makes the attention of a layer of a kind."""
        return RotaryAttention(
            init,
            config.hidden_size,
            config.heads,
            bias=config.attention_bias,
            scale=config.query_pre_attn_scalar**-0.5,
            window=config.sliding_window if kind == SLIDING else None,
            softcap=config.attn_logit_softcapping,
        )

    @staticmethod
    def frequencies(config: Any) -> Any:
        """Makes what turns positions into the layers' angles."""
        return config.rope()

    def embed(self, input_ids: Array) -> Array:
        """Embeds input_ids (B, T) as (B, T, D); the factor is rounded to the weights' dtype, as in training."""
        x = super().embed(input_ids)
        return x * jnp.asarray(self.scale, x.dtype)


class Gemma2ForCausalLM(CausalLM):
    """The decoder with a language-model head, whose scores are capped."""

    def __init__(self, config: Gemma2Config, init: Init):
        model = Gemma2Model(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)
        self.softcap = config.final_logit_softcapping

    def logits(self, x: Array) -> Array:
        """Scores (B, T, V) of states x (B, T, D)."""
        scores = super().logits(x)
        return scores if self.softcap is None else self.softcap * jnp.tanh(scores / self.softcap)


register(
    Architecture(
        config=Gemma2Config,
        heads={BASE: Gemma2Model, CAUSAL_LM: Gemma2ForCausalLM, **classifiers("Gemma2", Gemma2Model)},
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
        gguf=GGUFSpec(
            architecture="gemma2",
            model_type="gemma2",
            tensors=GGUF_SANDWICH_TENSORS,
            config_keys={
                "attention.sliding_window": "sliding_window",
                "attn_logit_softcapping": "attn_logit_softcapping",
                "final_logit_softcapping": "final_logit_softcapping",
            },
            transforms={r".*norm\.weight": "minus_one"},
            derive=lambda config, _: gguf_scale(config, largest=46),
        ),
    )
)
