"""Pooling: from the states of a text's tokens to one vector, on the device that made them."""

import functools
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.common.errors import nearest
from jaxpipe.nn.activations import ACTIVATIONS
from jaxpipe.sharding.mesh import batch_sharding, use_mesh

Array = jax.Array

# The names of sentence-transformers.
MODES = ("cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")
# Below this a vector's length counts as zero, and the vector is left as it is.
TINY = 1e-12


@dataclass(frozen=True)
class Dense:
    """A linear layer on the pooled vector; ``activation`` is a name of `nn.activations`."""

    activation: str
    bias: bool


@dataclass(frozen=True)
class Normalize:
    """Division by the Euclidean length."""


Step: TypeAlias = Dense | Normalize


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a sentence's vector is made of its tokens' states.

    Attributes:
        modes: names of `MODES`; several are concatenated.
        steps: what follows, in order.
        weights: for each `Dense` among the steps its kernel (in, out) and, where it has one, its bias (out,).
    """

    modes: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    weights: tuple[tuple[Any, ...], ...] = ()

    def placed(self, mesh: Any) -> "Recipe":
        """Returns the recipe with its weights on every device of a mesh."""
        if mesh is None:
            return self
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        weights = tuple(tuple(jax.device_put(array, whole) for array in arrays) for arrays in self.weights)
        return Recipe(self.modes, self.steps, weights)

    def normalized(self, normalize: bool | None) -> "Recipe":
        """Returns the recipe with vectors of length 1 (True), without any `Normalize` (False), or as it is (None)."""
        if normalize is None or (normalize and self.steps[-1:] == (Normalize(),)):
            return self
        steps = (*self.steps, Normalize()) if normalize else tuple(s for s in self.steps if s != Normalize())
        return Recipe(self.modes, steps, self.weights)


def check_modes(value: Any, where: str = "pooling=") -> tuple[str, ...]:
    """Returns the modes that a name, or a list of names, stands for.

    Raises:
        ValueError: a name is not one of `MODES`, or there is none.
    """
    names = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for name in names:
        if name not in MODES:
            hint = nearest(name, MODES) if isinstance(name, str) else ""
            raise ValueError(f"{where} {name!r} is not known; known are {', '.join(map(repr, MODES))}.{hint}")
    if not names:
        raise ValueError(f"{where} names no way of pooling; known are {', '.join(map(repr, MODES))}.")
    return names


def pool(states: Any, mask: Any, recipe: Recipe, mesh: Any = None) -> Array:
    """Pools a batch; every new shape is compiled once.

    Args:
        states: (B, T, D), on a device.
        mask: (B, T), 1 for the tokens that count; padding and what else is left out are 0. Each row has a 1.
        recipe: what is computed, in float32.
        mesh: the mesh of the model whose states they are.

    Returns:
        The vectors (B, D'), float32, on the device.

    Raises:
        ValueError: a `Dense` does not fit the width of what it is given.
    """
    width = states.shape[-1] * len(recipe.modes)
    for kernel, *_ in recipe.weights:
        if kernel.shape[0] != width:
            raise ValueError(f"A Dense module takes {kernel.shape[0]} numbers, but is given {width}.")
        width = kernel.shape[1]
    if mesh is None:
        return _pool(states, mask, recipe.weights, recipe.modes, recipe.steps)
    with use_mesh(mesh):
        mask = jax.device_put(mask, batch_sharding(mesh, len(mask), 2))
        return _pool(states, mask, recipe.weights, recipe.modes, recipe.steps)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _pool(
    states: Array,
    mask: Array,
    weights: tuple[tuple[Array, ...], ...],
    modes: tuple[str, ...],
    steps: tuple[Step, ...],
) -> Array:
    states = states.astype(jnp.float32)
    x = jnp.concatenate([_pooled(states, mask, mode) for mode in modes], axis=-1)  # (B, D')
    remaining = iter(weights)
    for step in steps:
        if isinstance(step, Dense):
            x = _dense(x, step, *next(remaining))
        else:
            x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), TINY)
    return x


def _pooled(states: Array, mask: Array, mode: str) -> Array:
    """One vector a row, (B, D), of states (B, T, D)."""
    length = states.shape[1]
    columns = jnp.arange(length, dtype=jnp.int32)
    kept = mask[..., None] > 0  # (B, T, 1)
    if mode in ("cls", "lasttoken"):
        wanted = jnp.where(mask > 0, columns, length if mode == "cls" else -1)  # (B, T)
        column = wanted.min(axis=1) if mode == "cls" else wanted.max(axis=1)  # (B,)
        return jnp.take_along_axis(states, column[:, None, None], axis=1)[:, 0]  # (B, D)
    if mode == "max":
        return jnp.where(kept, states, -jnp.inf).max(axis=1)
    # Rows are padded on the right, so that a column is the token's place in its text.
    weight = (columns + 1)[None, :, None] if mode == "weightedmean" else jnp.ones((1, 1, 1), jnp.int32)
    weight = jnp.where(kept, weight, 0).astype(jnp.float32)  # (B, T, 1)
    total = weight.sum(axis=1)  # (B, 1)
    # States at padding may be anything, also what no product with zero makes zero.
    summed = (jnp.where(kept, states, 0) * weight).sum(axis=1)  # (B, D)
    return summed / (jnp.sqrt(total) if mode == "mean_sqrt_len_tokens" else total)


def _dense(x: Array, step: Dense, kernel: Array, bias: Array | None = None) -> Array:
    x = jnp.dot(x, kernel, precision=jax.lax.Precision.HIGHEST)  # (B, D')
    return ACTIVATIONS[step.activation](x if bias is None else x + bias)


def cosine(source: np.ndarray, others: np.ndarray) -> list[float]:
    """Returns the cosine similarity of ``source`` (D,) to each row of ``others`` (n, D); 0 for a vector of zeros."""
    source, others = np.asarray(source, np.float64), np.asarray(others, np.float64)
    lengths = np.maximum(np.linalg.norm(source), TINY) * np.maximum(np.linalg.norm(others, axis=-1), TINY)
    return np.clip(others @ source / lengths, -1.0, 1.0).tolist()
