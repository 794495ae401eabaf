"""Qwen2 and Qwen2.5 (Qwen Team, 2024; arXiv 2407.10671 and 2412.15115), as Qwen/Qwen2.5-7B-Instruct holds it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxpipe.common.gguf_spec import GGUFSpec
from jaxpipe.models.decoder import FULL, GGUF_TENSORS, SLIDING, DecoderConfig, classifiers, layer_types
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PreNormLayer, RotaryDecoder


class Qwen2Config(DecoderConfig):
    """Configuration of Qwen2."""

    model_type: ClassVar[str] = "qwen2"
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"use_mrope": (False, None)}

    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int = 32
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int | None = 28  # may be 0
    layer_types: list[str] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sliding_window = self.sliding_window if self.use_sliding_window else None
        kinds = self.layer_types
        if kinds is None:
            first = (self.max_window_layers or 0) if self.sliding_window else self.num_hidden_layers
            kinds = [SLIDING if i >= first else FULL for i in range(self.num_hidden_layers)]
        self.layer_types = layer_types(kinds, self.num_hidden_layers, 1, self.sliding_window)


class Qwen2Model(RotaryDecoder):
    """The decoder without a head; the config may give the upper layers a window."""

    def __init__(self, config: Qwen2Config, init: Init):
        def norm() -> RMSNorm:
            return RMSNorm(init, config.hidden_size, config.rms_norm_eps)

        def layer(kind: str) -> PreNormLayer:
            window = config.sliding_window if kind == SLIDING else None
            given: dict[str, Any] = {"bias": True, "output_bias": False, "window": window}
            attention = RotaryAttention(init, config.hidden_size, config.heads, **given)
            mlp = GatedMLP(init, config.hidden_size, config.intermediate_size, activation(config.hidden_act))
            return PreNormLayer(attention, mlp, norm)

        layers = [layer(kind) for kind in config.layer_types or ()]
        super().__init__(init, config.vocab_size, config.hidden_size, layers, norm(), config.rope())


class Qwen2ForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: Qwen2Config, init: Init):
        model = Qwen2Model(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=Qwen2Config,
        heads={
            BASE: Qwen2Model,
            CAUSAL_LM: Qwen2ForCausalLM,
            **classifiers("Qwen2", Qwen2Model, answers="transformer"),
        },
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
        gguf=GGUFSpec(architecture="qwen2", model_type="qwen2", tensors=GGUF_TENSORS),
    )
)
