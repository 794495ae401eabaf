"""From a config and a head to a module whose weights lie on a mesh."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxpipe.checkpoint.load import load_arrays, random_arrays
from jaxpipe.checkpoint.names import Entry, Match, Path, entries, match
from jaxpipe.checkpoint.source import TensorSource
from jaxpipe.common.errors import ConfigError
from jaxpipe.models.config import ModelConfig
from jaxpipe.models.registry import BASE, Architecture
from jaxpipe.nn.cache import layer_bytes
from jaxpipe.nn.functional import Functional
from jaxpipe.nn.init import Init
from jaxpipe.sharding.plan import ShardingPlan, Weight, make_plan

# Positions of one row for which the planner leaves room in the key-value cache.
CACHE_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class Blueprint:
    """A module that is not built yet: which class, of which config, in which dtype.

    Attributes:
        without: attributes of the base model that the checkpoint lacks and the head does not need, and
            attributes of the head that may be absent.
    """

    architecture: Architecture
    head: str
    config: ModelConfig
    dtype: np.dtype
    without: tuple[str, ...] = ()
    _modules: dict[int, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.head not in self.architecture.heads:
            raise ConfigError(
                f"model_type {self.config.model_type!r} has no head for {self.head}; it has: "
                f"{', '.join(self.architecture.heads)}."
            )

    @property
    def name(self) -> str:
        """Name of the class, as in ``architectures`` of config.json."""
        return self.architecture.heads[self.head].__name__

    def module(self, head_shards: int = 1) -> Any:
        """Returns the module with abstract weights, its packed projections grouped for `head_shards`."""
        if head_shards not in self._modules:
            self._modules[head_shards] = self._module(head_shards)
        return self._modules[head_shards]

    def _module(self, head_shards: int) -> Any:
        std = getattr(self.config, "initializer_range", 0.02)

        def make() -> nnx.Module:
            init = Init(dtype=self.dtype, head_shards=head_shards, std=std)
            module = self.architecture.heads[self.head](self.config, init)
            for attribute in self.without:
                own = self.head == BASE or attribute in self.architecture.head_optional
                setattr(module if own else getattr(module, self.architecture.base), attribute, None)
            return module

        return nnx.eval_shape(make)

    def variables(self, head_shards: int = 1) -> dict[Path, Any]:
        """Returns the abstract parameters by path."""
        return dict(nnx.to_flat_state(nnx.state(self.module(head_shards))))

    def entries(self, head_shards: int = 1) -> list[Entry]:
        """Returns the parameters with their tensors in a checkpoint."""
        return entries(self.variables(head_shards).items())

    def weights(self, head_shards: int) -> Sequence[Weight]:
        """Returns the parameters as the planner counts them."""
        return [
            Weight(dotted(path), v.get_value().shape, v.get_value().dtype, v.get_metadata()["out_sharding"])
            for path, v in self.variables(head_shards).items()
        ]

    def cache_bytes(self, head_shards: int) -> int:
        """Bytes per device of the key-value cache of one row; 0 for a model without one."""
        module = self.module(head_shards)
        if not hasattr(module, "cache_layers"):
            return 0
        tokens = min(getattr(self.config, "max_position_embeddings", CACHE_TOKENS), CACHE_TOKENS)
        layers = [*module.cache_layers(), *getattr(module, "memory_layers", list)()]
        return sum(layer_bytes(layer, tokens, self.dtype, head_shards) for layer in layers)


def dotted(path: Path) -> str:
    """Returns a parameter's path as one name."""
    return ".".join(map(str, path))


@dataclass(frozen=True)
class Built:
    """A module taken apart, its weights on the mesh, the parameters in the order of the leaves, and the plan."""

    functional: Functional
    leaves: list[jax.Array]
    paths: list[Path]
    entries: list[Entry]
    plan: ShardingPlan


def fit(
    blueprint: Blueprint, source: TensorSource, where: str, *, ignore_mismatched: bool = False
) -> tuple[Blueprint, Match]:
    """Compares a blueprint with a checkpoint, and leaves out what is optional and absent.

    Shapes may differ with ``ignore_mismatched``; `redrawn.redraw` then makes those weights.

    Raises:
        WeightsError: one error that lists all that does not fit.
    """
    headed = blueprint.head != BASE
    found = match(blueprint.entries(), source.infos, blueprint.architecture, headed=headed)
    absent = []
    for attribute in blueprint.architecture.head_optional if headed else blueprint.architecture.optional:
        inside = {n for e in blueprint.entries() for n in e.tensors if f"{n}.".startswith(f"{attribute}.")}
        if inside and inside <= set(found.missing):
            absent.append(attribute)
            found.missing = [name for name in found.missing if name not in inside]
    blueprint = replace(blueprint, without=tuple(absent))
    found.check(where, blueprint.name, ignore_mismatched=ignore_mismatched)
    return blueprint, found


Arrays = Callable[[ShardingPlan, dict[Path, Any], list[Entry]], dict[Path, jax.Array]]


def build(blueprint: Blueprint, arrays: Arrays, matmul_precision: str | None, **placement: Any) -> Built:
    """Plans the mesh and makes the weights on it.

    Args:
        blueprint: what to build.
        arrays: makes the arrays by path: `from_source` or `from_seed`.
        matmul_precision: see `Functional`.
        placement: ``device_map``, ``mesh``, ``max_memory``, as `make_plan` takes them.
    """
    plan = make_plan(blueprint.weights, cache_bytes=blueprint.cache_bytes, **placement)
    variables = blueprint.variables(plan.tensor_degree)
    wanted = blueprint.entries(plan.tensor_degree)
    made = arrays(plan, variables, wanted)
    graph, state = nnx.split(blueprint.module(plan.tensor_degree))
    tree = jax.tree.structure(state)
    functional = Functional(graph, tree, plan.mesh, blueprint.dtype, matmul_precision)
    # Leaves come in the order of the state's flat paths.
    return Built(functional, [made[path] for path in variables], list(variables), wanted, plan)


def from_source(source: TensorSource, found: Match) -> Arrays:
    """Reads the weights of a checkpoint."""

    def arrays(plan: ShardingPlan, variables: dict[Path, Any], wanted: list[Entry]) -> dict[Path, jax.Array]:
        shapes = {path: variable.get_value() for path, variable in variables.items()}
        shardings = {path: plan.shardings[dotted(path)] for path in variables}
        return load_arrays(wanted, shapes, shardings, source, found.sources)

    return arrays


def from_seed(seed: int) -> Arrays:
    """Draws random weights."""

    def arrays(plan: ShardingPlan, variables: dict[Path, Any], wanted: list[Entry]) -> dict[Path, jax.Array]:
        return random_arrays(variables, {path: plan.shardings[dotted(path)] for path in variables}, seed)

    return arrays
