"""Mamba-2 (Dao and Gu, 2024; arXiv 2405.21060), as mistralai/Mamba-Codestral-7B-v0.1 holds it."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpipe.common.errors import ConfigError
from jaxpipe.common.outputs import BaseModelOutput
from jaxpipe.models.config import ModelConfig
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.cache import Cache
from jaxpipe.nn.decoder import CausalLM, run_layers
from jaxpipe.nn.embedding import Embedding
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout import Direct
from jaxpipe.nn.linear import Linear
from jaxpipe.nn.norms import RMSNorm
from jaxpipe.nn.ssm import SSMShape, SSMState, causal_convolution, chunked_scan, scan_step
from jaxpipe.sharding.rules import constrain

Array = jax.Array


class Mamba2Config(ModelConfig):
    """Configuration of Mamba-2."""

    model_type: ClassVar[str] = "mamba2"
    # The first five are of the first values of weights before training.
    inert: ClassVar[frozenset[str]] = frozenset(
        """rescale_prenorm_residual time_step_floor time_step_max time_step_min time_step_rank intermediate_size
        norm_before_gate rms_norm use_associative_scan""".split()
    )

    num_heads: int = 128
    head_dim: int = 64
    vocab_size: int = 32768
    hidden_size: int = 4096
    state_size: int = 128
    num_hidden_layers: int = 64
    layer_norm_epsilon: float = 1e-5
    expand: int = 2
    conv_kernel: int = 4
    n_groups: int = 8
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    initializer_range: float = 0.1
    residual_in_fp32: bool = True
    time_step_limit: list[float] | None = None  # none: from 0 on
    chunk_size: int = 256
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.hidden_act)
        self.time_step_limit = self.time_step_limit or [0.0, float("inf")]
        if len(self.time_step_limit) != 2:
            raise ConfigError(
                f"config.json: time_step_limit={self.time_step_limit!r} must be a lower and an upper one."
            )
        if self.hidden_size * self.expand != self.num_heads * self.head_dim or self.num_heads % self.n_groups:
            raise ConfigError(
                f"config.json: hidden_size={self.hidden_size} times expand={self.expand} must equal "
                f"num_heads={self.num_heads} times head_dim={self.head_dim}, and n_groups={self.n_groups} must divide "
                "num_heads."
            )

    @property
    def inner(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution: the heads' inputs, and what enters and reads the state in every group."""
        return self.inner + 2 * self.n_groups * self.state_size


class GatedRMSNorm(RMSNorm):
    """Root-mean-square norm of gated values, over each group by itself."""

    def __init__(self, init: Init, width: int, eps: float, groups: int):
        super().__init__(init, width, eps)
        self.groups = groups

    def __call__(self, x: Array, gate: Array) -> Array:
        x = x * jax.nn.silu(gate.astype(jnp.float32))
        grouped = x.reshape(*x.shape[:-1], self.groups, -1)
        grouped = grouped * jax.lax.rsqrt(jnp.mean(grouped * grouped, axis=-1, keepdims=True) + self.eps)
        return self.scale[...] * grouped.reshape(x.shape)


class Convolution(nnx.Module):
    """The weights of a convolution with a kernel for each channel."""

    def __init__(self, init: Init, channels: int, width: int, *, bias: bool):
        shape = (channels, 1, width)
        self.kernel = init.param((None, None, None), shape, Direct("weight", shape))
        layout = Direct("bias", (channels,))
        self.bias = init.param((None,), (channels,), layout, initializer="zeros") if bias else None

    def __call__(self, x: Array, window: Array, valid: Array | None) -> tuple[Array, Array]:
        bias = None if self.bias is None else self.bias[...]
        return causal_convolution(x, window, self.kernel[:, 0, :], bias, valid)


class Mamba2Mixer(nnx.Module):
    """A state that every token decays, adds to and reads, in place of attention."""

    def __init__(self, config: Mamba2Config, init: Init):
        heads, inner = config.num_heads, config.inner
        self.shape = SSMShape(config.conv_kernel, config.channels, heads, config.head_dim, config.state_size)
        self.groups, self.inner = config.n_groups, inner
        self.act, self.chunk = activation(config.hidden_act), config.chunk_size
        self.limits = tuple(config.time_step_limit or ())
        features = inner + config.channels + heads
        self.in_proj = Linear(init, config.hidden_size, features, bias=config.use_bias, axes=("embed", "mlp"))
        self.conv1d = Convolution(init, config.channels, config.conv_kernel, bias=config.use_conv_bias)
        self.dt_bias = init.param((None,), (heads,), Direct("dt_bias", (heads,)), initializer="zeros")
        self.log_a = init.param((None,), (heads,), Direct("A_log", (heads,)), initializer="zeros")
        self.skip = init.param((None,), (heads,), Direct("D", (heads,)), initializer="ones")
        self.norm = GatedRMSNorm(init, inner, config.layer_norm_epsilon, config.n_groups)
        self.out_proj = Linear(init, inner, config.hidden_size, bias=config.use_bias, axes=("mlp", "embed"))

    def __call__(self, x: Array, valid: Array | None, cache: SSMState | None) -> tuple[Array, SSMState | None]:
        """Mixes x (B, T, D); `valid` (B, T) is False at padding, which with a cache is on the right."""
        batch, tokens, _ = x.shape
        before = cache or self.shape.empty(batch, 0, x.dtype)
        mask = None if valid is None else valid[:, :, None].astype(x.dtype)
        projected = self.in_proj(x if mask is None else x * mask)
        # The parts are no whole shards of the projection.
        projected = constrain(projected, "batch", "length", None)  # (B, T, inner + C + H)
        gate, x, dt = jnp.split(projected, [self.inner, projected.shape[-1] - self.shape.heads], axis=-1)
        x, window = self.conv1d(x, before.window, valid)
        x = self.act(x) if mask is None else self.act(x) * mask
        dt = jax.nn.softplus((dt + self.dt_bias[...]).astype(jnp.float32))
        dt = jnp.clip(dt, *self.limits)  # (B, T, H)
        if cache is not None and mask is not None:
            dt = dt * mask  # the state stays as the last token left it
        y, state = self._scan(x.astype(jnp.float32), dt, before.state)
        y = self.norm(y.reshape(batch, tokens, -1), gate).astype(projected.dtype)
        return self.out_proj(y), None if cache is None else SSMState(window.astype(cache.window.dtype), state)

    def _scan(self, x: Array, dt: Array, state: Array) -> tuple[Array, Array]:
        """Runs the state over x (B, T, C), which holds the heads' inputs, B and C."""
        heads, size = self.shape.heads, self.groups * self.shape.state_size
        x, b, c = jnp.split(x, [self.inner, self.inner + size], axis=-1)
        x = x.reshape(*x.shape[:2], heads, -1)  # (B, T, H, P)
        x = constrain(x, "batch", "length", "heads", None)
        b, c = (part.reshape(*part.shape[:2], self.groups, -1) for part in (b, c))  # (B, T, G, N)
        a = -jnp.exp(self.log_a[...].astype(jnp.float32))
        if x.shape[1] == 1:
            y, state = scan_step(x[:, 0], dt[:, 0], a, b[:, 0], c[:, 0], state)
            y = y[:, None]
        else:
            y, state = chunked_scan(x, dt, a, b, c, state, self.chunk)
        return y + x * self.skip[...].astype(jnp.float32)[:, None], state  # (B, T, H, P)


class Mamba2Block(nnx.Module):
    """The mixer on its normalised input, added to the residual, which is kept in float32 where the config says so."""

    def __init__(self, config: Mamba2Config, init: Init):
        self.norm = RMSNorm(init, config.hidden_size, config.layer_norm_epsilon)
        self.mixer = Mamba2Mixer(config, init)
        self.residual_dtype = jnp.float32 if config.residual_in_fp32 else None

    def __call__(
        self, x: Array, valid: Array | None, cache: SSMState | None, weights: bool
    ) -> tuple[Array, SSMState | None, None]:
        mixed, cache = self.mixer(self.norm(x.astype(self.norm.scale.dtype)), valid, cache)
        x = x.astype(self.residual_dtype or x.dtype) + mixed
        return constrain(x, "batch", "length", None), cache, None  # (B, T, D)


class Mamba2Model(nnx.Module):
    """The layers without a head."""

    def __init__(self, config: Mamba2Config, init: Init):
        self.embeddings = Embedding(init, config.vocab_size, config.hidden_size, axis="vocab")
        self.layers = nnx.List([Mamba2Block(config, init) for _ in range(config.num_hidden_layers)])
        self.norm_f = RMSNorm(init, config.hidden_size, config.layer_norm_epsilon)

    def cache_layers(self) -> list[SSMShape]:
        """Shapes of each layer's state."""
        return [layer.mixer.shape for layer in self.layers]

    def __call__(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        cache: Cache | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BaseModelOutput:
        """Runs the layers on input_ids (B, T); order alone tells the positions, and there are no attentions."""
        if cache is not None:
            cache = cache.enter(position_ids, attention_mask)
        x = constrain(self.embeddings(input_ids), "batch", "length", None)  # (B, T, D)
        out = run_layers(self.layers, x, attention_mask, cache=cache, weights=output_attentions)
        out.states = [*out.states[1:], out.x]  # the oracle puts out those after each layer
        return out.finish(self.norm_f(out.x), output_hidden_states)


class Mamba2ForCausalLM(CausalLM):
    """The layers with a language-model head, tied to the embedding where the config says so."""

    base: ClassVar[str] = "backbone"
    embedding: ClassVar[str] = "embeddings"

    def __init__(self, config: Mamba2Config, init: Init):
        width, tied = config.hidden_size, config.tie_word_embeddings
        super().__init__(init, Mamba2Model(config, init), width, config.vocab_size, tied=tied)
        self.dtype = init.dtype

    def logits(self, x: Array) -> Array:
        """Scores (B, T, V) of float32 states x (B, T, D), in the weights' dtype."""
        return super().logits(x.astype(self.dtype))


register(
    Architecture(
        config=Mamba2Config,
        heads={BASE: Mamba2Model, CAUSAL_LM: Mamba2ForCausalLM},
        base="backbone",
        renamed=((r"^(backbone\.)?embedding\.", r"\1embeddings."),),
        tied={"lm_head.weight": "embeddings.weight"},
    )
)
