"""On 8 devices, split in every way, a model computes what it computes on one, and what Transformers does."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxpipe import auto
from jaxpipe.checkpoint.build import Blueprint
from jaxpipe.checkpoint.safetensors import SafetensorsFile
from jaxpipe.models.registry import architecture
from jaxpipe.sharding.plan import RESERVE, Footprint
from tests.parity.cases import CAUSAL_LM, CORE, MESH_CASES, SEQ2SEQ_LM, Case
from tests.parity.harness import Made, batch, check_outputs, given

DEVICES = 8
QUICK = {"tensor": 4, "data": 2}
# Axes as device_map takes them, or the tensor degree that "auto" is brought to by max_memory.
MESHES: tuple[Any, ...] = (QUICK, 1, 2, 4, {"fsdp": 8})
# For mixtures of experts only.
EXPERT_MESHES: tuple[Any, ...] = ({"expert": 2, "tensor": 2, "data": 2}, {"expert": 2, "tensor": 2, "fsdp": 2})


def name_of(mesh: Any) -> str:
    return f"auto_tensor_{mesh}" if isinstance(mesh, int) else "_".join(f"{k}_{v}" for k, v in mesh.items())


def mesh_params(*meshes: Any, core: bool = False) -> list[Any]:
    """Cases with meshes; all but each architecture's first with `QUICK` are marked `full`, of `core` tests also
    those of architectures that are not in `CORE`."""

    def marks(i: int, case: Case, mesh: Any) -> list[Any]:
        return [pytest.mark.full] if i or mesh is not QUICK or (core and case.model_type not in CORE) else []

    return [
        pytest.param(case, mesh, id=f"{case}-{name_of(mesh)}", marks=marks(i, case, mesh))
        for cases in MESH_CASES.values()
        for i, case in enumerate(cases)
        for mesh in (*meshes, *(EXPERT_MESHES if any("experts" in key for key in case.config) else ()))
        # Two tensor shards are more than the widths of the second config allow, four are too many to save memory.
        if i == 0 or mesh not in (2, 4)
    ]


@functools.cache
def config_of(case: Case) -> Any:
    return auto.AutoConfig.for_model(case.model_type, **case.config)


def placement(case: Case, mesh: Any) -> dict[str, Any]:
    """Arguments that put a case on a mesh."""
    if not isinstance(mesh, int):
        return {"device_map": mesh}
    if mesh == 1:
        return {"device_map": "auto"}
    head = getattr(auto, case.head).head
    blueprint = Blueprint(architecture(case.model_type), head, config_of(case), np.dtype(np.float32))
    demand = Footprint(blueprint.weights, blueprint.cache_bytes).demand({"data": DEVICES // mesh, "tensor": mesh})
    bound = math.ceil(demand.total / (1 - RESERVE))
    return {"device_map": "auto", "max_memory": dict.fromkeys(range(DEVICES), bound)}


def check_mesh(model: Any, mesh: Any) -> None:
    shape = dict(model.mesh.shape)
    assert model.mesh.size == DEVICES
    expected = {"tensor": mesh, "data": DEVICES // mesh} if isinstance(mesh, int) else mesh
    assert {k: v for k, v in shape.items() if v > 1} == {k: v for k, v in expected.items() if v > 1}


@pytest.mark.oracle
@pytest.mark.parametrize(("case", "mesh"), mesh_params(*MESHES))
def test_equals_one_device_and_the_oracle(case: Case, mesh: Any, made: Callable[[Case], Made]):
    checkpoint = made(case)
    model = checkpoint.load(**placement(case, mesh))
    check_mesh(model, mesh)
    for padding, rows in (("left", 3), ("both", 8)):
        ids, mask = batch(case, padding, rows=rows, tokens=27)
        inputs = given(case, ids, mask)
        found = model(**inputs)
        check_outputs(found, checkpoint.oracle(**inputs), mask)
        check_outputs(found, checkpoint.ours(**inputs), mask)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("case", "mesh"),
    [param for param in mesh_params(*MESHES, core=True) if param.values[0].head in (CAUSAL_LM, SEQ2SEQ_LM)],
)
def test_greedy_ids(case: Case, mesh: Any, made: Callable[[Case], Made]):
    checkpoint = made(case)
    model = checkpoint.load(**placement(case, mesh))
    settings: dict[str, Any] = {"max_new_tokens": 16, "eos_token_id": None, "pad_token_id": 0}
    for rows in (3, 8):
        ids, mask = batch(case, "left", rows=rows, tokens=29)
        found = np.asarray(model.generate(ids, mask, do_sample=False, **settings))
        assert np.array_equal(found, checkpoint.oracle_greedy(ids, mask, **settings))


@pytest.mark.oracle
@pytest.mark.parametrize(("case", "mesh"), mesh_params(QUICK, {"fsdp": 8}, core=True))
def test_saved_from_a_mesh(case: Case, mesh: Any, made: Callable[[Case], Made], tmp_path):
    """Repeated heads are written once: the file equals the one that was loaded."""
    checkpoint = made(case)
    checkpoint.load(device_map=mesh).save_pretrained(tmp_path)
    ours, theirs = (SafetensorsFile(folder / "model.safetensors") for folder in (tmp_path, checkpoint.directory))
    # Positions that are computed here are weights of some of the oracle's models.
    computed = {name for name in theirs.infos if "embed_positions" in name and case.model_type == "pegasus"}
    assert set(ours.infos) == set(theirs.infos) - computed
    for name in ours.infos:
        assert np.array_equal(ours.read(name), theirs.read(name)), name


@pytest.mark.parametrize(("case", "mesh"), mesh_params(QUICK, {"fsdp": 8}, core=True))
def test_random_weights_do_not_depend_on_the_mesh(case: Case, mesh: Any):
    cls = getattr(auto, case.head)
    one = cls.from_config(config_of(case), seed=3)
    many = cls.from_config(config_of(case), seed=3, **placement(case, mesh))
    check_mesh(many, mesh)
    for ours, theirs in zip(written(many), written(one), strict=True):
        assert ours[0] == theirs[0]
        np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=1e-6)
    ids, mask = batch(case, "right", rows=5)
    inputs = given(case, ids, mask)
    check_outputs(many(**inputs), one(**inputs), mask)


def written(model: Any) -> list[tuple[str, np.ndarray]]:
    """The tensors that a model would write to a checkpoint."""
    tensors: list[tuple[str, np.ndarray]] = []
    for entry, leaf in zip(model._built.entries, model._built.leaves, strict=True):
        tensors += [(entry.prefix + name, part) for name, part in entry.layout.write(np.asarray(leaf)).items()]
    return tensors


@pytest.mark.full
@pytest.mark.parametrize("case", [pytest.param(cases[0], id=str(cases[0])) for cases in MESH_CASES.values()])
def test_a_ready_mesh(case: Case):
    """A Mesh may be given, also one over some of the devices."""
    import jax

    mesh = jax.make_mesh((2, 2), ("data", "tensor"), devices=jax.devices()[4:])
    cls = getattr(auto, case.head)
    one, many = cls.from_config(config_of(case)), cls.from_config(config_of(case), mesh=mesh)
    assert set(many.mesh.devices.flat) == set(jax.devices()[4:])
    ids, mask = batch(case, "right", rows=4)
    inputs = given(case, ids, mask)
    check_outputs(many(**inputs), one(**inputs), mask)
