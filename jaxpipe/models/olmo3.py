"""OLMo 3 (OLMo Team, 2025), as allenai/Olmo-3-7B-Instruct holds it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from jaxpipe.models.decoder import FULL, SLIDING, DecoderConfig, classifiers, layer_types
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.norms import FloatRMSNorm
from jaxpipe.nn.rope import LayerRopes
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PostNormLayer, RotaryDecoder

Array = jax.Array


class Olmo3Config(DecoderConfig):
    """Configuration of OLMo 3; ``rope_scaling`` is about the layers that see everything."""

    model_type: ClassVar[str] = "olmo3"
    default_theta: ClassVar[float | Mapping[str, float]] = {SLIDING: 500_000.0, FULL: 500_000.0}

    vocab_size: int = 50304
    intermediate_size: int = 11008
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    sliding_window: int | None = 4096
    layer_types: list[str] | None = None
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 50279

    def __post_init__(self) -> None:
        super().__post_init__()
        self.layer_types = layer_types(self.layer_types, self.num_hidden_layers, 4, self.sliding_window)


class Olmo3Attention(RotaryAttention):
    """Attention with queries and keys normed over all heads at once, rotated as its kind of layer is."""

    def __init__(self, config: Olmo3Config, init: Init, kind: str):
        super().__init__(
            init,
            config.hidden_size,
            config.heads,
            bias=config.attention_bias,
            qk_norm=lambda heads: FloatRMSNorm(init, config.head_dim, config.rms_norm_eps, heads=heads),
            window=config.sliding_window if kind == SLIDING else None,
        )
        self.kind = kind

    def project(self, x: Array, table: Any) -> tuple[Array, Array, Array]:
        """Queries, keys and values of x (B, T, D); `table` holds the angles of each kind of layer."""
        return super().project(x, table[self.kind])


class Olmo3Model(RotaryDecoder):
    """The decoder without a head: OLMo 2 whose layers see a window only, but for every fourth."""

    def __init__(self, config: Olmo3Config, init: Init):
        def norm() -> FloatRMSNorm:
            return FloatRMSNorm(init, config.hidden_size, config.rms_norm_eps)

        def layer(kind: str) -> PostNormLayer:
            mlp = GatedMLP(init, config.hidden_size, config.intermediate_size, activation(config.hidden_act))
            return PostNormLayer(Olmo3Attention(config, init, kind), mlp, norm)

        layers = [layer(kind) for kind in config.layer_types or ()]
        ropes = LayerRopes.of(config.rope_parameters or {}, config.head_dim, config.max_position_embeddings)
        super().__init__(init, config.vocab_size, config.hidden_size, layers, norm(), ropes)


class Olmo3ForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: Olmo3Config, init: Init):
        model = Olmo3Model(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=Olmo3Config,
        heads={BASE: Olmo3Model, CAUSAL_LM: Olmo3ForCausalLM, **classifiers("Olmo3", Olmo3Model, tokens=None)},
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
    )
)
