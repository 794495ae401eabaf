"""Mixtures of experts: the forms of the computation agree, on any mesh, and read no more than they need."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpipe.kernels.compute import tracing_for
from jaxpipe.kernels.experts import (
    ExpertWeights,
    dense_experts,
    experts,
    gathered_experts,
    grouped_experts,
)
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout import Layout
from jaxpipe.nn.layout_experts import ExpertLayouts, fused_linear, interleaved_biased, per_expert
from jaxpipe.nn.moe import Experts, Gated, GroupLimitedRouter, SoftmaxRouter, best
from jaxpipe.sharding.mesh import make_mesh, use_mesh
from jaxpipe.sharding.rules import named_sharding

E, D, F, K = 6, 12, 8, 2
GATE = Gated(jax.nn.silu)


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def weights(seed: int = 0, bias: bool = True, experts: int = E) -> ExpertWeights:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return ExpertWeights(normal(experts, D, 2, F), normal(experts, F, D), normal(experts, 2, F) if bias else None, GATE)


def choices(tokens: int, seed: int = 1, experts: int = E, k: int = K) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    chosen = np.stack([rng.permutation(experts)[:k] for _ in range(tokens)]).astype(np.int32)
    x, shares = rng.normal(size=(tokens, D)), rng.random((tokens, k))
    return jnp.asarray(x, jnp.float32), jnp.asarray(chosen), jnp.asarray(shares, jnp.float32)


def one_by_one(x: Any, chosen: Any, shares: Any, given: ExpertWeights) -> np.ndarray:
    """What the experts put out, token by token in float64."""
    gate_up, down = np.asarray(given.gate_up, np.float64), np.asarray(given.down, np.float64)
    out = np.zeros(x.shape)
    for n, i in np.ndindex(chosen.shape):
        e = int(chosen[n, i])
        if 0 <= e < len(down):
            y = np.einsum("d,dcf->cf", np.asarray(x[n], np.float64), gate_up[e])
            y = y if given.gate_up_bias is None else y + np.asarray(given.gate_up_bias[e])
            out[n] += float(shares[n, i]) * (y[0] / (1 + np.exp(-y[0])) * y[1]) @ down[e]
    return out


FORMS = (dense_experts, gathered_experts, grouped_experts, experts)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("tokens", "bias"), [(1, True), (3, False), (70, True)])
def test_forms(form: Callable[..., jax.Array], tokens: int, bias: bool):
    given_weights, (x, chosen, shares) = weights(bias=bias), choices(tokens)
    run = jax.jit(lambda *arrays: form(*arrays, given_weights))
    for offset in (0, 1, -4):  # experts beyond the ends are another device's
        found = run(x, chosen + offset, shares)
        np.testing.assert_allclose(found, one_by_one(x, chosen + offset, shares, given_weights), rtol=1e-5, atol=1e-4)


@functools.cache
def compiled(form: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return jax.jit(lambda *given: form(*given, weights()))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-1, E), min_size=24, max_size=24), st.integers(0, 9))
def test_any_distribution_over_the_experts(picked: list[int], seed: int):
    """Among them all tokens to one expert, and none to any."""
    x, _, shares = choices(len(picked), seed, k=1)
    arguments = x, jnp.asarray(picked, jnp.int32)[:, None], shares
    wanted = compiled(dense_experts)(*arguments)
    np.testing.assert_allclose(compiled(grouped_experts)(*arguments), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_other_rows_change_nothing(form: Callable[..., jax.Array]):
    """Padding may hold anything, also what is no number."""
    x, chosen, shares = choices(66)
    full = compiled(form)(x, chosen, shares)
    spoilt = compiled(form)(x.at[40:].set(jnp.nan), chosen.at[40:].set(0), shares)
    assert np.array_equal(np.asarray(full[:40]), np.asarray(spoilt[:40]))


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form: Callable[..., jax.Array]):
    given_weights, (x, chosen, shares) = weights(), choices(9)

    def loss(form: Callable[..., jax.Array], x: jax.Array, down: jax.Array, shares: jax.Array) -> jax.Array:
        changed = ExpertWeights(given_weights.gate_up, down, given_weights.gate_up_bias, GATE)
        return jnp.sum(jnp.square(form(x, chosen, shares, changed)))

    found, wanted = (
        jax.jit(jax.grad(lambda *a, f=f: loss(f, *a), argnums=(0, 1, 2)))(x, given_weights.down, shares)
        for f in (form, dense_experts)
    )
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-2)


def test_a_decode_step_reads_the_chosen_experts_only():
    """No product of a step for one token is over all experts."""
    many = weights(experts=64)
    x, chosen, shares = choices(1, experts=64)
    text = str(jax.make_jaxpr(lambda x, chosen, shares: experts(x, chosen, shares, many))(x, chosen, shares))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and not any("64" in line for line in products)
    spoilt = ExpertWeights(many.gate_up.at[chosen[0, 0] - 1].set(jnp.nan), many.down, many.gate_up_bias, many.gate)
    assert np.isfinite(experts(x, chosen, shares, spoilt)).all()


MESHES = (
    {"expert": 2, "tensor": 2, "data": 2},
    {"expert": 2, "tensor": 2, "fsdp": 2},
    {"expert": 2, "data": 4},
    {"tensor": 8},
    {"fsdp": 8},
    {"expert": 8},  # divides nothing
)


SHAPES = ((1, 1), (3, 1), (4, 21))


@functools.cache
def on_one_device() -> tuple[Callable[..., jax.Array], Any, list[jax.Array]]:
    """A jitted module, its state, and its outputs for each of `SHAPES`."""
    module = Experts(Init(std=1.0), (E, D, F), GATE, interleaved_biased(E, D, F))
    rng = np.random.default_rng(0)
    assert module.gate_up_bias is not None and module.down_bias is not None
    module.gate_up_bias[...] = jnp.asarray(rng.normal(size=(E, 2, F)), jnp.float32)
    module.down_bias[...] = jnp.asarray(rng.normal(size=(E, D)), jnp.float32)
    graph, state = nnx.split(module)
    run = jax.jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs))
    return run, state, [run(state, *inputs_of(*shape)) for shape in SHAPES]


def inputs_of(rows: int, tokens: int) -> list[jax.Array]:
    return [array.reshape(rows, tokens, -1) for array in choices(rows * tokens, seed=rows)]


@pytest.mark.parametrize(
    "axes", [MESHES[0], *(pytest.param(axes, marks=pytest.mark.full) for axes in MESHES[1:])], ids=str
)
def test_meshes(axes: dict[str, int]):
    """Whatever splits the experts, their features, their width and the batch."""
    run, state, outputs = on_one_device()
    mesh = make_mesh(axes, tuple(jax.devices()))

    def place(variable: Any) -> Any:
        array, logical = variable[...], variable.get_metadata()["out_sharding"]
        return variable.replace(jax.device_put(array, named_sharding(logical, array.shape, mesh)))

    placed = jax.tree.map(place, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    for shape, wanted in zip(SHAPES, outputs, strict=True):
        with use_mesh(mesh):
            found = run(placed, *inputs_of(*shape))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-4)


def test_group_limited_router():
    """The bias enters the choice and not the shares, and only the best groups are open."""
    router = GroupLimitedRouter(Init(), 2, 6, 2, groups=3, chosen_groups=1, normalise=False, factor=2.0)
    router.kernel[...] = jnp.zeros((2, 6))
    router.bias[...] = jnp.asarray([0.9, 0.0, 0.4, 0.6, 0.3, 0.5])
    chosen, shares = router(jnp.ones((1, 1, 2)))
    # The best expert stands in a group whose second is worse than those of the next group.
    assert sorted(np.asarray(chosen).ravel().tolist()) == [2, 3]
    np.testing.assert_allclose(shares, np.full((1, 1, 2), 1.0), rtol=1e-6)


def test_softmax_router():
    router = SoftmaxRouter(Init(), 3, 3, 2, normalise=False)
    router.kernel[...] = jnp.diag(jnp.asarray([1.0, 2.0, 3.0]))
    chosen, shares = router(jnp.ones((1, 1, 3)))
    probabilities = np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum()
    assert np.asarray(chosen).tolist() == [[[2, 1]]]
    np.testing.assert_allclose(shares[0, 0], probabilities[[2, 1]], rtol=1e-6)
    router.normalise = True
    np.testing.assert_allclose(
        router(jnp.ones((1, 1, 3)))[1][0, 0], probabilities[[2, 1]] / probabilities[1:].sum(), rtol=1e-6
    )


SHAPES_OF = {"gate_up": (E, D, 2, F), "down": (E, F, D), "gate_up_bias": (E, 2, F), "down_bias": (E, D)}
LAYOUTS: dict[str, ExpertLayouts] = {
    "per_expert": per_expert(E, D, F),
    "fused_linear": fused_linear(E, D, F, names=("input_linear", "output_linear")),
    "interleaved_biased": interleaved_biased(E, D, F),
}


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        pytest.param(getattr(layouts, part), shape, id=f"{name}-{part}")
        for name, layouts in LAYOUTS.items()
        for part, shape in SHAPES_OF.items()
        if getattr(layouts, part) is not None
    ],
)
def test_layouts_read_what_they_write_and_no_other_expert(layout: Layout, shape: tuple[int, ...]):
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=stored) for name, stored in layout.tensors.items()}
    touched: list[tuple[str, tuple[slice, ...]]] = []

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        touched.append((name, index))
        assert len(index) == tensors[name].ndim
        return tensors[name][index]

    whole = layout.read(read, tuple(slice(0, n) for n in shape))
    assert whole.shape == shape
    written = layout.write(whole)
    assert {name: part.shape for name, part in written.items()} == dict(layout.tensors)
    for name, part in written.items():
        assert np.array_equal(part, tensors[name]), name
    index = tuple(slice(n // 3, n - n // 4) for n in shape)
    touched.clear()
    assert np.array_equal(layout.read(read, index), whole[index])
    chosen = range(*index[0].indices(E))
    assert touched
    for name, part in touched:
        assert int(name.split(".")[0]) in chosen if name[0].isdigit() else part[0] == index[0]


def test_a_gpu_chooses_by_counting_what_a_sort_would():
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.integers(-2, 3, (2, 5, 7)), jnp.float32).at[0, 0].set(-jnp.inf)  # full of ties
    with tracing_for("gpu", jnp.float32):
        counted = best(scores, 3)
    for found, wanted in zip(counted, jax.lax.top_k(scores, 3), strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
