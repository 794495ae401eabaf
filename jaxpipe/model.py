"""`PreTrainedModel`: a config, a module taken apart, and its weights on a mesh."""

import functools
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpipe.checkpoint.build import Built, dotted
from jaxpipe.checkpoint.resolve import Checkpoint
from jaxpipe.checkpoint.save import save_weights
from jaxpipe.common.checks import check_ids
from jaxpipe.common.compile_cache import use_compile_cache
from jaxpipe.common.compiler_options import many_rows
from jaxpipe.common.errors import nearest
from jaxpipe.common.outputs import ModelOutput
from jaxpipe.generation.assisted import Assistant
from jaxpipe.generation.config import GenerationConfig
from jaxpipe.generation.generate import Generator
from jaxpipe.generation.outputs import compute_transition_scores
from jaxpipe.generation.seq2seq import Seq2SeqGenerator
from jaxpipe.models.config import ModelConfig
from jaxpipe.models.registry import CAUSAL_LM, SEQ2SEQ_LM
from jaxpipe.sharding.mesh import Device, batch_sharding, use_mesh
from jaxpipe.sharding.plan import ShardingPlan

# Inputs of a call, beside the switches of what is put out, of modules that do not list their own.
INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")


class PreTrainedModel:
    """A model ready to run; the Auto classes make it.

    Attributes:
        config: the model's configuration.
        head: what was asked for, such as ``"causal language model"``.
        name_or_path: where it came from, empty for random weights.
        generation_config: defaults of `generate`.
        checkpoint: the files it was loaded from, None for random weights.
        sharding_plan: where the weights lie; prints as a table.
    """

    def __init__(
        self,
        config: ModelConfig,
        head: str,
        built: Built,
        *,
        name_or_path: str = "",
        generation_config: GenerationConfig | None = None,
        checkpoint: Checkpoint | None = None,
    ):
        self.config = config
        self.head = head
        self.name_or_path = name_or_path
        self.checkpoint = checkpoint
        self.generation_config = generation_config or GenerationConfig.from_model_config(config)
        self.sharding_plan: ShardingPlan = built.plan
        self._built = built
        use_compile_cache()
        self._functional = built.functional
        self._forward = self._jitted_forward()

    @property
    def mesh(self) -> Mesh:
        """The mesh that the weights lie on."""
        return self._functional.mesh

    @property
    def dtype(self) -> np.dtype:
        """Of the weights and the computation."""
        return np.dtype(self._functional.dtype)

    @property
    def device(self) -> Device:
        """The first device of the mesh."""
        return self.mesh.devices.flat[0]

    @property
    def module(self) -> Any:
        """The NNX module itself, around the same arrays; to run changed weights use `functional`."""
        return self._functional.module(self._built.leaves)

    def num_parameters(self) -> int:
        """Number of weights, repeated heads counted once."""
        return sum(int(np.prod(shape)) for entry in self._built.entries for shape in entry.tensors.values())

    def __repr__(self) -> str:
        axes = " x ".join(f"{name}={size}" for name, size in self.mesh.shape.items())
        return (
            f"{self.class_name}({self.name_or_path!r}, {self.num_parameters():,} parameters, {self.dtype}, "
            f"{self.device.platform} mesh {axes})"
        )

    @property
    def class_name(self) -> str:
        """Name of the module's class, as in ``architectures`` of config.json."""
        return type(self.module).__name__

    def functional(self) -> tuple[Callable[..., ModelOutput], dict[str, jax.Array]]:
        """Returns the model as a pure function and its weights.

        Returns:
            ``fn(weights, input_ids=..., attention_mask=..., ...)``, for `jax.jit`, `jax.grad` and
            `jax.vmap`, and the weights by path. It enters no mesh and checks no input.
        """
        names = [dotted(path) for path in self._built.paths]

        def fn(weights: Mapping[str, jax.Array], **inputs: Any) -> ModelOutput:
            return self._functional.call([weights[name] for name in names], **inputs)

        return fn, dict(zip(names, self._built.leaves, strict=True))

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        **inputs: Any,
    ) -> ModelOutput:
        """Runs the model; every new shape is compiled once.

        Args:
            input_ids: (B, T) int array or nested lists.
            attention_mask: (B, T), 1 for tokens and 0 for padding; all ones if None.
            output_hidden_states: put out the states before and after every layer.
            output_attentions: put out every layer's attention probabilities.
            inputs: ``position_ids`` (B, T), and ``token_type_ids`` (B, T) where the model has them; of
                encoder-decoders ``decoder_input_ids`` (B, T') and ``decoder_attention_mask`` (B, T').

        Raises:
            ValueError: an id or position is out of range, or shapes do not agree.
            TypeError: the model takes no such input.
        """
        arrays = self._check_inputs({"input_ids": input_ids, "attention_mask": attention_mask, **inputs})
        with use_mesh(self.mesh):
            placed = {
                name: jax.device_put(array, batch_sharding(self.mesh, array.shape[0], array.ndim))
                for name, array in arrays.items()
            }
            return self._forward(self._built.leaves, placed, output_hidden_states, output_attentions)

    def _jitted_forward(self) -> Callable[..., ModelOutput]:
        def forward(leaves: list[jax.Array], inputs: dict[str, jax.Array], states: bool, weights: bool) -> ModelOutput:
            return self._functional.call(leaves, **inputs, output_hidden_states=states, output_attentions=weights)

        return jax.jit(forward, static_argnums=(2, 3), compiler_options=many_rows(self.device.platform))

    def _check_inputs(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Brings inputs to int32 arrays (B, T) and checks every index, since a gather on the device clamps them."""
        limits = self.config.limits()
        arrays = {}
        if inputs["input_ids"] is None:
            raise ValueError(f"{self.class_name} needs input_ids, an int array (batch, length).")
        for name, value in inputs.items():
            if value is None:
                continue
            if name not in self._inputs:
                raise TypeError(
                    f"{self.class_name} takes no input {name!r}; it takes {', '.join(self._inputs)}."
                    + nearest(name, self._inputs)
                )
            arrays[name] = check_ids(name, value, limits.get(name))
        for name, array in arrays.items():
            of = "decoder_input_ids" if name == "decoder_attention_mask" else "input_ids"
            if of not in arrays:
                raise ValueError(f"{name} is given without {of}.")
            wanted = arrays[of].shape
            if name == "decoder_input_ids" and len(array) == wanted[0]:
                check_length(array.shape[1], self.config, name)
            elif array.shape != wanted and not (name == "position_ids" and array.shape == (1, wanted[1])):
                raise ValueError(f"{name} has shape {array.shape}, but {of} has {wanted}.")
        check_length(arrays["input_ids"].shape[1], self.config)
        if self._check is not None:
            self._check(self.config, arrays)
        mask = arrays.get("attention_mask")
        # Causal attention without padding has a kernel that needs no mask; others keep it, lest they compile twice.
        if mask is not None and mask.all() and self._generates:
            del arrays["attention_mask"]
        return arrays

    @functools.cached_property
    def _inputs(self) -> tuple[str, ...]:
        """Names of the inputs that the module takes."""
        names = getattr(type(self.module), "inputs", INPUTS)
        return tuple(name for name in names if name != "token_type_ids" or name in self.config.limits())

    @functools.cached_property
    def _check(self) -> Callable[[ModelConfig, Mapping[str, np.ndarray]], None] | None:
        """The module's own check of its inputs, for what indices alone do not tell."""
        return getattr(type(self.module), "check_inputs", None)

    @functools.cached_property
    def _generates(self) -> bool:
        return hasattr(self.module, "cache_layers")

    @functools.cached_property
    def _generator(self) -> Generator:
        if self.head not in (CAUSAL_LM, SEQ2SEQ_LM):
            raise TypeError(
                f"{self.class_name} has no language-model head to generate with; load the model with "
                "AutoModelForCausalLM, or AutoModelForSeq2SeqLM if it is an encoder-decoder."
            )
        cls = Generator if self.head == CAUSAL_LM else Seq2SeqGenerator
        return cls(self._functional, self._built.leaves, self.config)

    def generate(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        """Generates; see `generation.generate.Generator.generate` for every argument."""
        assistant = kwargs.get("assistant_model")
        if assistant is not None:
            kwargs["assistant_model"] = _assistant(assistant)
        return self._generator.generate(input_ids, attention_mask, defaults=self.generation_config, **kwargs)

    def compute_transition_scores(
        self, sequences: Any, scores: Any, beam_indices: Any = None, normalize_logits: bool = False
    ) -> np.ndarray:
        """Returns the score of each new token of a call of `generate`; see
        `generation.outputs.compute_transition_scores`.
        """
        return compute_transition_scores(sequences, scores, beam_indices, normalize_logits)

    def warmup(self, **kwargs: Any) -> dict[str, float]:
        """Compiles generation ahead; see `generation.generate.Generator.warmup`."""
        assistant = kwargs.get("assistant_model")
        if assistant is not None:
            kwargs["assistant_model"] = _assistant(assistant)
        return self._generator.warmup(defaults=self.generation_config, **kwargs)

    def save_pretrained(self, save_directory: str | PathLike[str], *, max_shard_size: int | str = "50GB") -> None:
        """Writes config.json, generation_config.json and model*.safetensors in the Hub's layout.

        Args:
            save_directory: made if it is not there.
            max_shard_size: in bytes, or such as ``"5GB"``.
        """
        directory = Path(save_directory)
        if directory.is_file():
            raise ValueError(f"save_pretrained writes a directory, but {str(directory)!r} is a file.")
        directory.mkdir(parents=True, exist_ok=True)
        arrays = dict(zip(self._built.paths, self._built.leaves, strict=True))
        save_weights(directory, self._built.entries, arrays, max_shard_size)
        self.config.architectures, self.config.dtype = [self.class_name], self.dtype.name
        (directory / "config.json").write_text(self.config.to_json_string())
        if self._generates:
            self.generation_config.save_pretrained(directory)


def _assistant(model: Any) -> Assistant:
    """Makes of a model what `generate` of another takes to propose tokens.

    Raises:
        TypeError: it is no loaded model, or has no head to generate with.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"assistant_model= takes a loaded jaxpipe model, not {type(model).__name__} {model!r}: load it with "
            "AutoModelForCausalLM.from_pretrained(..., mesh=model.mesh)."
        )
    return model._generator.as_assistant(model.generation_config, repr(model.name_or_path or model.class_name))


def check_length(tokens: int, config: ModelConfig, name: str = "input_ids") -> None:
    """Raises ValueError where an input has more tokens than the model has learned positions."""
    limit = config.longest_input()
    if limit is not None and tokens > limit:
        raise ValueError(
            f"The input ({name}) has {tokens} tokens, but {config.model_type!r} has learned positions for {limit}; "
            "truncate it (truncation=True in the tokenizer or pipeline)."
        )
