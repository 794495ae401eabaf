"""EXAONE 4.0 (LG AI Research, 2025; arXiv 2507.11407), as LGAI-EXAONE/EXAONE-4.0-32B holds it."""

from typing import ClassVar

from jaxpipe.common.errors import ConfigError
from jaxpipe.models.decoder import FULL, SLIDING, DecoderConfig, classifiers, layer_types
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PostNormLayer, RotaryDecoder


class Exaone4Config(DecoderConfig):
    """Configuration of EXAONE 4.0.

    ``sliding_window_pattern`` is a period, of which the last layer sees everything, or a string of L (local) and G
    (global) that is repeated.
    """

    model_type: ClassVar[str] = "exaone4"

    vocab_size: int = 102400
    intermediate_size: int = 16384
    num_key_value_heads: int = 32
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = 4096
    sliding_window_pattern: str | int | None = 4
    layer_types: list[str] | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sliding_window is None:
            self.sliding_window_pattern = 0
        kinds = self._pattern() if self.layer_types is None else self.layer_types
        self.layer_types = layer_types(kinds, self.num_hidden_layers, 1, self.sliding_window)

    def _pattern(self) -> list[str]:
        count, pattern = self.num_hidden_layers, self.sliding_window_pattern
        if not pattern:
            return [FULL] * count
        if isinstance(pattern, int):
            return [SLIDING if (i + 1) % pattern else FULL for i in range(count)]
        if set(pattern) - set("LG"):
            raise ConfigError(f"config.json: sliding_window_pattern={pattern!r} holds letters other than L and G.")
        return [SLIDING if pattern[i % len(pattern)] == "L" and i + 1 < count else FULL for i in range(count)]


class Exaone4Model(RotaryDecoder):
    """The decoder without a head; where some layers see a window only, the others have no positions."""

    def __init__(self, config: Exaone4Config, init: Init):
        def norm() -> RMSNorm:
            return RMSNorm(init, config.hidden_size, config.rms_norm_eps)

        def layer(kind: str) -> PostNormLayer:
            attention = RotaryAttention(
                init,
                config.hidden_size,
                config.heads,
                qk_norm=lambda _: RMSNorm(init, config.head_dim, config.rms_norm_eps),
                window=config.sliding_window if kind == SLIDING else None,
                rotary=config.sliding_window is None or kind == SLIDING,
            )
            mlp = GatedMLP(init, config.hidden_size, config.intermediate_size, activation(config.hidden_act))
            return PostNormLayer(attention, mlp, norm)

        layers = [layer(kind) for kind in config.layer_types or ()]
        super().__init__(init, config.vocab_size, config.hidden_size, layers, norm(), config.rope())


class Exaone4ForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: Exaone4Config, init: Init):
        model = Exaone4Model(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=Exaone4Config,
        heads={
            BASE: Exaone4Model,
            CAUSAL_LM: Exaone4ForCausalLM,
            **classifiers("Exaone4", Exaone4Model, answers="transformer"),
        },
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
    )
)
