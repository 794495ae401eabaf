"""SmolLM3 (Hugging Face, 2025), as HuggingFaceTB/SmolLM3-3B holds it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxpipe.common.errors import ConfigError
from jaxpipe.models.decoder import FULL, SLIDING, DecoderConfig, classifiers, layer_types
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PreNormLayer, RotaryDecoder


class SmolLM3Config(DecoderConfig):
    """Configuration of SmolLM3; ``no_rope_layers`` holds 1 for a layer with rotary positions, 0 for one without."""

    model_type: ClassVar[str] = "smollm3"
    inert: ClassVar[frozenset[str]] = frozenset({"max_window_layers"})
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"rope_interleaved": (False, None)}
    default_theta: ClassVar[float] = 2e6

    vocab_size: int = 128256
    hidden_size: int = 2048
    intermediate_size: int = 11008
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    use_sliding_window: bool = False
    sliding_window: int | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: int = 4
    layer_types: list[str] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 128004
    bos_token_id: int | None = 128000
    eos_token_id: int | list[int] | None = 128001

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.num_hidden_layers
        if self.no_rope_layers is None:
            self.no_rope_layers = [int((i + 1) % self.no_rope_layer_interval != 0) for i in range(count)]
        if len(self.no_rope_layers) < count:
            raise ConfigError(
                f"config.json: no_rope_layers has {len(self.no_rope_layers)} entries, but num_hidden_layers={count}."
            )
        kinds = self.layer_types
        if kinds is None:
            windowed = self.use_sliding_window and self.sliding_window is not None
            kinds = [SLIDING if windowed and not rotary else FULL for rotary in self.no_rope_layers[:count]]
        self.layer_types = layer_types(kinds, count, 1, self.sliding_window)


class SmolLM3Model(RotaryDecoder):
    """The decoder without a head; every fourth layer has no positions."""

    def __init__(self, config: SmolLM3Config, init: Init):
        def norm() -> RMSNorm:
            return RMSNorm(init, config.hidden_size, config.rms_norm_eps)

        def layer(kind: str, rotary: int) -> PreNormLayer:
            window = config.sliding_window if kind == SLIDING else None
            given: dict[str, Any] = {"bias": config.attention_bias, "window": window, "rotary": bool(rotary)}
            attention = RotaryAttention(init, config.hidden_size, config.heads, **given)
            act = activation(config.hidden_act)
            mlp = GatedMLP(init, config.hidden_size, config.intermediate_size, act, bias=config.mlp_bias)
            return PreNormLayer(attention, mlp, norm)

        layers = [layer(*each) for each in zip(config.layer_types or (), config.no_rope_layers or (), strict=False)]
        super().__init__(init, config.vocab_size, config.hidden_size, layers, norm(), config.rope())


class SmolLM3ForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: SmolLM3Config, init: Init):
        model = SmolLM3Model(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=SmolLM3Config,
        heads={
            BASE: SmolLM3Model,
            CAUSAL_LM: SmolLM3ForCausalLM,
            **classifiers("SmolLM3", SmolLM3Model, answers="transformer"),
        },
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
    )
)
