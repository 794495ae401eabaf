import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jaxpipe.common.errors import PlacementError
from jaxpipe.common.logging import info_once
from jaxpipe.sharding import memory
from jaxpipe.sharding.plan import RESERVE, ShardingPlan, Weight, make_plan

F32 = np.dtype(np.float32)
EVERY = range(8)


def weights_of(
    heads: int = 8, kv_heads: int = 4, width: int = 64, features: int = 128, vocab: int = 256, layers: int = 3
):
    """Weights of a small decoder; key-value heads are repeated where the degree does not divide them."""

    def weights(degree: int) -> list[Weight]:
        groups = next((g for g in range(kv_heads, heads + 1) if heads % g == g % kv_heads == g % degree == 0), kv_heads)
        head = width // heads
        rows = [Weight("embed_tokens.embedding", (vocab, width), F32, ("vocab", "embed"))]
        for i in range(layers):
            qkv = (width, groups, (heads // groups + 2) * head)
            rows += [
                Weight(f"layers.{i}.self_attn.qkv.kernel", qkv, F32, ("embed", "kv_heads", None)),
                Weight(f"layers.{i}.mlp.gate_up.kernel", (width, 2, features), F32, ("embed", None, "mlp")),
                Weight(f"layers.{i}.norm.scale", (width,), F32, (None,)),
            ]
        return rows

    return weights


def total_bytes(degree: int = 1, **kwargs: int) -> int:
    return sum(weight.nbytes for weight in weights_of(**kwargs)(degree))


def plan(**kwargs: object) -> ShardingPlan:
    return make_plan(weights_of(), **kwargs)  # type: ignore[arg-type]


def bound(total: float) -> dict[int | str, int | str]:
    """Bounds of all devices under which `total` bytes just fit beside the reserve."""
    return {i: math.ceil(total / (1 - RESERVE)) for i in EVERY}


@pytest.mark.parametrize(
    ("device_map", "ordinal"),
    [(None, 0), ("cpu", 0), ("cpu:3", 3), (5, 5), (np.int64(2), 2), ({"": "cpu:4"}, 4), ({"": 1}, 1)],
)
def test_one_device(device_map: object, ordinal: int) -> None:
    made = plan(device_map=device_map)
    assert list(made.mesh.devices.flat) == [jax.devices()[ordinal]]
    assert made.device_map == device_map
    assert made.tensor_degree == 1
    assert made.bytes_per_device == total_bytes()
    assert {sharding.spec for sharding in made.shardings.values()} == {P()}
    assert made.notes == ()


def test_a_jax_device_and_the_configured_default() -> None:
    device = jax.devices()[6]
    assert list(plan(device_map=device).mesh.devices.flat) == [device]
    with jax.default_device(device):
        assert list(plan().mesh.devices.flat) == [device]
        assert plan(device_map="auto").mesh.size == 8
    with jax.default_device("cpu"):
        assert list(plan().mesh.devices.flat) == [jax.devices()[0]]
    assert list(plan(devices=jax.devices()[4:]).mesh.devices.flat) == [jax.devices()[4]]
    assert list(plan(device_map=1, devices=jax.devices()[4:]).mesh.devices.flat) == [jax.devices()[5]]


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
def test_auto_takes_the_smallest_tensor_degree_that_fits(degree: int) -> None:
    needed = plan(device_map={"data": 8 // degree, "tensor": degree}).bytes_per_device
    made = plan(device_map="auto", max_memory=bound(needed))
    assert dict(made.mesh.shape) == {"data": 8 // degree, "tensor": degree}
    assert made.tensor_degree == degree
    assert made.bytes_per_device == needed
    assert made.available_per_device == math.ceil(needed / (1 - RESERVE))
    assert bool(made.notes) == (degree > 1)
    # One byte per device less, and the next degree is needed, as far as there is one.
    less = {i: math.ceil(needed / (1 - RESERVE)) - 2 for i in EVERY}
    if degree < 8:
        assert plan(device_map="auto", max_memory=less).tensor_degree == 2 * degree


def test_auto_counts_the_cache_and_repeated_heads() -> None:
    at_two = plan(device_map={"tensor": 2}).bytes_per_device
    cache = {1: 80_000, 2: 40_000, 4: 20_000, 8: 20_000}
    assert plan(device_map="auto", max_memory=bound(at_two)).tensor_degree == 2
    made = plan(device_map="auto", max_memory=bound(at_two), cache_bytes=cache.__getitem__)
    assert made.tensor_degree == 4
    assert made.cache_bytes_per_device == 20_000
    # 4 key-value heads are 8 on 8 devices: more bytes in all than an eighth of the model.
    assert plan(device_map={"tensor": 8}).bytes_per_device > total_bytes() / 8


def test_auto_turns_to_fsdp_where_heads_do_not_divide() -> None:
    weights = weights_of(heads=7, kv_heads=7, width=56, features=121, vocab=259)
    made = make_plan(weights, device_map="auto", max_memory=bound(sum(w.nbytes for w in weights(1)) / 4))
    assert dict(made.mesh.shape) == {"fsdp": 8, "tensor": 1}


def test_auto_uses_the_devices_that_max_memory_names() -> None:
    made = plan(device_map="auto", max_memory={1: "1GiB", 4: "1GiB", 6: 0})
    assert list(made.mesh.devices.flat) == [jax.devices()[1], jax.devices()[4]]
    assert "max_memory leaves 2 of 8 cpu devices." in made.notes
    # Shards are equal, so the smallest device decides.
    uneven = plan(device_map="auto", max_memory={0: "1GiB", 1: math.ceil(0.8 * total_bytes())})
    assert uneven.tensor_degree == 2
    shared = plan(device_map="auto", max_memory={"cpu": math.ceil(8 * 0.8 * total_bytes())})
    assert dict(shared.mesh.shape) == {"data": 4, "tensor": 2}


def test_auto_with_unknown_memory_keeps_the_weights_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_bytes", lambda: None)
    made = plan(device_map="auto")
    assert made.tensor_degree == 1
    assert made.available_per_device is None
    assert "do not tell their memory" in made.notes[0]
    assert "of unknown available" in str(made)


@pytest.mark.parametrize("device_map", ["balanced", "balanced_low_0", "sequential"])
def test_placements_of_transformers_are_planned_as_auto(device_map: str, caplog: pytest.LogCaptureFixture) -> None:
    info_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="jaxpipe"):
        made = plan(device_map=device_map)
        plan(device_map=device_map)
    assert made.mesh == plan(device_map="auto").mesh
    assert made.device_map == device_map
    assert caplog.messages.count(f"device_map={device_map!r} is planned as 'auto'.") == 1


def test_mesh_axes() -> None:
    made = plan(device_map={"tensor": 4, "data": 2})
    assert made.shardings["layers.1.self_attn.qkv.kernel"].spec == P(None, "tensor")
    assert made.shardings["layers.1.mlp.gate_up.kernel"].spec == P(None, None, "tensor")
    assert made.shardings["embed_tokens.embedding"].spec == P("tensor")
    assert made.shardings["layers.1.norm.scale"].spec == P()
    assert dict(plan(device_map={"data": -1, "tensor": 2}).mesh.shape) == {"data": 4, "tensor": 2}
    fsdp = plan(device_map={"fsdp": 8})
    assert fsdp.shardings["embed_tokens.embedding"].spec == P(None, "fsdp")
    few = plan(device_map={"tensor": 2})
    assert list(few.mesh.devices.flat) == jax.devices()[:2]
    assert few.notes == ("The mesh takes 2 of 8 cpu devices.",)
    named = plan(device_map={"tensor": 2}, max_memory={3: "1GiB", 5: "1GiB"})
    assert list(named.mesh.devices.flat) == [jax.devices()[3], jax.devices()[5]]


def test_a_ready_mesh() -> None:
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[4:])
    assert plan(mesh=mesh).mesh is mesh
    assert plan(mesh=mesh).tensor_degree == 2
    explicit = plan(mesh=jax.make_mesh((4, 2), ("tensor", "data"), axis_types=(AxisType.Explicit,) * 2))
    assert explicit.mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert dict(explicit.mesh.shape) == {"tensor": 4, "data": 2}
    assert explicit.notes == ("The axes of mesh= are used with AxisType.Auto.",)


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ("gpu", "JAX has no 'gpu' devices here"),
        ("cuda:1", "JAX has no 'cuda' devices here"),
        ("disk", "JAX has no 'disk' devices here"),
        ("cpu:8", "no such device; there are 8 cpu devices, 0 to 7"),
        (8, "no such device"),
        (-1, "no such device"),
        ("Auto!", "is not understood; expected None, 'auto'"),
        (True, "is not understood"),
        (1.5, "is not understood"),
        ({}, "is empty"),
        ({"tensors": 4}, "'tensors' is not a mesh axis.*Did you mean 'tensor'"),
        ({"data": 4, "tensor": 4}, "data=4 x tensor=4 takes 16 devices, but there are 8"),
        ({"tensor": 0}, "expected a number of devices"),
        ({"model.layers.0": 0, "model.layers.1": 1}, "maps modules to devices, as Transformers does.*mesh axes"),
        ({"": "cuda:0", "lm_head": "cpu"}, "maps modules to devices"),
        ({"transformer": 0, "lm_head": 1}, "maps modules to devices"),
        ({"lm_head": jax}, "maps modules to devices"),
    ],
)
def test_wrong_device_maps(device_map: object, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        plan(device_map=device_map)


def test_wrong_meshes() -> None:
    with pytest.raises(ValueError, match="Both device_map='auto' and mesh="):
        plan(device_map="auto", mesh=jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)))
    with pytest.raises(PlacementError, match=r"\['model'\] are not among"):
        plan(mesh=Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model")))
    with pytest.raises(PlacementError, match=r"takes a jax\.sharding\.Mesh, not AbstractMesh"):
        plan(mesh=AbstractMesh((8,), ("data",)))
    with pytest.raises(PlacementError, match="max_memory names the device 9"):
        plan(device_map="auto", max_memory={9: 1})


def test_a_model_that_cannot_fit_shows_the_arithmetic() -> None:
    needed = plan(device_map={"tensor": 8}).bytes_per_device
    with pytest.raises(PlacementError) as caught:
        plan(device_map="auto", max_memory={i: int(0.8 * needed) for i in EVERY}, cache_bytes=lambda degree: 4096)
    message = str(caught.value)
    assert message.startswith("The model does not fit on 8 cpu device(s). Needed at the best split, ")
    assert "of weights + 4.00 KiB of KV cache = " in message
    assert f"{memory.format_bytes(int(0.8 * needed))} on each device" in message
    best = plan(device_map={"fsdp": 2, "tensor": 4}).bytes_per_device + 4096
    assert f"= {memory.format_bytes(best)} per device." in message
    assert f"dtype='bfloat16' would need {memory.format_bytes(best / 2)} per device" in message
    assert "which fits with device_map='auto'" in message
    assert "It would fit on 16 devices of this size." in message

    with pytest.raises(PlacementError, match="is still too much"):
        plan(device_map="auto", max_memory=dict.fromkeys(EVERY, 1000))


def test_named_places_that_cannot_hold_the_weights() -> None:
    tight = {i: total_bytes() - 1 for i in EVERY}
    with pytest.raises(PlacementError, match=r"does not fit device_map='cpu:2'.*available on each of 1 cpu device"):
        plan(device_map="cpu:2", max_memory=tight)
    with pytest.raises(PlacementError, match=r"does not fit device_map={'data': 8}.*fits on all of these devices"):
        plan(device_map={"data": 8}, max_memory=tight)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with pytest.raises(PlacementError, match="does not fit mesh:"):
        plan(mesh=mesh, max_memory=tight)
    # The weights fit and the cache does not quite: a plan, with a note.
    made = plan(device_map={"data": 8}, max_memory={i: total_bytes() for i in EVERY})
    assert made.notes[-1].startswith("Tight: data=8: ")
    full = {i: total_bytes() + 10 for i in EVERY}
    assert plan(device_map={"data": 8}, max_memory=full, cache_bytes=lambda degree: 50).cache_bytes_per_device == 50


def test_widths_that_do_not_divide_are_replicated_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    info_once.cache_clear()
    weights = weights_of(heads=3, kv_heads=3, width=63, features=121, vocab=257)
    with caplog.at_level(logging.INFO, logger="jaxpipe"):
        made = make_plan(weights, device_map={"tensor": 4, "fsdp": 2})
        make_plan(weights, device_map={"tensor": 4, "fsdp": 2})
    assert made.bytes_per_device == sum(weight.nbytes for weight in weights(4))
    note = "layers.*.self_attn.qkv.kernel replicated: 3 is not divisible by tensor=4"
    assert made.notes.count(note) == caplog.messages.count(note) == 1
    assert "embed_tokens.embedding replicated: 257 is not divisible by tensor=4" in made.notes


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 40), st.integers(1, 40),
    st.sampled_from([{"data": 2, "tensor": 4}, {"fsdp": 8}, {"tensor": 3, "fsdp": 2}, {"expert": 2, "tensor": -1}]),
)  # fmt: skip
def test_bytes_per_device_are_those_of_the_arrays(
    heads: int, head: int, features: int, vocab: int, sizes: dict[str, int]
) -> None:
    weights = weights_of(heads, heads, heads * head, features, vocab, layers=1)
    made = make_plan(weights, device_map=sizes)
    held = dict.fromkeys(made.mesh.devices.flat, 0)
    for weight in made.weights:
        array = jax.device_put(np.zeros(weight.shape, weight.dtype), made.shardings[weight.path])
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    assert set(held.values()) == {made.bytes_per_device}


def test_the_table() -> None:
    made = plan(
        device_map={"data": 2, "tensor": 4}, max_memory=dict.fromkeys(EVERY, "1MiB"), cache_bytes=lambda degree: 2048
    )
    lines = [" ".join(line.split()) for line in str(made).splitlines()]
    assert lines == [
        "mesh data=2 x tensor=4 on 8 cpu devices",
        "weights 88.8 KiB per device of 1.00 MiB available",
        "KV cache 2.00 KiB per device",
        "",
        "weight count shape dtype spec total per device",
        "embed_tokens.embedding 1 256 x 64 float32 tensor 64.0 KiB 16.0 KiB",
        "layers.{0..2}.self_attn.qkv.kernel 3 64 x 4 x 32 float32 -, tensor 96.0 KiB 24.0 KiB",
        "layers.{0..2}.mlp.gate_up.kernel 3 64 x 2 x 128 float32 -, -, tensor 192 KiB 48.0 KiB",
        "layers.{0..2}.norm.scale 3 64 float32 replicated 768 B 768 B",
    ]
    assert len({len(line.rstrip()) for line in str(made).splitlines()[5:]}) == 1  # columns are aligned


def test_the_table_tells_layers_apart_by_shape_and_shows_gaps() -> None:
    sizes = [4, 8, 4]
    rows = [Weight(f"layers.{i}.up", (n,), np.dtype(jnp.bfloat16), ("mlp",)) for i, n in enumerate(sizes)]
    text = str(make_plan(lambda degree: rows, device_map=0))
    assert "layers.*.up" in text
    assert "layers.1.up" in text
    assert "bfloat16" in text
    assert "on 1 cpu device\n" in text
