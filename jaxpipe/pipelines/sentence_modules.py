"""What a repository of sentence-transformers says of making a sentence's vector: its modules, lengths and prompts."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxpipe.checkpoint.index import read_json
from jaxpipe.checkpoint.resolve import MODULES, Checkpoint
from jaxpipe.common.errors import CheckpointError, nearest
from jaxpipe.pipelines.pooling import Dense, Normalize, Recipe, Step, check_modes

SETTINGS = "config_sentence_transformers.json"
# Of the module Transformer; the name tells the kind of model that it was first written for.
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# The switches of older files, and the names that they stand for.
SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# The last part of a class name in torch.nn -> a name of nn.activations.
ACTIVATIONS = {
    "GELU": "gelu",
    "Identity": "linear",
    "Mish": "mish",
    "ReLU": "relu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
}
# Modules that change nothing when a model only runs.
IDLE = ("Dropout",)
PACKAGE = "sentence_transformers."


@dataclass(frozen=True)
class SentenceModules:
    """The modules of a repository and what belongs to them.

    Attributes:
        recipe: pooling and what follows.
        max_length: tokens that a text is cut to, None where the repository does not say.
        lower_case: whether texts are written in lower case first.
        pools_prompt: whether the tokens of a prompt count among those that are pooled.
        prompts: texts by name that are put before a text.
        default_prompt: name of the one that is used where none is asked for.
        files: what `save` copies: where a file belongs -> where it lies.
        listing: the entries of modules.json, with the model in the outermost folder.
    """

    recipe: Recipe
    max_length: int | None = None
    lower_case: bool = False
    pools_prompt: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    listing: tuple[Mapping[str, Any], ...] = ()

    def save(self, directory: Path) -> None:
        """Writes the modules beside a model that lies in ``directory`` itself."""
        for name, source in self.files.items():
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.resolve() != target.resolve():
                shutil.copyfile(source, target)
        (directory / MODULES).write_text(json.dumps(list(self.listing), indent=2) + "\n")


def read_modules(checkpoint: Checkpoint) -> SentenceModules | None:
    """Reads a repository's modules, or returns None where it has no modules.json.

    Raises:
        CheckpointError: a file is missing or damaged.
        ValueError: a module is of a kind that is not supported; the message names it.
    """
    for folder in dict.fromkeys((checkpoint.subfolder, "")):
        root = checkpoint.within(folder)
        if path := root.file(MODULES):
            return _Reader(checkpoint, root, path).read()
    return None


def read_prompts(checkpoint: Checkpoint) -> tuple[dict[str, str], str | None]:
    """Returns the prompts of a repository by name, and the name of the default one.

    Raises:
        CheckpointError: the file that holds them is damaged.
    """
    for folder in dict.fromkeys((checkpoint.subfolder, "")):
        root = checkpoint.within(folder)
        settings = root.read_json(SETTINGS)
        if settings is None:
            continue
        where, prompts = root.file(SETTINGS), settings.get("prompts") or {}
        default = settings.get("default_prompt_name")
        if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
            raise CheckpointError(f"{where}: prompts must hold texts by name.")
        prompts = {name: text or "" for name, text in prompts.items()}
        if default is not None and default not in prompts:
            raise CheckpointError(f"{where}: default_prompt_name={default!r} is none of {sorted(prompts)}.")
        return prompts, default
    return {}, None


class _Reader:
    """Reads the modules that a modules.json lists.

    Args:
        model: the checkpoint, seen from the folder of its model.
        root: the same, seen from the folder of modules.json.
        path: of modules.json.
    """

    def __init__(self, model: Checkpoint, root: Checkpoint, path: Path) -> None:
        self.model, self.root, self.path = model, root, path
        self.modes: tuple[str, ...] = ()
        self.pools_prompt = True
        self.steps: list[Step] = []
        self.weights: list[tuple[np.ndarray, ...]] = []
        self.files: dict[str, Path] = {}
        self.listing: list[dict[str, Any]] = []

    def read(self) -> SentenceModules:
        """Returns what the modules say."""
        for number, module in enumerate(read_json(self.path, list)):
            kind, folder = self._entry(number, module)
            if number == 0:
                if kind != "Transformer":
                    raise self._unsupported(module, "the first module must be a Transformer")
                self.listing.append({**module, "path": ""})
                continue
            self.listing.append(dict(module))
            if kind == "Pooling" and not self.modes:
                self._pooling(folder)
            elif kind == "Normalize" and self.modes:
                self._normalize(module, folder)
            elif kind == "Dense" and self.modes:
                self._dense(module, folder)
            elif kind not in IDLE:
                hint = " in this place" if kind in ("Pooling", "Normalize", "Dense") else ""
                raise self._unsupported(module, f"{kind} is not supported{hint}")
        if not self.modes:
            raise ValueError(f"{self.path}: there is no module Pooling, so the model gives no vector of a sentence.")
        max_length, lower_case = self._transformer()
        prompts, default = read_prompts(self.model)
        if settings := self.root.file(SETTINGS):
            self.files[SETTINGS] = settings
        recipe = Recipe(self.modes, tuple(self.steps), tuple(self.weights))
        return SentenceModules(
            recipe, max_length, lower_case, self.pools_prompt, prompts, default, self.files, tuple(self.listing)
        )

    def _entry(self, number: int, module: Any) -> tuple[str, Checkpoint]:
        """The kind of a module and its folder."""
        kind, folder = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(folder, str):
            raise CheckpointError(f"{self.path}: entry {number} must have a 'type' and a 'path', found {module!r}.")
        if not kind.startswith(PACKAGE):
            raise self._unsupported(module, "it is code of the repository, which is never run")
        folder = folder.strip("/")
        return kind.rpartition(".")[2], self.root.within("/".join(filter(None, (self.root.subfolder, folder))))

    def _unsupported(self, module: Mapping[str, Any], reason: str) -> ValueError:
        found = f"the module {module['path'] or '(outermost folder)'!r} of type {module['type']!r}"
        return ValueError(
            f"{self.path}: {found} cannot be used: {reason}. Supported are Transformer, Pooling, Dense and Normalize; "
            "pooling='mean' or another name leaves the repository's modules aside."
        )

    def _config(self, folder: Checkpoint, names: tuple[str, ...] = ("config.json",)) -> dict[str, Any] | None:
        """The first of these files that a folder holds, noted among the files to save."""
        for name in names:
            if path := folder.file(name):
                inside = folder.subfolder.removeprefix(self.root.subfolder).strip("/")
                moved = folder.subfolder == self.model.subfolder
                self.files[name if moved else f"{inside}/{name}"] = path
                return read_json(path)
        return None

    def _pooling(self, folder: Checkpoint) -> None:
        config = self._config(folder)
        if config is None:
            raise CheckpointError(f"{self.path}: the folder {folder.subfolder!r} of Pooling has no config.json.")
        where = f"{folder.file('config.json')}: "
        for name in config:
            if name.startswith("pooling_mode") and name != "pooling_mode" and name not in SWITCHES:
                raise ValueError(f"{where}{name!r} is no known way of pooling.{nearest(name, SWITCHES)}")
        named = [mode for switch, mode in SWITCHES.items() if config.get(switch)]
        self.modes = check_modes(config.get("pooling_mode") or named or "mean", f"{where}pooling_mode")
        self.pools_prompt = config.get("include_prompt", True) is not False

    def _normalize(self, module: Mapping[str, Any], folder: Checkpoint) -> None:
        self._check_names(module, self._config(folder) or {})
        self.steps.append(Normalize())

    def _check_names(self, module: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Raises ValueError where a module reads or writes anything but the sentence's vector."""
        for name in ("module_input_name", "module_output_name"):
            if config.get(name) not in (None, "sentence_embedding"):
                raise self._unsupported(module, f"{name} is {config[name]!r}, not 'sentence_embedding'")

    def _dense(self, module: Mapping[str, Any], folder: Checkpoint) -> None:
        config = self._config(folder)
        if config is None:
            raise CheckpointError(f"{self.path}: the folder {folder.subfolder!r} of Dense has no config.json.")
        self._check_names(module, config)
        if config.get("use_residual"):
            raise self._unsupported(module, "use_residual is not supported")
        function = config.get("activation_function", "torch.nn.modules.activation.Tanh")
        package, _, name = str(function or "torch.nn.Identity").rpartition(".")
        if not package.startswith("torch.nn") or name not in ACTIVATIONS:
            raise self._unsupported(module, f"the activation {function!r} is none of {', '.join(ACTIVATIONS)}")
        source = folder.weights()
        wanted = ["linear.weight", *(["linear.bias"] if config.get("bias", True) else [])]
        shapes = {name: info.shape for name, info in source.infos.items()}
        sizes = config.get("in_features"), config.get("out_features")
        expected = {"linear.weight": sizes[::-1], "linear.bias": sizes[1:]}
        if shapes != {name: expected[name] for name in wanted}:
            raise CheckpointError(
                f"{self.path}: the weights of the Dense module {folder.subfolder!r} have the shapes {shapes}; its "
                f"config.json tells of { ({name: expected[name] for name in wanted}) }."
            )
        kernel, *bias = (np.array(source.read(name), np.float32) for name in wanted)
        files = {info.file for info in source.infos.values()}
        source.close()
        inside = folder.subfolder.removeprefix(self.root.subfolder).strip("/")
        self.files |= {f"{inside}/{file.name}": file for file in files}
        self.steps.append(Dense(ACTIVATIONS[name], bool(bias)))
        self.weights.append((np.ascontiguousarray(kernel.T), *bias))

    def _transformer(self) -> tuple[int | None, bool]:
        """The number of tokens that texts are cut to, and whether they are written in lower case."""
        config = self._config(self.model, TRANSFORMER_CONFIGS) or {}
        length = config.get("max_seq_length")
        if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
            raise CheckpointError(f"{self.path.parent}: max_seq_length={length!r} is not a number of tokens.")
        return length, bool(config.get("do_lower_case"))
