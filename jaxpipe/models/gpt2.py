"""GPT-2 (Radford et al., 2019), as openai-community/gpt2 holds it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.common.errors import ConfigError
from jaxpipe.common.gguf_spec import GGUFSpec
from jaxpipe.common.outputs import BaseModelOutput, LogitsOutput
from jaxpipe.models.config import ModelConfig
from jaxpipe.models.decoder import classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.attention import Span, attend, causal_span
from jaxpipe.nn.cache import Cache, KVLayer
from jaxpipe.nn.decoder import language_model_output, run_layers
from jaxpipe.nn.embedding import Embedding
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import HeadsOutProjection, Linear, QKVProjection
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.sharding.rules import constrain

Array = jax.Array


class GPT2Config(ModelConfig):
    """Configuration of GPT-2."""

    model_type: ClassVar[str] = "gpt2"
    # Scores are float32 in every dtype here, which is what reorder_and_upcast_attn asks for.
    inert: ClassVar[frozenset[str]] = frozenset(
        """attn_pdrop embd_pdrop resid_pdrop n_ctx reorder_and_upcast_attn summary_activation summary_first_dropout
        summary_proj_to_labels summary_type summary_use_proj""".split()
    )
    attribute_map: ClassVar[Mapping[str, str]] = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.activation_function, "activation_function")
        if self.n_embd % self.n_head:
            raise ConfigError(f"config.json: n_embd={self.n_embd} is not a multiple of n_head={self.n_head}.")

    def limits(self) -> dict[str, int]:
        """First value out of range of each input; token types are looked up in the table of tokens."""
        return {"input_ids": self.vocab_size, "token_type_ids": self.vocab_size, "position_ids": self.n_positions}


def _residual(init: Init, config: GPT2Config) -> Init:
    """Random weights of what is added to the residual shrink with depth (section 2.3 of the paper)."""
    return replace(init, std=init.std / (2 * config.n_layer) ** 0.5)


class GPT2Attention(nnx.Module):
    """Self-attention with one projection for query, key and value."""

    def __init__(self, config: GPT2Config, init: Init, layer: int):
        width, heads = config.n_embd, config.n_head
        head_dim = width // heads
        shape = heads, heads, head_dim
        self.qkv_proj = QKVProjection(init, width, *shape, bias=True, names=("c_attn",), transposed=False)
        self.c_proj = HeadsOutProjection(_residual(init, config), *shape, width, bias=True, transposed=False)
        self.scale = head_dim**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1

    def __call__(
        self, x: Array, span: Span, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        q, k, v = self.qkv_proj(x)  # (B, T, H, h) each
        out, cache, probabilities = attend(q, k, v, span, cache, scale=self.scale, weights=weights)
        return self.c_proj(out), cache, probabilities


class GPT2MLP(nnx.Module):
    """Two projections with an activation between them."""

    def __init__(self, config: GPT2Config, init: Init):
        width, features = config.n_embd, config.n_inner or 4 * config.n_embd
        self.c_fc = Linear(init, width, features, axes=("embed", "mlp"), transposed=False)
        self.c_proj = Linear(_residual(init, config), features, width, axes=("mlp", "embed"), transposed=False)
        self.act = activation(config.activation_function, "activation_function")

    def __call__(self, x: Array) -> Array:
        return self.c_proj(self.act(self.c_fc(x)))


class GPT2Block(nnx.Module):
    """Attention and MLP, each on its normalised input and added to the residual."""

    def __init__(self, config: GPT2Config, init: Init, layer: int):
        self.ln_1 = LayerNorm(init, config.n_embd, config.layer_norm_epsilon)
        self.attn = GPT2Attention(config, init, layer)
        self.ln_2 = LayerNorm(init, config.n_embd, config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config, init)

    def __call__(
        self, x: Array, span: Span, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        attended, cache, probabilities = self.attn(self.ln_1(x), span, cache, weights)
        x = x + attended
        x = x + self.mlp(self.ln_2(x))
        return constrain(x, "batch", "length", None), cache, probabilities  # (B, T, D)


class GPT2Model(nnx.Module):
    """The decoder without a head."""

    def __init__(self, config: GPT2Config, init: Init):
        self.wte = Embedding(init, config.vocab_size, config.n_embd, axis="vocab")
        self.wpe = Embedding(init, config.n_positions, config.n_embd)
        self.h = nnx.List([GPT2Block(config, init, i) for i in range(config.n_layer)])
        self.ln_f = LayerNorm(init, config.n_embd, config.layer_norm_epsilon)

    def cache_layers(self) -> list[tuple[int, int]]:
        """Key-value heads and head width of each layer's cache."""
        return [(block.attn.qkv_proj.groups, block.attn.qkv_proj.head_dim) for block in self.h]

    def __call__(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        token_type_ids: Array | None = None,
        cache: Cache | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BaseModelOutput:
        """Runs the decoder on input_ids (B, T); see `Span` for what the mask and the positions mean."""
        if cache is not None:
            cache = cache.enter(position_ids, attention_mask)
        tokens = input_ids.shape[1]
        positions = jnp.arange(tokens, dtype=jnp.int32)[None] if position_ids is None else position_ids
        x = self.wte(input_ids) + self.wpe(positions)  # (B, T, D)
        if token_type_ids is not None:
            x = x + self.wte(token_type_ids)
        x = constrain(x, "batch", "length", None)
        span = causal_span(tokens, attention_mask, position_ids, cache)
        out = run_layers(self.h, x, span, cache=cache, weights=output_attentions)
        return out.finish(self.ln_f(out.x), output_hidden_states)


class GPT2LMHeadModel(nnx.Module):
    """The decoder with a language-model head, tied to the embedding where the config says so."""

    def __init__(self, config: GPT2Config, init: Init):
        self.transformer = GPT2Model(config, init)
        head = (config.n_embd, config.vocab_size)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(init, *head, bias=False, axes=("embed", "vocab"))

    def cache_layers(self) -> list[tuple[int, int]]:
        """Key-value heads and head width of each layer's cache."""
        return self.transformer.cache_layers()

    def logits(self, x: Array) -> Array:
        """Scores (B, T, V) of states x (B, T, D)."""
        return self.transformer.wte.attend(x) if self.lm_head is None else self.lm_head(x)

    def __call__(self, input_ids: Array, *, last: Array | None = None, **inputs: Any) -> LogitsOutput:
        """Runs the decoder; `last` (B,) picks the one column of each row whose logits are computed."""
        return language_model_output(self.transformer(input_ids, **inputs), self.logits, last)


register(
    Architecture(
        config=GPT2Config,
        heads={
            BASE: GPT2Model,
            CAUSAL_LM: GPT2LMHeadModel,
            **classifiers("GPT2", GPT2Model, base="transformer", tokens="classifier", answers="transformer"),
        },
        base="transformer",
        tied={"lm_head.weight": "wte.weight"},
        gguf=GGUFSpec(
            architecture="gpt2",
            model_type="gpt2",
            tensors={
                "token_embd": "transformer.wte",
                "position_embd": "transformer.wpe",
                "output_norm": "transformer.ln_f",
                "output": "lm_head",
                "blk.{bid}.attn_norm": "transformer.h.{bid}.ln_1",
                "blk.{bid}.attn_qkv": "transformer.h.{bid}.attn.c_attn",
                "blk.{bid}.attn_output": "transformer.h.{bid}.attn.c_proj",
                "blk.{bid}.ffn_norm": "transformer.h.{bid}.ln_2",
                "blk.{bid}.ffn_up": "transformer.h.{bid}.mlp.c_fc",
                "blk.{bid}.ffn_down": "transformer.h.{bid}.mlp.c_proj",
            },
            config_keys={
                "attention.layer_norm_epsilon": "layer_norm_epsilon",
                "feed_forward_length": "n_inner",
                "attention.head_count_kv": None,
                "attention.key_length": None,
                "rope.freq_base": None,
            },
            transforms={r".*\.(c_attn|c_proj|c_fc)\.weight": "transpose"},
        ),
    )
)
