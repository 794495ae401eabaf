"""The stacks of BART and its kin: the transformer of Vaswani et al. (arXiv 1706.03762), normed before or after."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.common.outputs import BaseModelOutput
from jaxpipe.nn.attention import Span, causal_span, full_span
from jaxpipe.nn.cache import KVLayer
from jaxpipe.nn.cross_attention import CrossAttention, EncoderDecoderCache, Memory, SelfAttention
from jaxpipe.nn.embedding import Embedding
from jaxpipe.nn.encoder import run_encoder
from jaxpipe.nn.encoder_decoder import DecoderWalk, Embed, EncoderDecoder, run_decoder_layers
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import Linear
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.sharding.rules import constrain

Array = jax.Array
# Positions (B, T, D) of ids (B, T); with a cache the tokens' places in their rows (B, T) are given too.
Positions = Callable[[Array, Array | None], Array]
EPS = 1e-5


@dataclass(frozen=True)
class Stack:
    """What one half of the network is made of.

    Attributes:
        width, heads, features, layers: D, H, F and L.
        act: of the MLPs.
        pre_norm: norms stand before attention and MLP, and one after the last layer; else after each.
        norm_embedding: one more norm after the embedding.
    """

    width: int
    heads: int
    features: int
    layers: int
    act: Callable[[Array], Array]
    pre_norm: bool
    norm_embedding: bool

    @property
    def attention(self) -> tuple[int, int, int]:
        """Width, heads and width of a head."""
        return self.width, self.heads, self.width // self.heads


class TransformerLayer(nnx.Module):
    """Self-attention and MLP: what layers of the encoder and of the decoder have in common."""

    def __init__(self, init: Init, stack: Stack):
        self.self_attn = SelfAttention(init, *stack.attention)
        self.self_attn_layer_norm = LayerNorm(init, stack.width, EPS)
        self.fc1 = Linear(init, stack.width, stack.features, axes=("embed", "mlp"))
        self.fc2 = Linear(init, stack.features, stack.width, axes=("mlp", "embed"))
        self.final_layer_norm = LayerNorm(init, stack.width, EPS)
        self.act, self.pre_norm = stack.act, stack.pre_norm

    def before(self, norm: LayerNorm, x: Array) -> Array:
        """What attention or MLP reads of x (B, T, D)."""
        return norm(x) if self.pre_norm else x

    def after(self, norm: LayerNorm, x: Array, out: Array) -> Array:
        """Joins what it puts out to x (B, T, D)."""
        return x + out if self.pre_norm else norm(x + out)

    def mlp(self, x: Array) -> Array:
        """The layer's end, from x (B, T, D) to the next layer's."""
        out = self.fc2(self.act(self.fc1(self.before(self.final_layer_norm, x))))
        return constrain(self.after(self.final_layer_norm, x, out), "batch", "length", None)


class EncoderLayer(TransformerLayer):
    """A layer of the encoder."""

    def __call__(self, x: Array, span: Span, weights: bool) -> tuple[Array, Array | None]:
        read = self.before(self.self_attn_layer_norm, x)
        out, _, probabilities = self.self_attn(read, span, None, weights)
        return self.mlp(self.after(self.self_attn_layer_norm, x, out)), probabilities  # (B, S, D)


class DecoderLayer(TransformerLayer):
    """A layer of the decoder."""

    def __init__(self, init: Init, stack: Stack):
        super().__init__(init, stack)
        self.encoder_attn = CrossAttention(init, *stack.attention)
        self.encoder_attn_layer_norm = LayerNorm(init, stack.width, EPS)

    def __call__(
        self, x: Array, span: Span, memory: KVLayer, memory_span: Span, cache: KVLayer | None, weights: bool
    ) -> tuple[Array, KVLayer | None, Array | None, Array | None]:
        out, cache, own = self.self_attn(self.before(self.self_attn_layer_norm, x), span, cache, weights)
        x = self.after(self.self_attn_layer_norm, x, out)
        read = self.before(self.encoder_attn_layer_norm, x)
        out, cross = self.encoder_attn(read, memory, memory_span, weights)
        x = self.after(self.encoder_attn_layer_norm, x, out)
        return self.mlp(x), cache, own, cross  # (B, T, D)


class TransformerStack(nnx.Module):
    """The layers of one half with the positions and norms around them.

    Args:
        positions: a module or function; a learned one is a parameter of the stack.
    """

    def __init__(self, init: Init, stack: Stack, layer: Callable[[Init, Stack], Any], positions: Positions):
        self.embed_positions = positions
        self.layers = nnx.List([layer(init, stack) for _ in range(stack.layers)])
        self.layernorm_embedding = LayerNorm(init, stack.width, EPS) if stack.norm_embedding else None
        self.layer_norm = LayerNorm(init, stack.width, EPS) if stack.pre_norm else None

    def embedded(self, ids: Array, embed: Embed, position_ids: Array | None) -> Array:
        """What the first layer reads of ids (B, T)."""
        x = embed(ids)
        x = x + self.embed_positions(ids, position_ids).astype(x.dtype)  # (B, T, D)
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        return constrain(x, "batch", "length", None)

    def normed(self, x: Array) -> Array:
        """The last layer's x (B, T, D) as the stack puts it out."""
        return x if self.layer_norm is None else self.layer_norm(x)


class TransformerEncoder(TransformerStack):
    """The encoder."""

    def __init__(self, init: Init, stack: Stack, positions: Positions):
        super().__init__(init, stack, EncoderLayer, positions)

    def __call__(
        self, input_ids: Array, embed: Embed, attention_mask: Array | None, states: bool, weights: bool
    ) -> BaseModelOutput:
        x = self.embedded(input_ids, embed, None)
        walk = run_encoder(self.layers, x, full_span(input_ids.shape[1], attention_mask), weights=weights)
        return walk.finish(self.normed(walk.x), states)


class TransformerDecoder(TransformerStack):
    """The decoder."""

    def __init__(self, init: Init, stack: Stack, positions: Positions):
        super().__init__(init, stack, DecoderLayer, positions)

    def cache_layers(self) -> list[tuple[int, int]]:
        """Heads and head width of each layer's cache."""
        return [(layer.self_attn.qkv.groups, layer.self_attn.qkv.head_dim) for layer in self.layers]

    def remember(self, states: Array) -> list[KVLayer]:
        """Each layer's keys and values of the encoder's states (B, S, D)."""
        return [layer.encoder_attn.remember(states) for layer in self.layers]

    def __call__(
        self,
        input_ids: Array,
        embed: Embed,
        attention_mask: Array | None,
        position_ids: Array | None,
        memory: Memory,
        cache: EncoderDecoderCache | None,
        weights: bool,
    ) -> tuple[DecoderWalk, Array]:
        x = self.embedded(input_ids, embed, position_ids)
        span = causal_span(input_ids.shape[1], attention_mask, position_ids, cache)
        walk = run_decoder_layers(self.layers, x, span, memory=memory, cache=cache, weights=weights)
        return walk, self.normed(walk.x)


class Transformer(EncoderDecoder):
    """An encoder and a decoder without a head.

    Args:
        vocabulary: V.
        scaled: the embedding is multiplied by the root of the width.
        encoder, decoder: what they are made of.
        positions: makes the positions of a half.
    """

    def __init__(
        self,
        init: Init,
        vocabulary: int,
        *,
        scaled: bool,
        encoder: Stack,
        decoder: Stack,
        positions: Callable[[Init], Positions],
    ):
        self.shared = Embedding(init, vocabulary, encoder.width, axis="vocab")
        self.scale = math.sqrt(encoder.width) if scaled else 1.0
        self.encoder = TransformerEncoder(init, encoder, positions(init))
        self.decoder = TransformerDecoder(init, decoder, positions(init))

    def embed(self, ids: Array) -> Array:
        """Embeds ids (B, T)."""
        return self.shared(ids) * self.scale


def shifted(ids: Array, first: Array | int) -> Array:
    """Returns ids (B, T) one column further right, behind a first token, () or (B,)."""
    return jnp.roll(ids, 1, axis=1).at[:, 0].set(first)
