"""Phi (Gunasekar et al., 2023; arXiv 2306.11644 and 2309.05463), as microsoft/phi-2 holds it."""

from typing import ClassVar

import jax
from flax import nnx

from jaxpipe.common.errors import ConfigError
from jaxpipe.models.decoder import DecoderConfig, classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import Linear
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import ParallelLayer, RotaryDecoder

Array = jax.Array


class PhiConfig(DecoderConfig):
    """Configuration of Phi, of which a part of each head is rotated."""

    model_type: ClassVar[str] = "phi"
    inert: ClassVar[frozenset[str]] = frozenset({"resid_pdrop", "embd_pdrop"})
    default_rotary_factor: ClassVar[float | None] = 0.5

    vocab_size: int = 51200
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    hidden_act: str = "gelu_new"
    max_position_embeddings: int = 2048
    layer_norm_eps: float = 1e-5
    qk_layernorm: bool = False
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tie_word_embeddings:
            raise ConfigError(
                "config.json: tie_word_embeddings=True is not supported for 'phi', whose head has a bias; accepted: "
                "False."
            )


class PhiAttention(RotaryAttention):
    """Attention under the names of Phi."""

    output: ClassVar[str] = "dense"
    norms: ClassVar[tuple[str, str]] = ("q_layernorm", "k_layernorm")

    def __init__(self, config: PhiConfig, init: Init):
        def norm(_: int) -> LayerNorm:
            return LayerNorm(init, config.head_dim, config.layer_norm_eps)

        qk_norm = norm if config.qk_layernorm else None
        super().__init__(init, config.hidden_size, config.heads, bias=True, qk_norm=qk_norm)


class PhiMLP(nnx.Module):
    """Two projections with an activation between them."""

    def __init__(self, config: PhiConfig, init: Init):
        self.fc1 = Linear(init, config.hidden_size, config.intermediate_size, axes=("embed", "mlp"))
        self.fc2 = Linear(init, config.intermediate_size, config.hidden_size, axes=("mlp", "embed"))
        self.act = activation(config.hidden_act)

    def __call__(self, x: Array) -> Array:
        return self.fc2(self.act(self.fc1(x)))


class PhiModel(RotaryDecoder):
    """The decoder without a head."""

    final_norm: ClassVar[str] = "final_layernorm"

    def __init__(self, config: PhiConfig, init: Init):
        def norm() -> LayerNorm:
            return LayerNorm(init, config.hidden_size, config.layer_norm_eps)

        layers = [
            ParallelLayer(PhiAttention(config, init), PhiMLP(config, init), norm)
            for _ in range(config.num_hidden_layers)
        ]
        super().__init__(init, config.vocab_size, config.hidden_size, layers, norm(), config.rope())


class PhiForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: PhiConfig, init: Init):
        super().__init__(init, PhiModel(config, init), config.hidden_size, config.vocab_size, tied=False, bias=True)


register(
    Architecture(
        config=PhiConfig,
        heads={BASE: PhiModel, CAUSAL_LM: PhiForCausalLM, **classifiers("Phi", PhiModel)},
        base="model",
    )
)
