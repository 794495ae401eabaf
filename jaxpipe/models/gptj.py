"""GPT-J (Wang and Komatsuzaki, 2021), as EleutherAI/gpt-j-6b holds it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import nnx

from jaxpipe.common.errors import ConfigError
from jaxpipe.common.outputs import BaseModelOutput
from jaxpipe.models.config import ModelConfig
from jaxpipe.models.decoder import classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.attention import Span, attend
from jaxpipe.nn.cache import KVLayer
from jaxpipe.nn.decoder import CausalLM, run_decoder
from jaxpipe.nn.embedding import Embedding
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import HeadsOutProjection, Linear, QKVProjection
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.nn.rope import Rope, rope_parameters, rotate
from jaxpipe.sharding.rules import constrain

Array = jax.Array
Table = tuple[Array, Array]


class GPTJConfig(ModelConfig):
    """Configuration of GPT-J."""

    model_type: ClassVar[str] = "gptj"
    inert: ClassVar[frozenset[str]] = frozenset(
        """attn_pdrop embd_pdrop n_ctx resid_pdrop rotary summary_activation summary_first_dropout
        summary_proj_to_labels summary_type summary_use_proj""".split()
    )
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"scale_attn_weights": (True, None)}
    attribute_map: ClassVar[Mapping[str, str]] = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = 50400
    n_positions: int = 2048
    n_embd: int = 4096
    n_layer: int = 28
    n_head: int = 16
    rotary_dim: int = 64
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.activation_function, "activation_function")
        if self.tie_word_embeddings:
            raise ConfigError(
                "config.json: tie_word_embeddings=true is not supported for 'gptj', whose head has a bias."
            )
        if self.n_embd % self.n_head or self.rotary_dim > self.n_embd // self.n_head:
            raise ConfigError(
                f"config.json: n_embd={self.n_embd} must be a multiple of n_head={self.n_head}, and a head at least "
                f"rotary_dim={self.rotary_dim} wide."
            )

    def limits(self) -> dict[str, int]:
        """First value out of range of each input; the oracle's table of angles ends at `n_positions` too."""
        return {"input_ids": self.vocab_size, "token_type_ids": self.vocab_size, "position_ids": self.n_positions}


class GPTJAttention(nnx.Module):
    """Multi-head self-attention; the first dimensions of each head turn in neighbouring pairs."""

    def __init__(self, config: GPTJConfig, init: Init):
        width, heads = config.n_embd, config.n_head
        shape = heads, heads, width // heads
        self.qkv_proj = QKVProjection(init, width, *shape)
        self.out_proj = HeadsOutProjection(init, *shape, width)
        self.scale = (width // heads) ** -0.5

    def __call__(
        self, x: Array, span: Span, rope: Table, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        q, k, v = self.qkv_proj(x)  # (B, T, H, h) each
        q, k = rotate(q, rope, interleaved=True), rotate(k, rope, interleaved=True)
        out, cache, probabilities = attend(q, k, v, span, cache, scale=self.scale, weights=weights)
        return self.out_proj(out), cache, probabilities


class GPTJMLP(nnx.Module):
    """Two projections with an activation between them."""

    def __init__(self, config: GPTJConfig, init: Init):
        width, features = config.n_embd, config.n_inner or 4 * config.n_embd
        self.fc_in = Linear(init, width, features, axes=("embed", "mlp"))
        self.fc_out = Linear(init, features, width, axes=("mlp", "embed"))
        self.act = activation(config.activation_function, "activation_function")

    def __call__(self, x: Array) -> Array:
        return self.fc_out(self.act(self.fc_in(x)))


class GPTJBlock(nnx.Module):
    """Attention and MLP side by side on the same normalised input."""

    def __init__(self, config: GPTJConfig, init: Init):
        self.ln_1 = LayerNorm(init, config.n_embd, config.layer_norm_epsilon)
        self.attn = GPTJAttention(config, init)
        self.mlp = GPTJMLP(config, init)

    def __call__(
        self, x: Array, span: Span, rope: Table, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        normed = self.ln_1(x)
        attended, cache, probabilities = self.attn(normed, span, rope, cache, weights)
        x = x + attended + self.mlp(normed)
        return constrain(x, "batch", "length", None), cache, probabilities  # (B, T, D)


class GPTJModel(nnx.Module):
    """The decoder without a head."""

    def __init__(self, config: GPTJConfig, init: Init):
        self.wte = Embedding(init, config.vocab_size, config.n_embd, axis="vocab")
        self.h = nnx.List([GPTJBlock(config, init) for _ in range(config.n_layer)])
        self.ln_f = LayerNorm(init, config.n_embd, config.layer_norm_epsilon)
        self.rope = Rope.of(rope_parameters({}), config.rotary_dim)

    def cache_layers(self) -> list[tuple[int, int]]:
        """Key-value heads and head width of each layer's cache."""
        return [(block.attn.qkv_proj.groups, block.attn.qkv_proj.head_dim) for block in self.h]

    def __call__(self, input_ids: Array, *, token_type_ids: Array | None = None, **inputs: Any) -> BaseModelOutput:
        """Runs the decoder on input_ids (B, T); see `run_decoder` for the other inputs."""
        x = self.wte(input_ids)
        if token_type_ids is not None:
            x = x + self.wte(token_type_ids)
        return run_decoder(self.h, self.ln_f, self.rope, x, **inputs)


class GPTJForCausalLM(CausalLM):
    """The decoder with a language-model head of its own, with a bias."""

    base: ClassVar[str] = "transformer"

    def __init__(self, config: GPTJConfig, init: Init):
        model = GPTJModel(config, init)
        super().__init__(init, model, config.n_embd, config.vocab_size, tied=False, bias=True)


register(
    Architecture(
        config=GPTJConfig,
        heads={
            BASE: GPTJModel,
            CAUSAL_LM: GPTJForCausalLM,
            **classifiers("GPTJ", GPTJModel, base="transformer", tokens=None, answers="transformer"),
        },
        base="transformer",
    )
)
