"""The base class of pipelines: preprocess, forward and postprocess, over one item or many."""

import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax

from jaxpipe.common.logging import info_once
from jaxpipe.pipelines.batching import Side
from jaxpipe.pipelines.inputs import Inputs, ResultIterator, arrange, numbered
from jaxpipe.pipelines.running import Run, checked_batch_size
from jaxpipe.pipelines.sizing import Sizing, sizing_of

Parameters = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]

# Lists from this length on show a progress bar on a terminal.
_PROGRESS_FROM = 32
_IGNORED = ("num_workers", "binary_output", "args_parser")


class Pipeline:
    """Runs a model on items of a user's kind.

    A subclass defines `_sanitize_parameters`, `preprocess`, `_forward` and `postprocess`; batching, padding, order,
    laziness and parameters are handled here.

    Args:
        model: a model of `jaxpipe.auto`.
        tokenizer: its tokenizer, where the task has one.
        task: the name of the task, as the user gave it.
        batch_size: default of calls: rows run at once.
        progress_bar: whether calls with lists show a bar; None: long lists on a terminal.
        **parameters: defaults of the parameters that calls take.
    """

    # True: required; None: used where there is one; False: never loaded.
    _load_tokenizer: ClassVar[bool | None] = None
    # Pipelines that generate get `seed` and `item_indices` among their forward parameters, and no padding to buckets,
    # which `generate` does itself.
    _pipeline_calls_generate: ClassVar[bool] = False
    # Padded on the right, tokens keep the positions that they have alone, in whatever way a model counts them.
    _padding_side: ClassVar[Side] = "right"
    # Whether threads may call `_forward` at the same time, as they do on a CPU.
    _forwards_at_once: ClassVar[bool] = False
    # Whether `preprocess` yields several rows for an item, and `postprocess` takes the list of their outputs.
    _many_rows: ClassVar[bool] = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        task: str = "",
        *,
        batch_size: int | None = None,
        progress_bar: bool | None = None,
        **parameters: Any,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.task = task
        self._batch_size = checked_batch_size(batch_size)
        self._progress_bar = progress_bar
        self._drop_ignored(parameters)
        self._preprocess_params, self._forward_params, self._postprocess_params = self._initial_parameters(parameters)

    def _sanitize_parameters(self, **parameters: Any) -> Parameters:
        """Sorts the parameters of a call, or of the constructor, in those of preprocess, forward and postprocess.

        Only what was given belongs in the three dictionaries: a call's take precedence over the constructor's.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define _sanitize_parameters.")

    def preprocess(self, inputs: Any, **parameters: Any) -> Any:
        """Turns an item into a dictionary of arrays (1, T, ...) and whatever `_forward` or `postprocess` need."""
        raise NotImplementedError(f"{type(self).__name__} does not define preprocess.")

    def preprocess_batch(self, items: list[Any], **parameters: Any) -> list[Any]:
        """Returns what `preprocess` returns for each item; a task overrides it where all at once is quicker."""
        return [self.preprocess(item, **parameters) for item in items]

    def _forward(self, model_inputs: dict[str, Any], **parameters: Any) -> Any:
        """Runs the model on a batch: arrays are (B, T, ...), other entries lists with one value a row."""
        raise NotImplementedError(f"{type(self).__name__} does not define _forward.")

    def postprocess(self, model_outputs: Any, **parameters: Any) -> Any:
        """Turns one row's outputs, numpy arrays (1, ...) on the host, into the result that the user gets."""
        raise NotImplementedError(f"{type(self).__name__} does not define postprocess.")

    def check_item(self, item: Any, where: str) -> Any:
        """Returns the item as `preprocess` takes it.

        Args:
            item: what the user gave.
            where: what errors call it: ``inputs``, or ``inputs[i]``.

        Raises:
            TypeError: the task cannot take such an item.
        """
        if item is None:
            raise TypeError(f"{where} is None; {self._named} cannot take it.")
        return item

    def arrange(self, inputs: Any) -> Inputs:
        """Tells one item from many; a task whose items are lists overrides it."""
        return arrange(inputs)

    def __call__(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        item_offset: int = 0,
        **parameters: Any,
    ) -> Any:
        """Runs the pipeline.

        Args:
            inputs: one item; a list or tuple of items; or a data set, generator or iterator of items.
            batch_size: rows run at once; None: the constructor's, else as many as fill the devices for lists, and 1
                for lazy inputs.
            item_offset: index of the first item in a larger input of which this call runs a part; generated text
                depends on it only through the random numbers of sampling.
            **parameters: the task's parameters.

        Returns:
            The result of one item; a list of results for a list; an iterator that computes results as they are asked
            for otherwise. Results are in the order of the items.
        """
        if isinstance(item_offset, bool) or not isinstance(item_offset, int) or item_offset < 0:
            raise ValueError(f"item_offset= takes an index of at least 0, not {item_offset!r}.")
        self._drop_ignored(parameters)
        arranged = self.arrange(inputs)
        run = Run(self, arranged, batch_size, item_offset, self._call_parameters(parameters))
        if arranged.kind == "lazy":
            items = numbered(arranged.items, self.check_item, single=False)
            return ResultIterator(run.results(items), arranged.length)
        # All items are checked before the first is run.
        items = list(numbered(arranged.items, self.check_item, single=arranged.kind == "one"))
        if arranged.kind == "one":
            return next(run.results(iter(items)))
        with self._progress(len(items)) as results_of:
            return list(results_of(run.results(iter(items))))

    def predict(self, inputs: Any) -> Any:
        """The same as a call, under scikit-learn's name."""
        return self(inputs)

    def transform(self, inputs: Any) -> Any:
        """The same as a call, under scikit-learn's name."""
        return self(inputs)

    @property
    def dtype(self) -> Any:
        """The dtype of the model's weights."""
        return self.model.dtype

    @property
    def device(self) -> Any:
        """The model's device; of a model on many, the first."""
        mesh = getattr(self.model, "mesh", None)
        return mesh.devices.flat[0] if mesh is not None else jax.local_devices()[0]

    def save_pretrained(self, save_directory: str | Path, **parameters: Any) -> None:
        """Saves model and tokenizer in the layout of the Hub, so that `pipeline` loads the directory.

        The config of a pipeline that was registered (`PIPELINE_REGISTRY.register_pipeline`) names its task and class,
        so that `pipeline` finds them where the class is registered again; the class itself is not saved.

        Args:
            save_directory: made where it does not exist.
            **parameters: passed on to the model's `save_pretrained`.

        Raises:
            NotADirectoryError: the path is a file.
        """
        directory = Path(save_directory)
        if directory.is_file():
            raise NotADirectoryError(f"save_directory={str(directory)!r} is a file; give a directory.")
        directory.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(directory, **parameters)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(directory)
        from jaxpipe.pipelines.custom import note_pipeline

        note_pipeline(directory, self)

    def __repr__(self) -> str:
        dtype = getattr(self.dtype, "name", None) or str(self.dtype)
        mesh = getattr(self.model, "mesh", None)
        devices = f"{self.device.platform}" + (f" x {mesh.devices.size}" if mesh is not None and mesh.size > 1 else "")
        name = getattr(self.model, "class_name", type(self.model).__name__)
        return f"{type(self).__name__}(model={name}, dtype={dtype}, device={devices})"

    @property
    def _named(self) -> str:
        return f"the {self.task} pipeline" if self.task else type(self).__name__

    @property
    def _position_limit(self) -> int | None:
        """Number of positions that the model has learned, or None where it computes them."""
        config = getattr(self.model, "config", None)
        return None if config is None else config.longest_input()

    @functools.cached_property
    def _sizing(self) -> Sizing:
        """The shapes of this pipeline's batches."""
        return sizing_of(self.model)

    @property
    def _preprocesses_together(self) -> bool:
        return type(self).preprocess_batch is not Pipeline.preprocess_batch

    def _initial_parameters(self, parameters: dict[str, Any]) -> Parameters:
        return self._sanitize_parameters(**parameters)

    def _call_parameters(self, parameters: dict[str, Any]) -> Parameters:
        """Returns the parameters of a call, on top of the constructor's, which stay as they are."""
        preprocess, forward, postprocess = self._sanitize_parameters(**parameters)
        return (
            {**self._preprocess_params, **preprocess},
            {**self._forward_params, **forward},
            {**self._postprocess_params, **postprocess},
        )

    def _default_batch_size(self, arranged: Inputs, forward: Mapping[str, Any]) -> int | None:
        """Returns how many rows run at once where none is asked for; None: as many as suit the devices."""
        return None if self._many_rows or (arranged.kind != "one" and arranged.at_hand) else 1

    def _check_batch_size(self, batch_size: int) -> None:
        """Raises ValueError where the task cannot run this many rows at once."""

    def _needs_same_length(self, forward: Mapping[str, Any]) -> bool:
        """Whether rows of different lengths cannot share a batch, as a parameter counts padding."""
        return False

    def _drop_ignored(self, parameters: dict[str, Any]) -> None:
        for name in _IGNORED:
            if parameters.pop(name, None) is not None:
                info_once(f"{name}= of a pipeline is accepted and has no effect.")

    @contextlib.contextmanager
    def _progress(self, total: int) -> Iterator[Any]:
        shown = self._progress_bar
        if shown is None:
            shown = total >= _PROGRESS_FROM and sys.stderr.isatty()
        if not shown:
            yield lambda results: results
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            yield lambda results: bar.track(results, total=total, description=self.task or type(self).__name__)


class ChunkPipeline(Pipeline):
    """A pipeline whose `preprocess` yields several rows for an item; `postprocess` takes the list of their outputs."""

    _many_rows: ClassVar[bool] = True
