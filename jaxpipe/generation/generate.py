"""`generate`: the host's side of generation, around the two jitted functions of `loop`."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxpipe.common.outputs import ModelOutput
from jaxpipe.common.random import next_seed
from jaxpipe.generation.beam import make_beams
from jaxpipe.generation.beam_run import BeamRun, GenerateBeamOutput
from jaxpipe.generation.buckets import batch_bucket, cache_bucket, length_bucket
from jaxpipe.generation.config import GenerationConfig, resolve
from jaxpipe.generation.inputs import Prompts, check_prompts
from jaxpipe.generation.loop import Choice, DecodeState, make_decode, make_prefill, next_logits, read_prompts
from jaxpipe.generation.packing import Packed, pack, place_rows
from jaxpipe.generation.processors import check_logits
from jaxpipe.generation.processors_user import NOTHING, Given, given_processors, processors_of_call
from jaxpipe.generation.sampling import row_keys
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.stopping import HostStops, MaxTime, StoppingCriterion, StopStrings, eos_array
from jaxpipe.generation.streamers import BaseStreamer
from jaxpipe.models.config import ModelConfig
from jaxpipe.nn.functional import Functional, Leaves
from jaxpipe.sharding.mesh import data_degree, use_mesh


class GenerateOutput(ModelOutput):
    """Of `generate` with ``return_dict_in_generate``: ``sequences`` (B, prompt + new) int32, and one (B, V)
    float32 array for each new token of ``scores`` (processed) and ``logits`` (as the model gave them).
    """

    sequences: jax.Array
    scores: tuple[np.ndarray, ...] | None = None
    logits: tuple[np.ndarray, ...] | None = None


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
        self._functional, self._leaves, self._config = functional, leaves, config
        self.prefill = make_prefill(functional, read)
        self.decode = make_decode(functional, forward)
        self.beams = make_beams(functional, read, forward)

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
        seed: int | None = None,
        item_indices: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> jax.Array | GenerateOutput | GenerateBeamOutput:
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
            seed: fixes what is drawn; None draws afresh, see `set_seed`.
            item_indices: (B,) indices of the rows in the user's whole input, which the draws depend on;
                0 to B - 1 if None.
            kwargs: settings of `GenerationConfig`.

        Returns:
            (B, T + new) int32, rows that ended filled with the pad token; or a `GenerateOutput`, with beams a
            `GenerateBeamOutput`.

        Raises:
            ValueError: an argument is unknown, out of range, or asks for what is not supported.
        """
        prompts = self.prompts(input_ids, attention_mask, defaults, generation_config, kwargs)
        max_positions = getattr(self._config, "max_position_embeddings", None)
        settled = resolve(
            generation_config, defaults, kwargs, prompt_length=prompts.ids.shape[1], max_positions=max_positions
        )
        prompts.check_room(settled.max_new_tokens, self._config.longest_input(), self._config.model_type)
        if streamer is not None:
            _check_streamed(len(prompts.rows), settled)
        criteria = tuple(stopping_criteria or ())
        if settled.max_time is not None:
            criteria += (MaxTime(settled.max_time),)
        strings = StopStrings(tokenizer, settled.stop_strings) if settled.stop_strings else None
        items = prompts.item_indices(item_indices)
        choice_seed = seed if seed is not None else next_seed()
        stops = HostStops(strings, criteria)
        with use_mesh(self._functional.mesh), given_processors(logits_processor, prefix_allowed_tokens_fn) as given:
            if settled.num_beams > 1:
                search = self._search(prompts, settled, items, choice_seed, given)
                search.step_by_step(stops) if stops else search.to_end()
                return search.output()
            run = _Run(self, prompts.repeated(settled.num_return_sequences), settled, items, choice_seed, given)
            new = run.to_end() if streamer is None and not stops else run.step_by_step(streamer, stops)
        return run.output(new)

    def _search(
        self, prompts: Prompts, settled: Settled, items: Sequence[int], seed: int, given: Given = NOTHING
    ) -> BeamRun:
        packed = self.pack(prompts, settled.max_new_tokens)
        return BeamRun(
            self.beams,
            self._leaves,
            packed,
            settled,
            vocab_size=self._config.vocab_size,
            processors=processors_of_call(settled, packed, self._config.vocab_size, self._functional.mesh, given),
            items=items,
            seed=seed,
            mesh=self._functional.mesh,
        )

    def pack(self, prompts: Prompts, max_new_tokens: int) -> Packed:
        """Pads prompts to their buckets, and places them."""
        mesh = self._functional.mesh
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
        return check_prompts(input_ids, attention_mask, self._config.limits(), defaults, generation_config, kwargs)

    def blank_prompts(self, batch: int, length: int, defaults: GenerationConfig) -> Prompts:
        """Makes prompts of a shape, to compile for."""
        return Prompts.of(np.zeros((batch, length), np.int32), None)

    def inputs(self, prompts: Prompts, rows: int) -> tuple[np.ndarray, ...]:
        """What the prefill takes beside the prompts, padded to a number of rows."""
        return ()

    def width(self, prompts: Prompts) -> int:
        """Tokens to which the prompts are padded."""
        return length_bucket(max(map(len, prompts.rows)))

    def warmup(
        self,
        *,
        defaults: GenerationConfig,
        batch_sizes: Sequence[int] = (1,),
        prompt_lengths: Sequence[int] = (128,),
        max_new_tokens: int = 256,
        **kwargs: Any,
    ) -> dict[str, float]:
        """Compiles what generation from such prompts runs, before the first request.

        Args:
            defaults: the model's settings.
            batch_sizes: numbers of rows.
            prompt_lengths: in tokens.
            max_new_tokens: of the calls to come; the cache's bucket depends on it.
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
                with use_mesh(self._functional.mesh):
                    start = time.perf_counter()
                    if settled.num_beams > 1:
                        run = self._search(prompts, settled, range(batch), 0)
                    else:
                        run = _Run(self, prompts.repeated(settled.num_return_sequences), settled, range(batch), 0)
                    jax.block_until_ready(run.state)
                    middle = time.perf_counter()
                    run.compile()
                    end = time.perf_counter()
                seconds[f"prefill {run.packed.rows}x{length_bucket(length)}"] = middle - start
                seconds[f"decode {run.packed.rows}x{run.packed.slots}"] = end - middle
        return seconds


class _Run:
    """One call of `generate`: prefilled when made, then decoded to the end or step by step."""

    def __init__(
        self,
        generator: Generator,
        prompts: Prompts,
        settled: Settled,
        items: Sequence[int],
        seed: int,
        given: Given = NOTHING,
    ):
        self._generator, self._prompts, self._settled = generator, prompts, settled
        self.packed = generator.pack(prompts, settled.max_new_tokens)
        record = tuple(name for name in ("scores", "logits") if self._records(name))
        n, count = settled.num_return_sequences, len(prompts.rows)
        keys = None
        if settled.do_sample:
            fill = self.packed.rows - count
            item = np.pad(np.repeat(np.asarray(items), n), (0, fill))
            number = np.pad(np.tile(np.arange(n), count // n), (0, fill))
            keys = place_rows(row_keys(seed, item, number), generator._functional.mesh)
        self.pad_id = settled.pad_token_id if settled.pad_token_id is not None else 0
        self._choice = Choice(
            processors_of_call(settled, self.packed, generator._config.vocab_size, generator._functional.mesh, given),
            keys,
            eos_array(settled.eos_token_ids),
            np.int32(self.pad_id),
            settled.do_sample,
            record,
        )
        recorded = length_bucket(settled.max_new_tokens) if record else 0
        self.state: DecodeState = generator.prefill(
            generator._leaves, *self.packed.arrays, self._choice, self.packed.slots, recorded
        )

    def _records(self, name: str) -> bool:
        return self._settled.return_dict_in_generate and getattr(self._settled, f"output_{name}")

    def advance(self, steps: int) -> jax.Array:
        """Decodes up to `steps` tokens more; returns the last tokens (B,)."""
        self.state, last = self._generator.decode(self._generator._leaves, self.state, self._choice, np.int32(steps))
        return last

    def compile(self) -> None:
        """Compiles the decode, and runs it for no step."""
        jax.block_until_ready(self.advance(0))

    def to_end(self) -> np.ndarray:
        """Decodes all tokens in one dispatch; returns the new tokens (B, new)."""
        if self._settled.max_new_tokens > 1:
            self.advance(self._settled.max_new_tokens - 1)
        steps = int(self.state.step)
        width = self.packed.width
        return np.asarray(self.state.tokens)[: len(self._prompts.rows), width : width + steps]

    def _tokens(self) -> Iterator[np.ndarray]:
        """Yields each step's tokens (B,); the next step runs while the host works on this one's."""
        count = len(self._prompts.rows)
        last: Any = np.asarray(self.state.current)  # read before the state is donated to the next step
        for step in range(self._settled.max_new_tokens):
            following = self.advance(1) if step + 1 < self._settled.max_new_tokens else None
            yield np.asarray(last)[:count]
            last = following

    def step_by_step(self, streamer: BaseStreamer | None, stops: HostStops) -> np.ndarray:
        """Decodes with the host reading every token; returns the new tokens (B, new)."""
        prompts = self._prompts
        if streamer is not None:
            streamer.put(prompts.ids)
        try:
            return self._answer(streamer, stops)
        finally:
            if streamer is not None:
                streamer.end()  # also after an error, so that nobody waits for more

    def _answer(self, streamer: BaseStreamer | None, stops: HostStops) -> np.ndarray:
        prompts = self._prompts
        done = np.zeros(len(prompts.rows), bool)
        new = np.zeros((len(prompts.rows), 0), np.int32)
        for tokens in self._tokens():
            tokens = np.where(done, self.pad_id, tokens).astype(np.int32)
            new = np.concatenate([new, tokens[:, None]], axis=1)
            if streamer is not None:
                streamer.put(tokens)
            done |= np.isin(tokens, self._settled.eos_token_ids)
            if stops:
                rows = [np.concatenate([row, answer]) for row, answer in zip(prompts.rows, new, strict=True)]
                done |= stops.stopped(np.concatenate([prompts.ids, new], axis=1), rows, new.shape[1])
            if done.all():
                break
        return new

    def output(self, new: np.ndarray) -> jax.Array | GenerateOutput:
        """Joins prompts and new tokens (B, new) into what `generate` returns.

        Raises:
            ValueError: the logits of a row were NaN.
        """
        broken = np.asarray(self.state.broken)[: len(new)]
        check_logits(np.logical_or.reduce(broken.reshape(-1, self._settled.num_return_sequences), axis=1))
        mesh = self._generator._functional.mesh
        sequences = jax.device_put(np.concatenate([self._prompts.ids, new], axis=1), mesh.devices.flat[0])
        if not self._settled.return_dict_in_generate:
            return sequences
        recorded = {
            name: tuple(np.asarray(values)[: len(new), i] for i in range(new.shape[1]))
            for name, values in self.state.recorded.items()
        }
        return GenerateOutput(sequences=sequences, **recorded)


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
