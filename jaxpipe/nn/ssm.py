"""State-space layers (Dao and Gu, 2024; arXiv 2405.21060): causal convolution, chunked scan, recurrent step, state."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxpipe.sharding.rules import constrain

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SSMState:
    """What a layer remembers of a row, however long it is.

    Attributes:
        window: (B, W - 1, C), the last inputs of a convolution of width W.
        state: (B, H, P, N) float32.
    """

    window: Array
    state: Array


@dataclass(frozen=True)
class SSMShape:
    """The shapes of an `SSMState`; see `nn.cache.LayerState`."""

    width: int
    channels: int
    heads: int
    head_dim: int
    state_size: int

    def empty(self, batch: int, slots: int, dtype: jnp.dtype) -> SSMState:
        """Makes the state of `batch` rows before their first token, the same for any number of slots."""
        window = jnp.zeros((batch, self.width - 1, self.channels), dtype)
        state = jnp.zeros((batch, self.heads, self.head_dim, self.state_size), jnp.float32)
        return SSMState(constrain(window, "batch", None, None), shard_heads(state))

    def bytes(self, tokens: int, dtype: jnp.dtype, shards: int) -> int:
        """Counts the bytes of one row on one of `shards` tensor shards, the same for any number of tokens."""
        state = 4 * self.heads * self.head_dim * self.state_size
        window = (self.width - 1) * self.channels * dtype.itemsize
        return window + state // (shards if self.heads % shards == 0 else 1)


def shard_heads(state: Array) -> Array:
    """Lays a state (B, H, P, N) on the mesh."""
    return constrain(state, "batch", "heads", None, None)


def causal_convolution(
    x: Array, window: Array, kernel: Array, bias: Array | None, valid: Array | None
) -> tuple[Array, Array]:
    """Convolves every channel with a kernel of its own over the inputs up to each token.

    Args:
        x: (B, T, C).
        window: (B, W - 1, C) inputs before the first.
        kernel: (C, W), the last column for the token itself.
        bias: (C,).
        valid: (B, T), False at padding, which is on the right; None where there is none.

    Returns:
        the outputs (B, T, C), and the window after the last valid input.
    """
    tokens, before = x.shape[1], window.shape[1]
    inputs = jnp.concatenate([window.astype(x.dtype), x], axis=1)  # (B, W - 1 + T, C)
    taps = [inputs[:, i : i + tokens] * kernel[:, i] for i in range(before + 1)]
    y = sum(taps[1:], taps[0])
    y = y if bias is None else y + bias
    if valid is None:
        return y, inputs[:, tokens:]
    last = jnp.sum(valid, axis=1, dtype=jnp.int32)[:, None] + jnp.arange(before)  # (B, W - 1)
    return y, jnp.take_along_axis(inputs, last[:, :, None], axis=1)


def scan_step(x: Array, dt: Array, a: Array, b: Array, c: Array, state: Array) -> tuple[Array, Array]:
    """One token of `chunked_scan`, as a recurrence.

    Args:
        x: (B, H, P).
        dt: (B, H).
        a: (H,).
        b, c: (B, G, N).
        state: (B, H, P, N).

    Returns:
        the outputs (B, H, P) and the state after the token.
    """
    copies = x.shape[1] // b.shape[1]
    b, c = (jnp.repeat(part, copies, axis=1) for part in (b, c))  # (B, H, N)
    state = state * jnp.exp(dt * a)[..., None, None] + (dt[..., None] * x)[..., None] * b[:, :, None, :]
    return jnp.einsum("bhpn,bhn->bhp", state, c), shard_heads(state)


def chunked_scan(x: Array, dt: Array, a: Array, b: Array, c: Array, state: Array, chunk: int) -> tuple[Array, Array]:
    """Runs ``state = exp(dt a) state + dt x b``, ``y = c state`` over the tokens, by matmuls within chunks.

    Section 6 of the paper; float32 throughout. A token whose dt is 0 leaves the state as it is.

    Args:
        x: (B, T, H, P) float32.
        dt: (B, T, H) step sizes.
        a: (H,) negative rates.
        b, c: (B, T, G, N) what enters the state and how it is read, shared by H/G heads.
        state: (B, H, P, N) before the first token.
        chunk: tokens of a chunk, l below.

    Returns:
        the outputs (B, T, H, P) and the state after the last token.
    """
    batch, tokens, heads, _ = x.shape
    chunk = min(chunk, tokens)
    fill = -tokens % chunk

    def chunks(part: Array) -> Array:
        part = jnp.pad(part, ((0, 0), (0, fill), *((0, 0) for _ in part.shape[2:])))
        return part.reshape(batch, -1, chunk, *part.shape[2:])  # (B, T/l, l, ...)

    groups = b.shape[2]
    x, dt, b, c = chunks(x * dt[..., None]), chunks(dt), chunks(b), chunks(c)
    rates = jnp.moveaxis(dt * a, -1, 2)  # (B, T/l, H, l)
    decay = jnp.exp(_segment_sums(rates))  # (B, T/l, H, l, l)
    # Within a chunk: every token reads those before it, as attention without a softmax does.
    seen = jnp.einsum("bzlgn,bzsgn->bzgls", c, b)
    seen = jnp.repeat(seen, heads // groups, axis=2) * decay  # (B, T/l, H, l, l)
    y = jnp.einsum("bzhls,bzshp->bzlhp", seen, x)
    # Between chunks: what each adds to the state, and how much it leaves of the state before.
    b, c = (jnp.repeat(part, heads // groups, axis=3) for part in (b, c))  # (B, T/l, l, H, N)
    added = jnp.einsum("bzlhn,bzhl,bzlhp->bzhpn", b, decay[..., -1, :], x)
    total = jnp.cumsum(rates, axis=-1)  # (B, T/l, H, l)

    def step(state: Array, parts: tuple[Array, Array]) -> tuple[Array, Array]:
        left, added = parts
        return shard_heads(state * left[..., None, None] + added), state

    parts = (jnp.moveaxis(jnp.exp(total[..., -1]), 1, 0), jnp.moveaxis(added, 1, 0))
    state, before = jax.lax.scan(step, state, parts)  # before: (T/l, B, H, P, N)
    y = y + jnp.einsum("bzlhn,zbhpn,bzhl->bzlhp", c, before, jnp.exp(total))
    return y.reshape(batch, -1, *y.shape[3:])[:, :tokens], state


def _segment_sums(x: Array) -> Array:
    """Sums of x (..., l) from behind s up to t, for all t and s (..., l, l); -inf where s is after t.

    Summed, not differences of running sums, which would lose the small ones among large.
    """
    length = x.shape[-1]
    order = jnp.arange(length)
    terms = jnp.where(order[:, None] > order, x[..., None], 0.0)  # (..., t, s)
    return jnp.where(order[:, None] >= order, jnp.cumsum(terms, axis=-2), -jnp.inf)
