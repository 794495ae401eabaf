"""Gemma (Gemma Team, 2024; arXiv 2403.08295), as google/gemma-7b holds it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxpipe.common.gguf_spec import GGUFSpec
from jaxpipe.models.decoder import GGUF_TENSORS, DecoderConfig, classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.norms import OffsetRMSNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PreNormLayer, RotaryDecoder

Array = jax.Array


class GemmaConfig(DecoderConfig):
    """Configuration of Gemma."""

    model_type: ClassVar[str] = "gemma"
    inert: ClassVar[frozenset[str]] = frozenset({"hidden_activation"})
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"use_bidirectional_attention": (None, False)}

    vocab_size: int = 256000
    hidden_size: int = 3072
    intermediate_size: int = 24576
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 256
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    bos_token_id: int | None = 2

    def __post_init__(self) -> None:
        # The first releases say "gelu" and mean its approximation, with which they were trained.
        self.hidden_act = "gelu_pytorch_tanh" if self.hidden_act == "gelu" else self.hidden_act
        super().__post_init__()


class GemmaModel(RotaryDecoder):
    """The decoder without a head: Llama with a scaled embedding and norms of their own."""

    def __init__(self, config: GemmaConfig, init: Init):
        width = config.hidden_size

        def norm() -> OffsetRMSNorm:
            return OffsetRMSNorm(init, width, config.rms_norm_eps)

        def layer() -> PreNormLayer:
            attention = RotaryAttention(init, width, config.heads, bias=config.attention_bias)
            mlp = GatedMLP(init, width, config.intermediate_size, activation(config.hidden_act))
            return PreNormLayer(attention, mlp, norm)

        layers = [layer() for _ in range(config.num_hidden_layers)]
        super().__init__(init, config.vocab_size, width, layers, norm(), config.rope())
        self.scale = width**0.5

    def embed(self, input_ids: Array) -> Array:
        """Embeds input_ids (B, T) as (B, T, D); the factor is rounded to the weights' dtype, as in training."""
        x = super().embed(input_ids)
        return x * jnp.asarray(self.scale, x.dtype)


class GemmaForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: GemmaConfig, init: Init):
        model = GemmaModel(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=GemmaConfig,
        heads={BASE: GemmaModel, CAUSAL_LM: GemmaForCausalLM, **classifiers("Gemma", GemmaModel)},
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
        gguf=GGUFSpec(
            architecture="gemma",
            model_type="gemma",
            tensors=GGUF_TENSORS,
            transforms={r".*norm\.weight": "minus_one"},
        ),
    )
)
