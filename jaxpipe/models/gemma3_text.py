"""Gemma 3 (Gemma Team, 2025; arXiv 2503.19786), the text model, as google/gemma-3-1b-it holds it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxpipe.common.errors import ConfigError
from jaxpipe.common.gguf_spec import GGUFSpec
from jaxpipe.common.outputs import BaseModelOutput
from jaxpipe.models.decoder import FULL, SLIDING, classifiers
from jaxpipe.models.gemma2 import GGUF_SANDWICH_TENSORS, Gemma2Config, Gemma2Model, gguf_scale
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.attention import Span
from jaxpipe.nn.cache import KVLayer
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.norms import OffsetRMSNorm
from jaxpipe.nn.rope import LayerRopes, rope_parameters
from jaxpipe.nn.rotary_attention import RotaryAttention

Array = jax.Array


# Bases of the rotary frequencies of each kind of layer.
THETA = {SLIDING: 10_000.0, FULL: 1_000_000.0}


class Gemma3TextConfig(Gemma2Config):
    """Configuration of Gemma 3's text model, whose sliding layers have rotary positions of their own."""

    model_type: ClassVar[str] = "gemma3_text"
    inert: ClassVar[frozenset[str]] = Gemma2Config.inert | {"_sliding_window_pattern"}
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    default_theta: ClassVar[float | Mapping[str, float]] = THETA

    vocab_size: int = 262208
    max_position_embeddings: int = 131072
    sliding_window_pattern: int = 6
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    use_bidirectional_attention: bool | None = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attn_logit_softcapping is not None:
            raise ConfigError(
                f"config.json: attn_logit_softcapping={self.attn_logit_softcapping} is not supported for "
                f"{self.model_type!r}; accepted: null."
            )

    @property
    def period(self) -> int:
        """Which layers are full where ``layer_types`` does not say."""
        return self.sliding_window_pattern

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super().normalise(values)
        values.pop("rope_local_base_freq", None)
        return values

    @classmethod
    def read_rope(cls, values: dict[str, Any]) -> dict[str, Any]:
        keys = {FULL: "rope_theta", SLIDING: "rope_local_base_freq"}
        theta = {kind: THETA[kind] if values.get(key) is None else values[key] for kind, key in keys.items()}
        return rope_parameters({**values, "rope_theta": None}, theta=theta)


class Gemma3Attention(RotaryAttention):
    """Attention with normalised queries and keys, rotated as its kind of layer is."""

    def __init__(self, config: Gemma3TextConfig, init: Init, kind: str):
        window = config.sliding_window if kind == SLIDING else None
        if window is not None and config.use_bidirectional_attention:
            window = window // 2 + 1  # the window counts the tokens on both sides
        super().__init__(
            init,
            config.hidden_size,
            config.heads,
            bias=config.attention_bias,
            qk_norm=lambda _: OffsetRMSNorm(init, config.head_dim, config.rms_norm_eps),
            scale=config.query_pre_attn_scalar**-0.5,
            window=window,
        )
        self.kind = kind

    def __call__(
        self, x: Array, span: Span, table: Any, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        """Attends with x (B, T, D); `table` holds the angles of each kind of layer."""
        return super().__call__(x, span, table[self.kind], cache, weights)


class Gemma3TextModel(Gemma2Model):
    """The decoder without a head: most layers see a window only, every sixth all."""

    def __init__(self, config: Gemma3TextConfig, init: Init):
        super().__init__(config, init)
        self.bidirectional = bool(config.use_bidirectional_attention)

    @staticmethod
    def attention(config: Any, init: Init, kind: str) -> RotaryAttention:
        """Makes the attention of a layer of a kind."""
        return Gemma3Attention(config, init, kind)

    @staticmethod
    def frequencies(config: Any) -> Any:
        """Makes what turns positions into the angles of each kind of layer."""
        return LayerRopes.of(config.rope_parameters, config.head_dim, config.max_position_embeddings)

    def __call__(self, input_ids: Array, **inputs: Any) -> BaseModelOutput:
        """Runs the decoder on input_ids (B, T); see `run_decoder` for the other inputs."""
        return super().__call__(input_ids, bidirectional=self.bidirectional, **inputs)


class Gemma3ForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: Gemma3TextConfig, init: Init):
        model = Gemma3TextModel(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)
        self.softcap = config.final_logit_softcapping

    def logits(self, x: Array) -> Array:
        """Scores (B, T, V) of states x (B, T, D)."""
        scores = super().logits(x)
        return scores if self.softcap is None else self.softcap * jnp.tanh(scores / self.softcap)


register(
    Architecture(
        config=Gemma3TextConfig,
        heads={
            BASE: Gemma3TextModel,
            CAUSAL_LM: Gemma3ForCausalLM,
            **classifiers("Gemma3Text", Gemma3TextModel, tokens=None),
        },
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
        gguf=GGUFSpec(
            architecture="gemma3",
            model_type="gemma3_text",
            tensors={
                **GGUF_SANDWICH_TENSORS,
                "blk.{bid}.attn_q_norm": "model.layers.{bid}.self_attn.q_norm",
                "blk.{bid}.attn_k_norm": "model.layers.{bid}.self_attn.k_norm",
            },
            config_keys={
                "attention.sliding_window": "sliding_window",
                "rope.freq_base_swa": "rope_local_base_freq",
                "final_logit_softcapping": "final_logit_softcapping",
            },
            transforms={r".*norm\.weight": "minus_one"},
            derive=lambda config, _: gguf_scale(config, largest=62),
        ),
    )
)
