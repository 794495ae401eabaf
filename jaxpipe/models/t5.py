"""T5 (Raffel et al., 2020; arXiv 1910.10683), as google-t5/t5-small and google/flan-t5-small hold it."""

import functools
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.common.errors import ConfigError
from jaxpipe.common.gguf_spec import GGUFSpec
from jaxpipe.common.outputs import BaseModelOutput, Seq2SeqLogitsOutput
from jaxpipe.models.config import ModelConfig
from jaxpipe.models.registry import BASE, SEQ2SEQ_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.attention import Span, causal_span, full_span
from jaxpipe.nn.cache import KVLayer
from jaxpipe.nn.cross_attention import CrossAttention, EncoderDecoderCache, Memory, SelfAttention
from jaxpipe.nn.embedding import Embedding
from jaxpipe.nn.encoder import run_encoder
from jaxpipe.nn.encoder_decoder import DecoderWalk, Embed, EncoderDecoder, run_decoder_layers, seq2seq_output
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import GateUp, Linear
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.relative_bias import RelativeBias, relative_buckets
from jaxpipe.sharding.rules import constrain

Array = jax.Array
NAMES = ("q", "k", "v", "o")


class T5FamilyConfig(ModelConfig):
    """What the configurations of T5 and of those built like it have in common."""

    inert: ClassVar[frozenset[str]] = frozenset({"dropout_rate", "n_positions", "output_past"})
    attribute_map: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }
    # Layers whose self-attention has a table of its own; the others add what the first one adds.
    bias_in_every_layer: ClassVar[bool] = False

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = 0  # as many as in the encoder
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    dense_act_fn: str = ""  # as feed_forward_proj says
    is_gated_act: bool | None = None  # as feed_forward_proj says
    is_encoder_decoder: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.num_decoder_layers = self.num_decoder_layers or self.num_layers
        gate, _, name = self.feed_forward_proj.rpartition("-")
        if gate not in ("", "gated"):
            raise ConfigError(
                f"config.json: feed_forward_proj={self.feed_forward_proj!r} is neither an activation nor 'gated-' and "
                "an activation."
            )
        # In T5's own configs "gated-gelu" means the approximation by tanh.
        self.dense_act_fn = self.dense_act_fn or ("gelu_new" if self.feed_forward_proj == "gated-gelu" else name)
        self.is_gated_act = gate == "gated" if self.is_gated_act is None else self.is_gated_act
        activation(self.dense_act_fn, "feed_forward_proj")
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets < 4 or distance <= buckets // 2:
            raise ConfigError(
                f"config.json: relative_attention_num_buckets={buckets} must be at least 4, and "
                f"relative_attention_max_distance={distance} more than half of it."
            )
        if not self.is_encoder_decoder:
            raise ConfigError(f"config.json: is_encoder_decoder=false is not supported for {self.model_type!r}.")

    def limits(self) -> dict[str, int]:
        """First value out of range of each input of indices."""
        return {"input_ids": self.vocab_size, "decoder_input_ids": self.vocab_size}


class T5Config(T5FamilyConfig):
    """Configuration of T5: version 1.0 (one activation, head tied and scaled), 1.1 and Flan (gated, head apart)."""

    model_type: ClassVar[str] = "t5"

    scale_decoder_outputs: bool = True

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super().normalise(values)
        # Version 4 had one key for two things: that the head lies apart, and that it is not scaled.
        values.setdefault("scale_decoder_outputs", values.get("tie_word_embeddings") is not False)
        return values


class T5LayerNorm(RMSNorm):
    """Root-mean-square norm, back in the dtype of the weights."""

    def __call__(self, x: Array) -> Array:
        return super().__call__(x).astype(self.scale.dtype)


class T5Attention(SelfAttention):
    """Self-attention without scale; its scores are biased by distance."""

    def __init__(self, config: T5FamilyConfig, init: Init, *, biased: bool):
        width, heads, factor = config.d_model, config.num_heads, config.initializer_factor
        init = replace(init, std=factor * width**-0.5)
        super().__init__(init, width, heads, config.d_kv, bias=False, scale=1.0, names=NAMES)
        table = (config.relative_attention_num_buckets, heads)
        self.relative_attention_bias = RelativeBias(init, *table) if biased else None


class T5LayerSelfAttention(nnx.Module):
    """Self-attention on the normalised input, added to the residual."""

    def __init__(self, config: T5FamilyConfig, init: Init, *, biased: bool):
        self.SelfAttention = T5Attention(config, init, biased=biased)
        self.layer_norm = T5LayerNorm(init, config.d_model, config.layer_norm_epsilon)

    def __call__(
        self, x: Array, span: Span, cache: KVLayer | None, weights: bool, bias: Array
    ) -> tuple[Array, KVLayer | None, Array | None]:
        out, cache, probabilities = self.SelfAttention(self.layer_norm(x), span, cache, weights, bias)
        return x + out, cache, probabilities


class T5LayerCrossAttention(nnx.Module):
    """Attention to the encoder's output on the normalised input, added to the residual."""

    def __init__(self, config: T5FamilyConfig, init: Init):
        init = replace(init, std=config.initializer_factor * config.d_model**-0.5)
        shape = config.d_model, config.num_heads, config.d_kv
        self.EncDecAttention = CrossAttention(init, *shape, bias=False, scale=1.0, names=NAMES)
        self.layer_norm = T5LayerNorm(init, config.d_model, config.layer_norm_epsilon)

    def __call__(self, x: Array, memory: KVLayer, span: Span, weights: bool) -> tuple[Array, Array | None]:
        out, probabilities = self.EncDecAttention(self.layer_norm(x), memory, span, weights)
        return x + out, probabilities


class T5DenseReluDense(nnx.Module):
    """The MLP, gated or not, as the checkpoint names it; a call stops before its last projection."""

    def __init__(self, config: T5FamilyConfig, init: Init):
        width, features = config.d_model, config.d_ff
        inner = replace(init, std=config.initializer_factor * width**-0.5)
        outer = replace(init, std=config.initializer_factor * features**-0.5)
        gated, axes = config.is_gated_act, ("embed", "mlp")
        self.gate_up = GateUp(inner, width, features, names=("wi_0", "wi_1")) if gated else None
        self.wi = None if gated else Linear(inner, width, features, bias=False, axes=axes)
        self.wo = Linear(outer, features, width, bias=False, axes=("mlp", "embed"))
        self.act = activation(config.dense_act_fn, "feed_forward_proj")

    def __call__(self, x: Array) -> Array:
        if self.gate_up is None:
            assert self.wi is not None
            return self.act(self.wi(x))  # (B, T, F)
        gate, up = self.gate_up(x)  # (B, T, F) each
        return self.act(gate) * up


class T5LayerFF(nnx.Module):
    """The MLP on the normalised input, added to the residual."""

    def __init__(self, config: T5FamilyConfig, init: Init):
        self.DenseReluDense = T5DenseReluDense(config, init)
        self.layer_norm = T5LayerNorm(init, config.d_model, config.layer_norm_epsilon)

    def __call__(self, x: Array) -> Array:
        inner = self.DenseReluDense(self.layer_norm(x))  # (B, T, F)
        return x + self.DenseReluDense.wo(inner.astype(x.dtype))


class T5Block(nnx.Module):
    """One layer of the encoder, or with cross-attention of the decoder."""

    def __init__(self, config: T5FamilyConfig, init: Init, *, biased: bool, decoder: bool):
        own = T5LayerSelfAttention(config, init, biased=biased)
        cross = [T5LayerCrossAttention(config, init)] if decoder else []
        self.layer: Any = nnx.List([own, *cross, T5LayerFF(config, init)])

    def encode(self, x: Array, span: Span, weights: bool, *, bias: Array) -> tuple[Array, Array | None]:
        """Runs a layer of the encoder on x (B, S, D)."""
        x, _, probabilities = self.layer[0](x, span, None, weights, bias)
        return constrain(self.layer[1](x), "batch", "length", None), probabilities

    def decode(
        self,
        x: Array,
        span: Span,
        memory: KVLayer,
        memory_span: Span,
        cache: KVLayer | None,
        weights: bool,
        *,
        bias: Array,
    ) -> tuple[Array, KVLayer | None, Array | None, Array | None]:
        """Runs a layer of the decoder on x (B, T, D)."""
        x, cache, own = self.layer[0](x, span, cache, weights, bias)
        x, cross = self.layer[1](x, memory, memory_span, weights)
        return constrain(self.layer[2](x), "batch", "length", None), cache, own, cross


class T5Stack(nnx.Module):
    """The layers of one half and the norm after them."""

    def __init__(self, config: T5FamilyConfig, init: Init, *, layers: int, decoder: bool):
        biased = [i == 0 or config.bias_in_every_layer for i in range(layers)]
        self.block: Any = nnx.List([T5Block(config, init, biased=b, decoder=decoder) for b in biased])
        self.final_layer_norm = T5LayerNorm(init, config.d_model, config.layer_norm_epsilon)
        self.buckets = {
            "bidirectional": not decoder,
            "buckets": config.relative_attention_num_buckets,
            "max_distance": config.relative_attention_max_distance,
        }

    @staticmethod
    def embedded(ids: Array, embed: Embed) -> Array:
        """What the first layer reads of ids (B, T); T5's residuals do not fit in float16."""
        x = constrain(embed(ids), "batch", "length", None)  # (B, T, D)
        return x.astype(jnp.float32) if x.dtype == jnp.float16 else x

    def biases(self, queries: Array, keys: Array) -> list[Array]:
        """Each layer's biases (1 or B, H, T, S) of positions (1 or B, T) and (1 or B, S)."""
        buckets = relative_buckets(queries, keys, **self.buckets)
        tables = [block.layer[0].SelfAttention.relative_attention_bias for block in self.block]
        made: list[Array] = []
        for table in tables:  # the first layer has one
            made.append(made[0] if table is None else table(buckets))
        return made


class T5Encoder(T5Stack):
    """The encoder."""

    def __call__(
        self, input_ids: Array, embed: Embed, attention_mask: Array | None, states: bool, weights: bool
    ) -> BaseModelOutput:
        x = self.embedded(input_ids, embed)
        span = full_span(input_ids.shape[1], attention_mask)
        biases = self.biases(span.queries, span.queries)
        layers = [functools.partial(block.encode, bias=bias) for block, bias in zip(self.block, biases, strict=True)]
        walk = run_encoder(layers, x, span, weights=weights)
        return walk.finish(self.final_layer_norm(walk.x), states)


class T5Decoder(T5Stack):
    """The decoder."""

    def cache_layers(self) -> list[tuple[int, int]]:
        """Heads and head width of each layer's cache."""
        projections = [block.layer[0].SelfAttention.qkv for block in self.block]
        return [(qkv.groups, qkv.head_dim) for qkv in projections]

    def remember(self, states: Array) -> list[KVLayer]:
        """Each layer's keys and values of the encoder's states (B, S, D)."""
        return [block.layer[1].EncDecAttention.remember(states) for block in self.block]

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
        x = self.embedded(input_ids, embed)
        span = causal_span(input_ids.shape[1], attention_mask, position_ids, cache)
        biases = self.biases(span.queries, span.queries if cache is None else span.keys)
        layers = [functools.partial(block.decode, bias=bias) for block, bias in zip(self.block, biases, strict=True)]
        walk = run_decoder_layers(layers, x, span, memory=memory, cache=cache, weights=weights)
        return walk, self.final_layer_norm(walk.x)


class T5Model(EncoderDecoder):
    """Encoder and decoder without a head."""

    def __init__(self, config: T5FamilyConfig, init: Init):
        table = replace(init, std=config.initializer_factor)
        self.shared = Embedding(table, config.vocab_size, config.d_model, axis="vocab")
        self.encoder = T5Encoder(config, init, layers=config.num_layers, decoder=False)
        self.decoder = T5Decoder(config, init, layers=config.num_decoder_layers, decoder=True)


class T5ForConditionalGeneration(T5Model):
    """Encoder and decoder with a language-model head; a tied one of version 1.0 is scaled."""

    def __init__(self, config: T5FamilyConfig, init: Init):
        super().__init__(config, init)
        shape = (config.d_model, config.vocab_size)
        apart = replace(init, std=config.initializer_factor)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(apart, *shape, bias=False, axes=("embed", "vocab"))
        self.scale = config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0

    def __call__(
        self, input_ids: Array | None = None, *, last: Array | None = None, **inputs: Any
    ) -> Seq2SeqLogitsOutput:
        """Runs both halves; `last` (B,) picks the one column of each row whose logits are computed."""

        def head(x: Array) -> Array:
            x = x * jnp.asarray(self.scale, x.dtype)
            return self.shared.attend(x) if self.lm_head is None else self.lm_head(x)

        return seq2seq_output(super().__call__(input_ids, **inputs), head, last)


def t5_architecture(
    config: type[T5FamilyConfig],
    base: type[T5Model],
    head: type[T5ForConditionalGeneration],
    gguf: GGUFSpec | None = None,
) -> Architecture:
    """Returns the architecture of T5 or of one built like it."""
    return Architecture(
        config=config,
        heads={BASE: base, SEQ2SEQ_LM: head},
        base="transformer",
        tied={"lm_head.weight": "shared.weight"},
        copies={"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
        # Mesh TensorFlow's checkpoints gave cross-attention a table that was never read.
        ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
        gguf=gguf,
    )


def _gguf_tensors() -> dict[str, str]:
    """Names in GGUF files, of both halves."""
    attention = {f"attn_{part}": f"layer.0.SelfAttention.{part}" for part in NAMES}
    cross = {f"cross_attn_{part}": f"layer.1.EncDecAttention.{part}" for part in NAMES}
    own = {
        **attention,
        "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
        "attn_norm": "layer.0.layer_norm",
    }
    found = {"token_embd": "shared", "output": "lm_head"}
    for short, half, last in (("enc", "encoder", 1), ("dec", "decoder", 2)):
        found[f"{short}.output_norm"] = f"{half}.final_layer_norm"
        mlp = f"layer.{last}.DenseReluDense"
        layer = {**own, "ffn_norm": f"layer.{last}.layer_norm", "ffn_up": f"{mlp}.wi", "ffn_down": f"{mlp}.wo"}
        if half == "decoder":
            layer |= {**cross, "cross_attn_norm": "layer.1.layer_norm"}
            # Written beside the others by converters, read by no model; see `ignored` below.
            layer["cross_attn_rel_b"] = "layer.1.EncDecAttention.relative_attention_bias"
        found |= {f"{short}.blk.{{bid}}.{a}": f"{half}.block.{{bid}}.{b}" for a, b in layer.items()}
    return found


def _gguf_version(config: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """Makes the keys that tell the versions apart, which GGUF files lack.

    The MLP of version 1.0 has no gate, and its logits are scaled, also where a file holds the tied head once more.
    """
    if "enc.blk.0.ffn_gate.weight" in tensors:
        found: dict[str, Any] = {"feed_forward_proj": "gated-gelu"}
    else:
        found = {"feed_forward_proj": "relu", "tie_word_embeddings": True, "scale_decoder_outputs": True}
    return found | ({"model_type": "umt5"} if "enc.blk.1.attn_rel_b.weight" in tensors else {})


GATED = {
    f"{short}.blk.{{bid}}.ffn_{kind}": f"{half}.block.{{bid}}.layer.{last}.DenseReluDense.wi_{part}"
    for short, half, last in (("enc", "encoder", 1), ("dec", "decoder", 2))
    for part, kind in enumerate(("gate", "up"))
}

register(
    t5_architecture(
        T5Config,
        T5Model,
        T5ForConditionalGeneration,
        gguf=GGUFSpec(
            architecture="t5",
            model_type="t5",
            tensors=_gguf_tensors(),
            config_keys={
                "context_length": "n_positions",
                "embedding_length": "d_model",
                "block_count": "num_layers",
                "decoder_block_count": "num_decoder_layers",
                "feed_forward_length": "d_ff",
                "attention.head_count": "num_heads",
                "attention.head_count_kv": None,
                "attention.key_length": "d_kv",
                "attention.layer_norm_epsilon": "layer_norm_epsilon",
                "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
                "attention.relative_buckets_count": "relative_attention_num_buckets",
                "decoder_start_token_id": "decoder_start_token_id",
                "rope.freq_base": None,
            },
            variants={"enc.blk.0.ffn_gate.weight": GATED},
            derive=_gguf_version,
        ),
    )
)
