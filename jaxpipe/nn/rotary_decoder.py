"""Decoders with rotary positions whose layers norm the input of each block, as Llama's do."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax
from flax import nnx

from jaxpipe.common.outputs import BaseModelOutput
from jaxpipe.nn.attention import Span
from jaxpipe.nn.cache import CacheLayer, KVLayer
from jaxpipe.nn.decoder import run_decoder
from jaxpipe.nn.embedding import Embedding
from jaxpipe.nn.init import Init
from jaxpipe.sharding.rules import constrain

Array = jax.Array


class PreNormLayer(nnx.Module):
    """Attention and feed-forward block, each on its normalised input and added to the residual.

    Args:
        attention: called as ``attention(x, span, table, cache, weights)``; its attribute ``cache_shape`` tells the
            key-value heads and the head width of its cache.
        block: the feed-forward block, called with x (B, T, D).
        norm: makes a norm over D.
        name: attribute of the block, as the checkpoint names it.
        residual: what each addition to the residual is multiplied by.
    """

    def __init__(
        self, attention: Any, block: Any, norm: Callable[[], Any], *, name: str = "mlp", residual: float = 1.0
    ):
        self.input_layernorm = norm()
        self.self_attn = attention
        self.post_attention_layernorm = norm()
        setattr(self, name, block)
        self.block_name, self.residual = name, residual

    def __call__(
        self, x: Array, span: Span, table: Any, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        attended, cache, probabilities = self.self_attn(self.input_layernorm(x), span, table, cache, weights)
        x = x + self._scaled(attended)
        x = x + self._scaled(getattr(self, self.block_name)(self.post_attention_layernorm(x)))
        return constrain(x, "batch", "length", None), cache, probabilities  # (B, T, D)

    def _scaled(self, x: Array) -> Array:
        return x if self.residual == 1.0 else x * self.residual


class PostNormLayer(nnx.Module):
    """Attention and MLP, each on the residual itself; what they put out is normed before it is added, as in OLMo 2.

    Args:
        attention, mlp, norm: as of `PreNormLayer`.
    """

    def __init__(self, attention: Any, mlp: Any, norm: Callable[[], Any]):
        self.self_attn, self.mlp = attention, mlp
        self.post_attention_layernorm = norm()
        self.post_feedforward_layernorm = norm()

    def __call__(
        self, x: Array, span: Span, table: Any, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        attended, cache, probabilities = self.self_attn(x, span, table, cache, weights)
        x = x + self.post_attention_layernorm(attended)
        x = x + self.post_feedforward_layernorm(self.mlp(x))
        return constrain(x, "batch", "length", None), cache, probabilities  # (B, T, D)


class SandwichLayer(nnx.Module):
    """Attention and MLP, each with a norm before and a norm after it, and added to the residual, as in Gemma 2.

    Args:
        attention, mlp, norm: as of `PreNormLayer`.

    Attributes of the class:
        norms: attributes of the norms before and after the attention, and before and after the MLP.
    """

    norms: ClassVar[tuple[str, str, str, str]] = (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )

    def __init__(self, attention: Any, mlp: Any, norm: Callable[[], Any]):
        self.self_attn, self.mlp = attention, mlp
        for name in self.norms:
            setattr(self, name, norm())

    def __call__(
        self, x: Array, span: Span, table: Any, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        before_attention, after_attention, before_mlp, after_mlp = (getattr(self, name) for name in self.norms)
        attended, cache, probabilities = self.self_attn(before_attention(x), span, table, cache, weights)
        x = x + after_attention(attended)
        x = x + after_mlp(self.mlp(before_mlp(x)))
        return constrain(x, "batch", "length", None), cache, probabilities  # (B, T, D)


class ParallelLayer(nnx.Module):
    """Attention and MLP side by side on one normalised input, both added to the residual, as in Phi and Cohere.

    Args:
        attention, mlp, norm: as of `PreNormLayer`.
    """

    def __init__(self, attention: Any, mlp: Any, norm: Callable[[], Any]):
        self.input_layernorm = norm()
        self.self_attn, self.mlp = attention, mlp

    def __call__(
        self, x: Array, span: Span, table: Any, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None]:
        normed = self.input_layernorm(x)
        attended, cache, probabilities = self.self_attn(normed, span, table, cache, weights)
        x = x + attended + self.mlp(normed)
        return constrain(x, "batch", "length", None), cache, probabilities  # (B, T, D)


class RotaryDecoder(nnx.Module):
    """Embedding, layers and final norm.

    Args:
        vocabulary, width: V and D.
        layers: `PreNormLayer` or alike.
        norm: after the last layer.
        rope: see `run_decoder`.

    Attributes of the class, as the checkpoint has the name:
        final_norm: attribute of the norm after the last layer.
    """

    final_norm: ClassVar[str] = "norm"

    def __init__(
        self,
        init: Init,
        vocabulary: int,
        width: int,
        layers: Iterable[Any],
        norm: Callable[[Array], Array],
        rope: Callable[[Array, Array | None], Any],
    ):
        self.embed_tokens = Embedding(init, vocabulary, width, axis="vocab")
        self.layers = nnx.List(layers)
        setattr(self, self.final_norm, norm)
        self.rope = rope

    def cache_layers(self) -> list[CacheLayer]:
        """The shape of each layer's cache."""
        return [layer.self_attn.cache_shape for layer in self.layers]

    def embed(self, input_ids: Array) -> Array:
        """Embeds input_ids (B, T) as (B, T, D); architectures that scale the embedding extend it."""
        return self.embed_tokens(input_ids)

    def __call__(self, input_ids: Array, **inputs: Any) -> BaseModelOutput:
        """Runs the decoder on input_ids (B, T); see `run_decoder` for the other inputs."""
        norm = getattr(self, self.final_norm)
        return run_decoder(self.layers, norm, self.rope, self.embed(input_ids), **inputs)
