"""GPT-Neo (Black et al., 2021), as EleutherAI/gpt-neo-125m holds it."""

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
from jaxpipe.nn.cache import CacheLayer, KVLayer, WindowShape
from jaxpipe.nn.decoder import CausalLM, run_decoder
from jaxpipe.nn.embedding import Embedding
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import HeadsOutProjection, Linear, QKVProjection
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.nn.positions import places
from jaxpipe.sharding.rules import constrain

Array = jax.Array


class GPTNeoConfig(ModelConfig):
    """Configuration of GPT-Neo."""

    model_type: ClassVar[str] = "gpt_neo"
    # attention_layers is attention_types written out.
    inert: ClassVar[frozenset[str]] = frozenset(
        """attention_layers embed_dropout resid_dropout summary_activation summary_first_dropout
        summary_proj_to_labels summary_type summary_use_proj""".split()
    )
    attribute_map: ClassVar[Mapping[str, str]] = {
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
    }

    vocab_size: int = 50257
    max_position_embeddings: int = 2048
    hidden_size: int = 2048
    num_layers: int = 24
    attention_types: list[Any] | None = None  # global and local in turn, 24 of them
    num_heads: int = 16
    intermediate_size: int | None = None
    window_size: int = 256
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.activation_function, "activation_function")
        self.attention_types = self.attention_types or [[["global", "local"], 12]]
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"config.json: hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}."
            )
        try:
            kinds = self.kinds
        except (TypeError, ValueError):
            kinds = []
        if len(kinds) != self.num_layers or not set(kinds) <= {"global", "local"}:
            raise ConfigError(
                f"config.json: attention_types={self.attention_types!r} must be pairs of a list of 'global' and "
                f"'local' and a number of repetitions, {self.num_layers} layers together."
            )

    @property
    def kinds(self) -> list[str]:
        """Kind of attention of each layer: ``"global"``, or ``"local"`` over the window."""
        return [kind for kinds, times in self.attention_types or [] for _ in range(times) for kind in kinds]

    def limits(self) -> dict[str, int]:
        """First value out of range of each input; token types are looked up in the table of tokens."""
        positions = self.max_position_embeddings
        return {"input_ids": self.vocab_size, "token_type_ids": self.vocab_size, "position_ids": positions}


class GPTNeoSelfAttention(nnx.Module):
    """Multi-head self-attention without a scale, over all tokens before or the last few."""

    def __init__(self, config: GPTNeoConfig, init: Init, kind: str):
        width, heads = config.hidden_size, config.num_heads
        shape = heads, heads, width // heads
        self.qkv_proj = QKVProjection(init, width, *shape)
        self.out_proj = HeadsOutProjection(init, *shape, width, bias=True)
        self.window = config.window_size if kind == "local" else None

    @property
    def cache_shape(self) -> CacheLayer:
        """Key-value heads and head width of the layer's cache, and its window."""
        heads, width = self.qkv_proj.groups, self.qkv_proj.head_dim
        return (heads, width) if self.window is None else WindowShape(heads, width, self.window, width)

    def __call__(
        self, x: Array, span: Span, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        q, k, v = self.qkv_proj(x)  # (B, T, H, h) each
        out, cache, probabilities = attend(q, k, v, span, cache, scale=1.0, window=self.window, weights=weights)
        return self.out_proj(out), cache, probabilities


class GPTNeoAttention(nnx.Module):
    """The attention under the name that its weights have."""

    def __init__(self, config: GPTNeoConfig, init: Init, kind: str):
        self.attention = GPTNeoSelfAttention(config, init, kind)


class GPTNeoMLP(nnx.Module):
    """Two projections with an activation between them."""

    def __init__(self, config: GPTNeoConfig, init: Init):
        width, features = config.hidden_size, config.intermediate_size or 4 * config.hidden_size
        self.c_fc = Linear(init, width, features, axes=("embed", "mlp"))
        self.c_proj = Linear(init, features, width, axes=("mlp", "embed"))
        self.act = activation(config.activation_function, "activation_function")

    def __call__(self, x: Array) -> Array:
        return self.c_proj(self.act(self.c_fc(x)))


class GPTNeoBlock(nnx.Module):
    """Attention and MLP, each on its normalised input and added to the residual."""

    def __init__(self, config: GPTNeoConfig, init: Init, kind: str):
        self.ln_1 = LayerNorm(init, config.hidden_size, config.layer_norm_epsilon)
        self.attn = GPTNeoAttention(config, init, kind)
        self.ln_2 = LayerNorm(init, config.hidden_size, config.layer_norm_epsilon)
        self.mlp = GPTNeoMLP(config, init)

    def __call__(
        self, x: Array, span: Span, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        attended, cache, probabilities = self.attn.attention(self.ln_1(x), span, cache, weights)
        x = x + attended
        x = x + self.mlp(self.ln_2(x))
        return constrain(x, "batch", "length", None), cache, probabilities  # (B, T, D)


class GPTNeoModel(nnx.Module):
    """The decoder without a head."""

    def __init__(self, config: GPTNeoConfig, init: Init):
        self.wte = Embedding(init, config.vocab_size, config.hidden_size, axis="vocab")
        self.wpe = Embedding(init, config.max_position_embeddings, config.hidden_size)
        self.h = nnx.List([GPTNeoBlock(config, init, kind) for kind in config.kinds])
        self.ln_f = LayerNorm(init, config.hidden_size, config.layer_norm_epsilon)

    def cache_layers(self) -> list[CacheLayer]:
        """Key-value heads and head width of each layer's cache, and its window where it is local."""
        return [block.attn.attention.cache_shape for block in self.h]

    def __call__(
        self,
        input_ids: Array,
        *,
        position_ids: Array | None = None,
        token_type_ids: Array | None = None,
        **inputs: Any,
    ) -> BaseModelOutput:
        """Runs the decoder on input_ids (B, T); see `run_decoder` for the other inputs."""
        x = self.wte(input_ids) + self.wpe(places(input_ids, position_ids))
        if token_type_ids is not None:
            x = x + self.wte(token_type_ids)
        return run_decoder(self.h, self.ln_f, None, x, position_ids=position_ids, **inputs)


class GPTNeoForCausalLM(CausalLM):
    """The decoder with a language-model head, tied to the embedding where the config says so."""

    base: ClassVar[str] = "transformer"
    embedding: ClassVar[str] = "wte"

    def __init__(self, config: GPTNeoConfig, init: Init):
        width, tied = config.hidden_size, config.tie_word_embeddings
        super().__init__(init, GPTNeoModel(config, init), width, config.vocab_size, tied=tied)


register(
    Architecture(
        config=GPTNeoConfig,
        heads={
            BASE: GPTNeoModel,
            CAUSAL_LM: GPTNeoForCausalLM,
            **classifiers("GPTNeo", GPTNeoModel, base="transformer", tokens="classifier", answers="transformer"),
        },
        base="transformer",
        ignored=(r"h\.\d+\.attn\.attention\.(bias|masked_bias)",),
        tied={"lm_head.weight": "wte.weight"},
    )
)
