"""Ministral 3 (Mistral AI, 2025), the text model, as mistralai/Ministral-3-8B-Instruct-2512 holds it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxpipe.models.decoder import DecoderConfig, classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.mlp import GatedMLP
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.rope import Rope
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PreNormLayer, RotaryDecoder

Array = jax.Array


class Ministral3Config(DecoderConfig):
    """Configuration of Ministral 3; ``llama_4_scaling_beta`` stands among the rope parameters."""

    model_type: ClassVar[str] = "ministral3"

    vocab_size: int = 131072
    intermediate_size: int = 14336
    num_hidden_layers: int = 34
    num_key_value_heads: int = 8
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 262144
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 11
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    @classmethod
    def read_rope(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = values.get("rope_parameters") or values.get("rope_scaling")
        if given is None and values.get("rope_theta") is None:
            length = values.get("max_position_embeddings") or cls.max_position_embeddings
            given = {
                "type": "yarn",
                "rope_theta": 1e6,
                "factor": 16.0,
                "original_max_position_embeddings": 16384,
                "max_position_embeddings": length,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale_all_dim": 1.0,
                "mscale": 1.0,
                "llama_4_scaling_beta": 0.1,
            }
        parameters = super().read_rope({**values, "rope_parameters": given})
        # Released configs name the type twice.
        return {**parameters, "type": given["type"]} if given and "type" in given else parameters


@dataclass(frozen=True)
class QueryScaledRope:
    """Rotary frequencies, and a factor of the queries that grows with the position, as in Llama 4.

    Attributes:
        rope: the frequencies.
        beta: how fast the factor grows.
        original: positions that the model was first trained on, where the factor is 1.
    """

    rope: Rope
    beta: float
    original: int

    def __call__(self, positions: Array, valid: Array | None = None) -> tuple[Array, Array, Array]:
        """Returns cosine, sine and the queries' factor (1 or B, T)."""
        scale = 1 + self.beta * jnp.log1p(jnp.floor(positions / self.original))
        return *self.rope(positions, valid), scale


class Ministral3Attention(RotaryAttention):
    """Attention whose queries grow with their position."""

    def project(self, x: Array, table: Any) -> tuple[Array, Array, Array]:
        """Queries, keys and values of x (B, T, D); `table` is that of `QueryScaledRope`."""
        cos, sin, scale = table
        q, k, v = super().project(x, (cos, sin))
        return q * scale[:, :, None, None].astype(q.dtype), k, v


class Ministral3Model(RotaryDecoder):
    """The decoder without a head: Mistral with longer reach."""

    def __init__(self, config: Ministral3Config, init: Init):
        def norm() -> RMSNorm:
            return RMSNorm(init, config.hidden_size, config.rms_norm_eps)

        def layer() -> PreNormLayer:
            attention = Ministral3Attention(init, config.hidden_size, config.heads, window=config.sliding_window)
            mlp = GatedMLP(init, config.hidden_size, config.intermediate_size, activation(config.hidden_act))
            return PreNormLayer(attention, mlp, norm)

        layers = [layer() for _ in range(config.num_hidden_layers)]
        parameters = config.rope_parameters or {}
        original = parameters.get("original_max_position_embeddings") or config.max_position_embeddings
        rope = QueryScaledRope(config.rope(), parameters.get("llama_4_scaling_beta") or 0.0, original)
        super().__init__(init, config.vocab_size, config.hidden_size, layers, norm(), rope)


class Ministral3ForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: Ministral3Config, init: Init):
        model = Ministral3Model(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=Ministral3Config,
        heads={
            BASE: Ministral3Model,
            CAUSAL_LM: Ministral3ForCausalLM,
            **classifiers("Ministral3", Ministral3Model, answers="model"),
        },
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
    )
)
