import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpipe.sharding.mesh import make_mesh, use_mesh
from jaxpipe.sharding.rules import MESH_AXES, RULES, constrain, named_sharding, partition_spec


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh({"data": 2, "tensor": 4})


def is_sharded(x: jax.Array, mesh: Mesh, spec: P) -> bool:
    return x.sharding.is_equivalent_to(NamedSharding(mesh, spec), x.ndim)


@pytest.mark.parametrize(
    ("axes", "shape", "spec"),
    [
        (("batch", "length", None), (4, 7, 9), P("data")),
        (("embed", "mlp"), (8, 12), P(None, "tensor")),  # no fsdp on this mesh
        (("embed", "kv_heads", None), (8, 4, 6), P(None, "tensor")),
        ((None, "vocab"), (3, 8), P(None, "tensor")),
        (("heads", "mlp"), (4, 8), P("tensor")),  # a mesh axis splits one dimension only
        (("heads", "mlp"), (3, 8), P(None, "tensor")),
        (("experts", "embed", "mlp"), (2, 8, 8), P(None, None, "tensor")),
        ((), (), P()),
    ],
)
def test_partition_spec(mesh: Mesh, axes: tuple, shape: tuple, spec: P) -> None:
    assert partition_spec(axes, shape, mesh)[0] == spec
    assert named_sharding(axes, shape, mesh) == NamedSharding(mesh, spec)


def test_dimensions_that_do_not_divide_are_replicated_and_noted(mesh: Mesh) -> None:
    assert partition_spec(("vocab", "embed"), (50257, 8), mesh) == (
        P(),
        ["replicated: 50257 is not divisible by tensor=4"],
    )
    both = make_mesh({"data": 2, "fsdp": 4})
    assert partition_spec(("batch", "embed"), (4, 6), both)[1] == [
        "replicated: 4 is not divisible by data=2 x fsdp=4",
        "replicated: 6 is not divisible by fsdp=4",
    ]
    # What the batch does not take is free for the second dimension.
    assert partition_spec(("batch", "embed"), (4, 8), both)[0] == P(None, "fsdp")
    assert partition_spec(("batch", "embed"), (16, 8), both)[0] == P(("data", "fsdp"))


def test_axes_of_size_one_do_not_appear() -> None:
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 8})
    assert partition_spec(("batch", "embed", "heads"), (3, 5, 8), mesh) == (P(None, None, "tensor"), [])


def test_wrong_axes_are_errors(mesh: Mesh) -> None:
    with pytest.raises(ValueError, match=r"'vocabs' is not known.*Did you mean 'vocab'"):
        partition_spec(("vocabs",), (8,), mesh)
    with pytest.raises(ValueError, match=r"2 logical axes .* shape"):
        partition_spec(("vocab", None), (8,), mesh)


def test_rules_name_mesh_axes_only() -> None:
    assert {axis for axes in RULES.values() for axis in axes} <= set(MESH_AXES)


AXES = st.one_of(st.none(), st.sampled_from(sorted(RULES)))
DIMENSIONS = st.lists(st.tuples(AXES, st.integers(0, 24)), max_size=4)
SIZES = st.dictionaries(st.sampled_from(MESH_AXES), st.sampled_from([1, 2, 3, 4, 8])).filter(
    lambda sizes: np.prod(list(sizes.values()), initial=1) <= 8
)


@settings(max_examples=120, deadline=None)
@given(DIMENSIONS, SIZES)
def test_every_spec_can_be_put_on_devices(dimensions: list, sizes: dict[str, int]) -> None:
    mesh = make_mesh(sizes)
    axes, shape = [axis for axis, _ in dimensions], [n for _, n in dimensions]
    spec, notes = partition_spec(axes, shape, mesh)
    x = np.arange(np.prod(shape, initial=1, dtype=int), dtype=np.float32).reshape(shape)
    array = jax.device_put(x, NamedSharding(mesh, spec))
    np.testing.assert_array_equal(np.asarray(array), x)
    assert partition_spec(axes, shape, AbstractMesh(tuple(mesh.shape.values()), tuple(mesh.shape)))[0] == spec
    for name in mesh.shape:
        wanted = any(name in RULES.get(axis or "", ()) for axis in axes)
        assert not (mesh.shape[name] > 1 and wanted) or name in str(spec) or notes


def double(x: jax.Array) -> jax.Array:
    return constrain(2 * x, "batch", "length", "heads")


def test_constrain_under_jit_grad_and_vmap(mesh: Mesh) -> None:
    x = jnp.ones((4, 3, 8))
    with use_mesh(mesh):
        assert is_sharded(jax.jit(double)(x), mesh, P("data", None, "tensor"))
        gradient = jax.jit(jax.grad(lambda x: (double(x) ** 2).sum()))(x)
        mapped = jax.jit(jax.vmap(double))(jnp.ones((5, 4, 3, 8)))
        eager = double(x)
    np.testing.assert_array_equal(gradient, 8 * x)
    assert is_sharded(mapped, mesh, P(None, "data", None, "tensor"))
    assert is_sharded(eager, mesh, P("data", None, "tensor"))


def test_constrain_leaves_a_dimension_that_does_not_divide_to_the_compiler(mesh: Mesh) -> None:
    x = jax.device_put(np.ones((3, 2, 8), np.float32), NamedSharding(mesh, P()))
    with use_mesh(mesh):
        assert is_sharded(jax.jit(double)(x), mesh, P(None, None, "tensor"))
        assert is_sharded(double(x), mesh, P(None, None, "tensor"))


def constraints(function: object, *args: jax.Array) -> int:
    return str(jax.make_jaxpr(function)(*args)).count("sharding_constraint")  # type: ignore[arg-type]


def test_constrain_is_nothing_without_a_mesh_to_speak_of(mesh: Mesh) -> None:
    x = jnp.ones((4, 3, 8))
    assert constrain(x, "batch", "length", "heads") is x
    assert constraints(double, x) == 0
    with use_mesh(make_mesh({"data": 1, "tensor": 1})):
        assert constraints(double, x) == 0
    with use_mesh(mesh):
        assert constraints(double, x) == 1
        assert constraints(double, jnp.ones((3, 3, 9))) == 0
        assert constraints(jax.shard_map(double, in_specs=P("data"), out_specs=P("data")), x) == 0


def test_constrain_keeps_off_axes_that_are_not_automatic() -> None:
    explicit = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Explicit, AxisType.Auto))
    with jax.set_mesh(explicit):
        x = jax.device_put(np.ones((4, 3, 8), np.float32), NamedSharding(explicit, P()))
        assert is_sharded(jax.jit(double)(x), explicit, P(None, None, "tensor"))
