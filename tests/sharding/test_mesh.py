import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, get_abstract_mesh
from jax.sharding import PartitionSpec as P

from jaxpipe.common.errors import PlacementError
from jaxpipe.sharding.mesh import batch_sharding, data_degree, make_mesh, use_mesh
from jaxpipe.sharding.rules import MESH_AXES


def test_make_mesh_orders_axes_and_takes_the_first_devices() -> None:
    mesh = make_mesh({"tensor": 2, "data": 3})
    assert dict(mesh.shape) == {"data": 3, "tensor": 2}
    assert mesh.axis_names == ("data", "tensor")
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert list(mesh.devices.flat) == jax.devices()[:6]
    assert dict(make_mesh({}).shape) == {"data": 1}
    assert make_mesh(dict.fromkeys(MESH_AXES, 1), jax.devices()[5:]).devices.flat[0] == jax.devices()[5]


def test_minus_one_is_the_rest() -> None:
    assert dict(make_mesh({"data": -1, "tensor": 2}).shape) == {"data": 4, "tensor": 2}
    assert dict(make_mesh({"data": -1, "tensor": 3}).shape) == {"data": 2, "tensor": 3}
    assert dict(make_mesh({"data": np.int64(2)}).shape) == {"data": 2}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensors": 2}, "'tensors' is not a mesh axis; mesh axes are data, .*Did you mean 'tensor'"),
        ({"tensor": 0}, "tensor=0: expected a number of devices"),
        ({"tensor": 2.0}, "tensor=2.0: expected"),
        ({"tensor": True}, "tensor=True: expected"),
        ({"tensor": -1, "data": -1}, "only one mesh axis can be -1"),
        ({"tensor": 4, "data": 4}, "tensor=4 x data=4 takes 16 devices, but there are 8"),
    ],
)
def test_wrong_sizes(sizes: dict, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        make_mesh(sizes)


def test_use_mesh_sets_and_restores() -> None:
    mesh = make_mesh({"tensor": 8})
    with use_mesh(mesh) as entered:
        assert entered is mesh
        assert get_abstract_mesh().shape == mesh.shape
        with use_mesh(make_mesh({"data": 2})):
            assert dict(get_abstract_mesh().shape) == {"data": 2}
        assert get_abstract_mesh().shape == mesh.shape
    assert get_abstract_mesh().empty
    with pytest.raises(KeyError), use_mesh(mesh):
        raise KeyError
    assert get_abstract_mesh().empty


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap])
def test_use_mesh_inside_a_trace_is_an_error(transform: object) -> None:
    def call(x: jax.Array) -> jax.Array:
        with use_mesh(make_mesh({"tensor": 8})):
            return x.sum()

    with pytest.raises(RuntimeError, match=r"model\.functional\(\)"):
        transform(call)(jnp.ones(3))  # type: ignore[operator]


def test_batches() -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert data_degree(mesh) == 4
    assert batch_sharding(mesh, 8, 2).spec == P(("data", "fsdp"))
    assert batch_sharding(mesh, 2, 2).spec == P()
    assert batch_sharding(mesh, 6, 1).spec == P()
    assert batch_sharding(mesh, 6, 0).spec == P()
    assert batch_sharding(make_mesh({"fsdp": 8}), 8, 3).spec == P("fsdp")
    assert data_degree(make_mesh({"tensor": 8})) == 1
    assert batch_sharding(make_mesh({"tensor": 8}), 8, 3).spec == P()
