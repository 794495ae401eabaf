"""What pipelines that generate share: the precedence of generation settings, seeds and item indices."""

import copy
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, ClassVar

from jaxpipe.common.errors import nearest
from jaxpipe.common.logging import info_once
from jaxpipe.common.random import next_seed
from jaxpipe.generation.config import FIELDS, GenerationConfig
from jaxpipe.generation.fields import GENERATE_ARGUMENTS, NOT_SUPPORTED_ARGUMENTS, SAMPLING_ONLY
from jaxpipe.pipelines.base import Parameters, Pipeline
from jaxpipe.pipelines.inputs import Inputs
from jaxpipe.pipelines.streaming import StreamPlan, async_pieces_of, pieces_of

# Rows of a list run at once where no batch size is asked for.
_BATCH_SIZE = 8


class GeneratingPipeline(Pipeline):
    """A pipeline that calls ``model.generate``.

    A call's generation settings win over the constructor's (which are dropped where the call passes a
    ``generation_config``), those over the model's generation_config.json, and that over the task's defaults. The
    forward parameters are the arguments of ``generate``, with ``seed`` and ``item_indices``.
    """

    _pipeline_calls_generate: ClassVar[bool] = True
    # Settings of the task that hold where neither the user nor the model's generation_config.json sets them.
    _default_generation: ClassVar[Mapping[str, Any]] = {}

    def stream(self, inputs: Any, **parameters: Any) -> Iterator[str]:
        """Answers one item in pieces of text, which come as they are generated.

            for piece in pipe.stream("Once upon a time", max_new_tokens=100):
                print(piece, end="", flush=True)

        Joined, the pieces are the text that a call with the same arguments gives; of a chat, the new text. Leaving the
        loop ends the generation. With beams the answer is known at the end only, and comes in one piece.

        Args:
            inputs: one item, such as a prompt or a chat.
            **parameters: as of a call, but ``streamer``; for one sequence of text.

        Raises:
            TypeError: there are several items, or one of the wrong kind.
            ValueError: a parameter is unknown, wrong, or asks for what is no text. What `generate` raises comes with
                the first piece.
        """
        return pieces_of(self._planned(inputs, parameters))

    def astream(self, inputs: Any, **parameters: Any) -> AsyncIterator[str]:
        """The same as `stream` for coroutines: ``async for piece in pipe.astream(...)``."""
        return async_pieces_of(self._planned(inputs, parameters))

    def _planned(self, inputs: Any, parameters: Mapping[str, Any]) -> StreamPlan:
        if parameters.get("streamer") is not None:
            raise ValueError("stream has a streamer of its own; leave streamer= out, or call the pipeline with it.")
        arranged = self.arrange(inputs)
        if arranged.kind != "one":
            raise TypeError(f"stream takes one item, not a {type(inputs).__name__} of them; call it for each.")
        item = self.check_item(next(iter(arranged.items)), "inputs")
        run = {name: parameters[name] for name in ("batch_size", "item_offset") if name in parameters}
        own = {name: value for name, value in parameters.items() if name not in run}
        self._drop_ignored(own)
        settled = self._call_parameters(dict(own))
        given = self._given_settings(settled[1])
        count, beams = (given.get(name) or 1 for name in ("num_return_sequences", "num_beams"))
        if count > 1:
            raise ValueError(f"stream gives one text, but num_return_sequences={count}; set it to 1.")
        if beams > 1:
            info_once(f"stream with num_beams={beams} gives the answer in one piece; set num_beams=1 for more.")
        # The seed is drawn here, once, and not again when the generation starts.
        return self._stream_plan(item, {**own, **run, "seed": settled[1]["seed"]}, settled, beams > 1)

    def _stream_plan(self, item: Any, parameters: dict[str, Any], settled: Parameters, whole: bool) -> StreamPlan:
        """Returns how an item's answer is streamed.

        Args:
            item: as `check_item` gives it.
            parameters: of the call.
            settled: what they amount to.
            whole: the answer comes in one piece.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define _stream_plan.")

    def _initial_parameters(self, parameters: dict[str, Any]) -> Parameters:
        # Among the constructor's defaults max_length is a setting of generate only; a call's goes to the tokenizer too.
        names = FIELDS | {"generation_config"}
        self._generation_settings = {name: parameters.pop(name) for name in names & parameters.keys()}
        return super()._initial_parameters(parameters)

    def _call_parameters(self, parameters: dict[str, Any]) -> Parameters:
        preprocess, forward, postprocess = super()._call_parameters(parameters)
        forward = self._generate_arguments(forward)
        if forward.get("seed") is None:
            # Once a call, so that all its rows are drawn from one seed whatever the batches.
            forward["seed"] = next_seed()
        return preprocess, forward, postprocess

    def _generate_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arguments of ``generate`` with the constructor's settings and the task's defaults under them."""
        if "generation_config" not in arguments:
            arguments = {**self._generation_settings, **arguments}
        if arguments.get("assistant_tokenizer") is not None:
            arguments = {"tokenizer": self.tokenizer, **arguments}
        config = arguments.get("generation_config")
        if config is not None and not isinstance(config, GenerationConfig):
            raise TypeError(f"generation_config= takes a GenerationConfig, not {type(config).__name__}.")
        given = self._given_settings(arguments)
        added = {name: value for name, value in self._task_settings(arguments).items() if name not in given}
        if "max_length" in given:
            # max_new_tokens wins over max_length, so a default of it would undo what was set.
            added.pop("max_new_tokens", None)
        if not {**added, **given}.get("do_sample"):
            added = {name: value for name, value in added.items() if name not in SAMPLING_ONLY}
        if config is None:
            return {**arguments, **added}
        config = copy.deepcopy(config)
        config.update(**added)
        return {**arguments, "generation_config": config}

    def _default_batch_size(self, arranged: Inputs, forward: Mapping[str, Any]) -> int:
        return _BATCH_SIZE if arranged.kind != "one" and arranged.at_hand else 1

    def _given_settings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings of a call of ``generate`` that do not come from its global defaults."""
        given: dict[str, Any] = {}
        for config in (getattr(self.model, "generation_config", None), arguments.get("generation_config")):
            given.update(config.settings() if config is not None else {})
        return {**given, **{name: value for name, value in arguments.items() if name in FIELDS}}

    def _task_settings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings that hold where a call of ``generate`` and the model leave them open."""
        pad = getattr(self.tokenizer, "pad_token_id", None)
        return {**self._default_generation, **({} if pad is None else {"pad_token_id": pad})}

    def _check_arguments(self, arguments: Mapping[str, Any], own: frozenset[str]) -> None:
        """Checks that everything left of a call's parameters is an argument of ``generate``.

        Raises:
            ValueError: one is not; ``own`` names the pipeline's parameters, which may be what was meant.
        """
        known = FIELDS.union(GENERATE_ARGUMENTS, NOT_SUPPORTED_ARGUMENTS)
        for name in arguments:
            if name in ("input_ids", "attention_mask", "item_indices"):
                raise ValueError(f"{name}= is made by {self._named} and cannot be passed to it.")
            if name not in known:
                hint = nearest(name, known | own | {"batch_size", "item_offset"})
                raise ValueError(f"{name!r} is neither a parameter of {self._named} nor of generate.{hint}")
