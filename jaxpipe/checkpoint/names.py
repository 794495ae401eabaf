"""Which tensor of a checkpoint fills which array, decided before anything is read."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from jaxpipe.checkpoint.source import TensorInfo
from jaxpipe.common.errors import WeightsError
from jaxpipe.models.registry import Architecture
from jaxpipe.nn.layout import Layout

# Names that checkpoints of before 2020 use inside layer norms.
RENAMED = (
    (r"(^|\.)(LayerNorm|layer_norm)\.gamma$", r"\1\2.weight"),
    (r"(^|\.)(LayerNorm|layer_norm)\.beta$", r"\1\2.bias"),
)
# Buffers that checkpoints hold as weights, of any architecture; they are computed here.
IGNORED = (
    r"(.*\.)?position_ids",
    r"(.*\.)?rotary_emb\.inv_freq",
    r"(.*\.)?attn\.(bias|masked_bias)",
    r"(.*\.)?num_batches_tracked",
)

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Entry:
    """One array of a module and the checkpoint's tensors that make it up.

    Attributes:
        path: of the parameter in the module.
        prefix: before the layout's names, a module's path and a dot, or empty.
        layout: how the tensors make up the array.
    """

    path: Path
    prefix: str
    layout: Layout

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Full names of the tensors, with their shapes."""
        return {self.prefix + name: shape for name, shape in self.layout.tensors.items()}


def entries(flat_state: Iterable[tuple[Path, nnx.Variable[Any]]]) -> list[Entry]:
    """Returns the entry of every parameter of a module's flat state."""
    found = []
    for path, variable in flat_state:
        metadata = variable.get_metadata()
        owner = path[: len(path) - 1 - metadata["up"]]
        found.append(Entry(path, "".join(f"{part}." for part in owner), metadata["layout"]))
    return found


@dataclass
class Match:
    """The checkpoint's names against the model's.

    Attributes:
        sources: name in the model -> name in the checkpoint.
        missing: names that the model needs and the checkpoint lacks.
        unexpected: names of other heads, which nothing reads.
        mismatched: (name, shape in the checkpoint, shape in the model).
        inside: names that nothing reads although their module is computed.
        duplicates: (name in the model, the names in the checkpoint that claim it).
    """

    sources: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)
    duplicates: list[tuple[str, list[str]]] = field(default_factory=list)

    def check(self, where: str, what: str, *, ignore_mismatched: bool = False) -> None:
        """Raises one WeightsError that lists everything that is wrong.

        Args:
            where: the checkpoint, named in the error.
            what: the module that was asked for.
            ignore_mismatched: let shapes differ.
        """
        lines = [f"  missing: {name}" for name in self.missing]
        mismatched = [] if ignore_mismatched else self.mismatched
        lines += [f"  shape: {n} is {found} in the checkpoint, {asked} here" for n, found, asked in mismatched]
        lines += [f"  unexpected: {name}, inside a module that is computed" for name in self.inside]
        lines += [f"  duplicate: {name} is given by {' and by '.join(names)}" for name, names in self.duplicates]
        if lines:
            raise WeightsError(
                f"{where} does not hold the weights of {what}; nothing was loaded.\n" + "\n".join(lines) + "\n"
                "Ask for the head that the checkpoint was saved with (see 'architectures' in its config.json), or "
                "correct the config."
            )


def match(
    wanted: Sequence[Entry],
    available: Mapping[str, TensorInfo],
    architecture: Architecture,
    *,
    headed: bool | None = None,
) -> Match:
    """Finds the tensor for every name that a module needs.

    A checkpoint of a base model serves a head and the other way round: the base prefix is added
    or taken away. Old names are brought up to date.

    Args:
        wanted: the parameters.
        available: tensors of the checkpoint.
        architecture: of both.
        headed: the parameters are those of a head; None where the base prefix tells.
    """
    shapes = {name: shape for entry in wanted for name, shape in entry.tensors.items()}
    prefix = f"{architecture.base}."
    headed = any(name.startswith(prefix) for name in shapes) if headed is None else headed
    computed = {name.removeprefix(prefix).split(".")[0] for name in shapes}
    claims: dict[str, list[str]] = {}
    copies: dict[str, str] = {}
    result = Match()
    for name in available:
        current = current_name(name, architecture)
        candidates = (current, prefix + current, current.removeprefix(prefix))
        target = next((c for c in candidates if c in shapes), None)
        bare = current.removeprefix(prefix)
        if target is not None:
            claims.setdefault(target, []).append(name)
        elif 0 in available[name].shape:
            continue  # of a module of no size, which is left out
        elif any(re.fullmatch(pattern, bare) for pattern in (*IGNORED, *architecture.ignored)):
            continue
        elif (twin := _twin(bare, architecture, shapes, headed)) is not None:
            copies.setdefault(twin, name)
        elif any(re.fullmatch(pattern, bare) for pattern in architecture.other_heads):
            result.unexpected.append(name)
        elif bare.split(".")[0] in computed:
            result.inside.append(name)
        else:
            result.unexpected.append(name)
    for name, shape in shapes.items():
        found = claims.get(name) or [c for c in (copies.get(name),) if c is not None]
        if not found:
            result.missing.append(name)
        elif len(found) > 1:
            result.duplicates.append((name, found))
        elif tuple(available[found[0]].shape) != shape:
            result.mismatched.append((name, tuple(available[found[0]].shape), shape))
        else:
            result.sources[name] = found[0]
    return result


def _twin(bare: str, architecture: Architecture, shapes: Mapping[str, tuple[int, ...]], headed: bool) -> str | None:
    """Returns the weight of the model that a tied weight of the checkpoint is one with, or None.

    Where both are in the checkpoint they are equal, or `tying.settle_tying` would have untied them.
    """
    tied = architecture.tied.items() if headed else ()
    pairs = [*architecture.copies.items(), *tied, *((b, a) for a, b in tied)]
    others = [other for name, other in pairs if name == bare]
    return next((c for other in others for c in (other, f"{architecture.base}.{other}") if c in shapes), None)


def current_name(name: str, architecture: Architecture) -> str:
    """Returns today's name of a weight that may come from an old checkpoint."""
    for pattern, replacement in (*RENAMED, *architecture.renamed):
        name = re.sub(pattern, replacement, name)
    return name
