"""Command R7B (Cohere, 2024), as CohereForAI/c4ai-command-r7b-12-2024 holds it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxpipe.models.cohere import CohereForCausalLM, CohereModel
from jaxpipe.models.decoder import SLIDING, DecoderConfig, layer_types
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.init import Init
from jaxpipe.nn.rotary_attention import RotaryAttention


class Cohere2Config(DecoderConfig):
    """Configuration of Command R7B and Command A, whose full layers have no positions."""

    model_type: ClassVar[str] = "cohere2"
    inert: ClassVar[frozenset[str]] = frozenset(
        {"_sliding_window_pattern", "cache_implementation", "layer_switch", "use_embedding_sharing"}
        | {"use_parallel_embedding"}
    )
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "use_qk_norm": (False, None),
        "use_parallel_block": (True, None),
        "use_gated_activation": (True, None),
        "rotary_pct": (1.0, None),
        "position_embedding_type": ("rope_gptj", None),
        "order_of_interleaved_layers": ("local_attn_first", None),
    }

    vocab_size: int = 256000
    hidden_size: int = 8192
    intermediate_size: int = 22528
    num_hidden_layers: int = 40
    num_attention_heads: int = 64
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    layer_norm_eps: float = 1e-5
    logit_scale: float = 0.0625
    attention_bias: bool = False
    sliding_window: int | None = 4096
    sliding_window_pattern: int = 4
    layer_types: list[str] | None = None
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 5
    eos_token_id: int | list[int] | None = 255001

    def __post_init__(self) -> None:
        self.head_dim = 0  # it has no width of heads of its own
        super().__post_init__()
        kinds, period = self.layer_types, self.sliding_window_pattern
        self.layer_types = layer_types(kinds, self.num_hidden_layers, period, self.sliding_window)


class Cohere2Model(CohereModel):
    """The decoder without a head: layers with a window and positions, and every fourth with neither."""

    @staticmethod
    def attention(config: Any, init: Init, layer: int) -> RotaryAttention:
        """Makes the attention of a layer."""
        sliding = config.layer_types[layer] == SLIDING
        return RotaryAttention(
            init,
            config.hidden_size,
            config.heads,
            bias=config.attention_bias,
            window=config.sliding_window if sliding else None,
            rotary=sliding,
            interleaved=True,
        )


class Cohere2ForCausalLM(CohereForCausalLM):
    """The decoder with a language-model head, whose scores are scaled."""

    decoder: ClassVar[type[CohereModel]] = Cohere2Model


register(
    Architecture(
        config=Cohere2Config,
        heads={BASE: Cohere2Model, CAUSAL_LM: Cohere2ForCausalLM},
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
    )
)
