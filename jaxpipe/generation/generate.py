"""`generate`: the host's side of generation, around the two jitted functions of `loop`."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxpipe.common.random import next_seed
from jaxpipe.generation.assisted import Assistant
from jaxpipe.generation.beam_run import BeamRun
from jaxpipe.generation.buckets import batch_bucket, cache_bucket, length_bucket
from jaxpipe.generation.chunked import Reader
from jaxpipe.generation.config import GenerationConfig, resolve
from jaxpipe.generation.continuing import Continuation
from jaxpipe.generation.guidance import NEGATIVE_PROMPTS, guide
from jaxpipe.generation.inputs import Prompts, check_prompts
from jaxpipe.generation.kept import LastConversation, PastKeyValues
from jaxpipe.generation.loop import next_logits, read_prompts
from jaxpipe.generation.outputs import GenerateOutput
from jaxpipe.generation.packing import Packed, pack
from jaxpipe.generation.prefix_cache import PrefixCache
from jaxpipe.generation.processors_user import NOTHING, Given, given_processors, processors_of_call
from jaxpipe.generation.recording import make_recording, recorder_of
from jaxpipe.generation.run import Run, SpeculativeRun
from jaxpipe.generation.searches import search_of
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.speculative_checks import check_speculation
from jaxpipe.generation.speculative_run import Speculation, Speculator, make_speculation
from jaxpipe.generation.stopping import HostStops, MaxTime, StoppingCriterion, StopStrings
from jaxpipe.generation.strategies import Strategies
from jaxpipe.generation.streamers import BaseStreamer
from jaxpipe.models.config import ModelConfig
from jaxpipe.nn.functional import Functional, Leaves
from jaxpipe.sharding.mesh import data_degree, use_mesh


class Generator:
    """Generates with one model; its executables are kept between calls.

    Args:
        functional: the model taken apart.
        leaves: its weights.
        config: its configuration, for the ranges of ids and positions.
        read: calls the model on prompts, as `read_prompts` does.
        forward: calls the model on one more token of every row, as `next_logits` does.
    """

    def __init__(
        self,
        functional: Functional,
        leaves: Leaves,
        config: ModelConfig,
        read: Callable[..., Any] = read_prompts,
        forward: Callable[..., Any] = next_logits,
    ):
        self.functional, self.leaves, self.config = functional, leaves, config
        self.strategies = Strategies(functional, leaves, config, read, forward)
        self._recording = make_recording(functional, read, forward)
        self._calls = read, forward
        self.reader: Reader | None = Reader(functional, leaves, config)
        self._speculations: dict[int, Speculation] = {}
        self.prefill, self.decode, self.beams = self.strategies.plain[:3]

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any,
        *,
        defaults: GenerationConfig,
        generation_config: GenerationConfig | None = None,
        streamer: BaseStreamer | None = None,
        tokenizer: Any = None,
        stopping_criteria: Sequence[StoppingCriterion] | None = None,
        logits_processor: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        prefix_allowed_tokens_fn: Callable[[int, np.ndarray], Any] | None = None,
        assistant_model: Assistant | None = None,
        assistant_tokenizer: Any = None,
        seed: int | None = None,
        item_indices: Sequence[int] | None = None,
        past_key_values: PastKeyValues | LastConversation | None = None,
        prefix_cache: PrefixCache | None = None,
        **kwargs: Any,
    ) -> jax.Array | GenerateOutput:
        """Continues prompts.

        Args:
            input_ids: (B, T) ints, padded on either side; None starts from the BOS token.
            attention_mask: (B, T), 0 at padding; None infers it where padding has a token of its own.
            defaults: the model's settings.
            generation_config: settings of this call; keyword arguments go over it.
            streamer: is given the prompt, then every token as it comes; for one row without beams.
            tokenizer: needed by ``stop_strings``.
            stopping_criteria: asked after every token; with beams for every candidate, before it is chosen.
            logits_processor: functions ``(input_ids (R, S) int32, scores (R, V) float32) -> (R, V)`` of jax arrays,
                traced once; the tokens so far end at the last column, and before them stands V, which is no token.
            prefix_allowed_tokens_fn: ``(batch_id, input_ids) -> token ids`` that may come next, asked on the host
                for each row in each step, with the row's tokens so far as numpy ints without padding.
            assistant_model: proposes tokens, of which as many are kept as the model itself would choose; a loaded
                model in `PreTrainedModel.generate`.
            assistant_tokenizer: shows, with ``tokenizer``, that vocabularies of different sizes are one.
            seed: fixes what is drawn; None draws afresh, see `set_seed`.
            item_indices: (B,) indices of the rows in the user's whole input, which the draws depend on;
                0 to B - 1 if None.
            past_key_values: what an earlier call returned as such; ``input_ids`` begin with the tokens that it holds,
                and the rest alone is read.
            prefix_cache: where beginnings of prompts are looked up and stored.
            kwargs: settings of `GenerationConfig`; with ``guidance_scale`` also ``negative_prompt_ids`` (B, N) ints,
                each prompt's last token if None, and ``negative_prompt_attention_mask`` (B, N).

        Returns:
            (B, T + new) int32, rows that ended filled with the pad token; or one of the classes of `outputs`.

        Raises:
            ValueError: an argument is unknown, out of range, or asks for what is not supported.
        """
        negative_ids, negative_mask = (kwargs.pop(name, None) for name in NEGATIVE_PROMPTS)
        prompts = self.prompts(input_ids, attention_mask, defaults, generation_config, kwargs)
        max_positions = getattr(self.config, "max_position_embeddings", None)
        settled = resolve(
            generation_config, defaults, kwargs, prompt_length=prompts.ids.shape[1], max_positions=max_positions
        )
        prompts = guide(prompts, negative_ids, negative_mask, self.config.limits(), settled)
        self.strategies.check(settled, prompts)
        speculative = self._speculates(settled, prompts, assistant_model, (tokenizer, assistant_tokenizer))
        recorder = recorder_of(self._recording, self.config, settled, self.leaves, alone=not speculative)
        engine: Generator = self if recorder is None else recorder.engine(self)
        prompts.check_room(settled.max_new_tokens, self.config.longest_input(), self.config.model_type)
        if streamer is not None:
            _check_streamed(len(prompts.rows), settled)
        criteria = tuple(stopping_criteria or ())
        if settled.max_time is not None:
            criteria += (MaxTime(settled.max_time),)
        strings = StopStrings(tokenizer, settled.stop_strings) if settled.stop_strings else None
        items = prompts.item_indices(item_indices)
        choice_seed = seed if seed is not None else next_seed()
        stops = HostStops(strings, criteria)
        plain = recorder is None and not speculative
        held = self._continuation(settled, past_key_values, prefix_cache, plain=plain)
        prompts = held.prompts(prompts)
        with use_mesh(self.functional.mesh), given_processors(logits_processor, prefix_allowed_tokens_fn) as given:
            if settled.num_beams > 1:
                search = engine._search(prompts, settled, items, choice_seed, given)
                search.step_by_step(stops) if stops or recorder else search.to_end()
                output = held.keep_prompts(search.output(), search, prompts)
                return output if recorder is None else recorder.fill(output, prompts)
            rows = prompts.repeated(settled.num_return_sequences)
            if speculative:
                run = SpeculativeRun(self, rows, settled, items, choice_seed, given, assistant=assistant_model)
            else:
                run = Run(engine, rows, settled, items, choice_seed, given)
            at_once = streamer is None and not stops and recorder is None
            new = run.to_end() if at_once else run.step_by_step(streamer, stops)
        output = held.keep(run.output(new), run, rows)
        return output if recorder is None else recorder.fill(output, prompts)

    def _continuation(self, settled: Settled, past: Any = None, prefixes: Any = None, *, plain: bool) -> Continuation:
        plain = plain and self.strategies.of(settled) is self.strategies.plain
        return Continuation(self.reader, self.config.model_type, settled, past, prefixes, plain=plain)

    def _speculates(
        self, settled: Settled, prompts: Prompts, assistant: Assistant | None, tokenizers: tuple[Any, Any]
    ) -> bool:
        model = self.functional, self.leaves, self.config
        return check_speculation(settled, prompts, *model, assistant, tokenizers)

    def as_assistant(self, defaults: GenerationConfig, name: str) -> Assistant:
        """Returns what `generate` of another model takes as ``assistant_model``."""
        return Assistant(self.functional, self.leaves, self.config, *self._calls, defaults, name)

    def speculator(self, settled: Settled, assistant: Assistant | None) -> Speculator:
        """Returns the speculative decoding of one call, with an assistant or by prompt lookup."""
        key = 0 if assistant is None else id(assistant.functional)  # which the functions hold, so that it stays its own
        if key not in self._speculations:
            own = None if assistant is None else assistant._replace(leaves=[])
            vocab_size = self.config.vocab_size
            self._speculations[key] = make_speculation(self.functional, self._calls[1], own, vocab_size)
        return Speculator(self._speculations[key], self.leaves, assistant, settled)

    def _search(
        self, prompts: Prompts, settled: Settled, items: Sequence[int], seed: int, given: Given = NOTHING
    ) -> BeamRun:
        packed = self.pack(prompts, settled.max_new_tokens)
        return search_of(self.strategies.of(settled), settled)(
            self.leaves,
            packed,
            settled,
            vocab_size=self.config.vocab_size,
            processors=processors_of_call(settled, packed, self.config.vocab_size, self.functional.mesh, given),
            items=items,
            seed=seed,
            mesh=self.functional.mesh,
        )

    def pack(self, prompts: Prompts, max_new_tokens: int) -> Packed:
        """Pads prompts to their buckets, and places them; reads those that are read in parts."""
        if prompts.reading is not None and self.reader is not None:
            packed = self.reader.pack(prompts, max_new_tokens, prompts.reading)
            if packed is not None:
                return packed
        mesh = self.functional.mesh
        rows, width = batch_bucket(len(prompts.rows), data_degree(mesh)), self.width(prompts)
        slots = cache_bucket(width + max_new_tokens)
        return pack(prompts, self.inputs(prompts, rows), rows=rows, width=width, slots=slots, mesh=mesh)

    def prompts(
        self,
        input_ids: Any,
        attention_mask: Any,
        defaults: GenerationConfig,
        generation_config: GenerationConfig | None,
        kwargs: dict[str, Any],
    ) -> Prompts:
        """Checks the arrays of a call; those among `kwargs` are taken out of it."""
        return check_prompts(input_ids, attention_mask, self.config.limits(), defaults, generation_config, kwargs)

    def blank_prompts(self, batch: int, length: int, defaults: GenerationConfig) -> Prompts:
        """Makes prompts of a shape, to compile for."""
        return Prompts.of(np.zeros((batch, length), np.int32), None)

    def inputs(self, prompts: Prompts, rows: int) -> tuple[np.ndarray, ...]:
        """What the prefill takes beside the prompts, padded to a number of rows."""
        return prompts.inputs(rows, self.width(prompts))

    def width(self, prompts: Prompts) -> int:
        """Tokens to which the prompts are padded."""
        return length_bucket(prompts.longest())

    def warmup(
        self,
        *,
        defaults: GenerationConfig,
        batch_sizes: Sequence[int] = (1,),
        prompt_lengths: Sequence[int] = (128,),
        max_new_tokens: int = 256,
        streamed: bool = False,
        assistant_model: Assistant | None = None,
        **kwargs: Any,
    ) -> dict[str, float]:
        """Compiles what generation from such prompts runs, before the first request.

        Args:
            defaults: the model's settings.
            batch_sizes: numbers of rows.
            prompt_lengths: in tokens.
            max_new_tokens: of the calls to come; the cache's bucket depends on it.
            streamed: the calls to come have a streamer, stop strings or stopping criteria; without beams.
            assistant_model: of the calls to come.
            kwargs: further settings, such as ``do_sample``.

        Returns:
            Seconds of each compilation, by name: ``{"prefill 1x128": 2.1, "decode 1x384": 1.9}``.
        """
        seconds: dict[str, float] = {}
        for batch in batch_sizes:
            for length in prompt_lengths:
                prompts = self.blank_prompts(batch, length, defaults)
                settings = {**kwargs, "max_new_tokens": max_new_tokens}
                settled = resolve(None, defaults, settings, prompt_length=prompts.ids.shape[1])
                prompts = guide(prompts, None, None, self.config.limits(), settled)
                self.strategies.check(settled, prompts)
                speculative = self._speculates(settled, prompts, assistant_model, (None, None))
                prompts = self._continuation(settled, plain=not speculative).prompts(prompts)
                with use_mesh(self.functional.mesh):
                    start = time.perf_counter()
                    if settled.num_beams > 1:
                        run = self._search(prompts, settled, range(batch), 0)
                    else:
                        rows, items = prompts.repeated(settled.num_return_sequences), range(batch)
                        if speculative:
                            run = SpeculativeRun(self, rows, settled, items, 0, assistant=assistant_model)
                        else:
                            run = Run(self, rows, settled, items, 0)
                    jax.block_until_ready(run.state)
                    middle = time.perf_counter()
                    seconds[f"prefill {run.packed.rows}x{length_bucket(length)}"] = middle - start
                    for slots in run.compile() if isinstance(run, BeamRun) else run.compile(streamed):
                        end = time.perf_counter()
                        seconds[f"decode {run.packed.rows}x{slots}"] = end - middle
                        middle = end
        return seconds


def _check_streamed(prompts: int, settled: Settled) -> None:
    if settled.num_beams > 1:
        raise ValueError(
            f"streamer= cannot be used with num_beams={settled.num_beams}: which tokens are chosen is known at the end "
            "only; set num_beams=1 or leave streamer= out."
        )
    if prompts * settled.num_return_sequences > 1:
        raise ValueError(
            f"streamer= takes one row, but there are {prompts} prompts with "
            f"num_return_sequences={settled.num_return_sequences}."
        )
