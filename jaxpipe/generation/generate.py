"""`generate`: the host's side of generation, around the two jitted functions of `loop`."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxpipe.common.outputs import ModelOutput
from jaxpipe.common.random import next_seed
from jaxpipe.generation.buckets import batch_bucket, cache_bucket, length_bucket
from jaxpipe.generation.config import GenerationConfig, resolve
from jaxpipe.generation.inputs import Prompts, check_prompts
from jaxpipe.generation.loop import Choice, DecodeState, make_decode, make_prefill
from jaxpipe.generation.processors import processors_for
from jaxpipe.generation.sampling import row_keys
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.stopping import MaxTime, StoppingCriterion, StopStrings, eos_array, stopped_by
from jaxpipe.generation.streamers import BaseStreamer
from jaxpipe.models.config import ModelConfig
from jaxpipe.nn.functional import Functional, Leaves
from jaxpipe.sharding.mesh import batch_sharding, data_degree, use_mesh


class GenerateOutput(ModelOutput):
    """Of `generate` with ``return_dict_in_generate``: ``sequences`` (B, prompt + new) int32, and one (B, V)
    float32 array for each new token of ``scores`` (processed) and ``logits`` (as the model gave them).
    """

    sequences: jax.Array
    scores: tuple[np.ndarray, ...] | None = None
    logits: tuple[np.ndarray, ...] | None = None


@dataclass(frozen=True)
class HostStops:
    """What ends rows on the host, which reads every token for it.

    Attributes:
        strings: finds stop strings, or None.
        criteria: the user's, and time.
    """

    strings: StopStrings | None
    criteria: tuple[StoppingCriterion, ...]

    def __bool__(self) -> bool:
        return self.strings is not None or bool(self.criteria)

    def stopped(self, sequences: np.ndarray, rows: Sequence[np.ndarray], new: int) -> np.ndarray:
        """Returns which rows end with the last token.

        Args:
            sequences: (B, prompt + new) as the user sees them.
            rows: each row's prompt without padding and its new tokens.
            new: number of new tokens.
        """
        done = stopped_by(self.criteria, sequences) if self.criteria else np.zeros(len(rows), bool)
        if self.strings is not None:
            for i, row in enumerate(rows):
                done[i] |= self.strings.first_stop(row.tolist(), len(row) - new, new - 1) is not None
        return done


class Generator:
    """Generates with one model; its executables are kept between calls.

    Args:
        functional: the model taken apart.
        leaves: its weights.
        config: its configuration, for the ranges of ids and positions.
    """

    def __init__(self, functional: Functional, leaves: Leaves, config: ModelConfig):
        self._functional, self._leaves, self._config = functional, leaves, config
        self.prefill = make_prefill(functional)
        self.decode = make_decode(functional)

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
        seed: int | None = None,
        item_indices: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> jax.Array | GenerateOutput:
        """Continues prompts.

        Args:
            input_ids: (B, T) ints, padded on either side; None starts from the BOS token.
            attention_mask: (B, T), 0 at padding; None infers it where padding has a token of its own.
            defaults: the model's settings.
            generation_config: settings of this call; keyword arguments go over it.
            streamer: is given the prompt, then every token as it comes; for one row.
            tokenizer: needed by ``stop_strings``.
            stopping_criteria: asked after every token.
            seed: fixes what is drawn; None draws afresh, see `set_seed`.
            item_indices: (B,) indices of the rows in the user's whole input, which the draws depend on;
                0 to B - 1 if None.
            kwargs: settings of `GenerationConfig`.

        Returns:
            (B, T + new) int32, rows that ended filled with the pad token; or a `GenerateOutput`.

        Raises:
            ValueError: an argument is unknown, out of range, or asks for what is not supported.
        """
        prompts = self.prompts(input_ids, attention_mask, defaults, generation_config, kwargs)
        max_positions = getattr(self._config, "max_position_embeddings", None)
        settled = resolve(
            generation_config, defaults, kwargs, prompt_length=prompts.ids.shape[1], max_positions=max_positions
        )
        prompts.check_room(settled.max_new_tokens, self._config.longest_input(), self._config.model_type)
        if streamer is not None and len(prompts.rows) * settled.num_return_sequences > 1:
            raise ValueError(
                f"streamer= takes one row, but there are {len(prompts.rows)} prompts with "
                f"num_return_sequences={settled.num_return_sequences}."
            )
        criteria = tuple(stopping_criteria or ())
        if settled.max_time is not None:
            criteria += (MaxTime(settled.max_time),)
        strings = StopStrings(tokenizer, settled.stop_strings) if settled.stop_strings else None
        items = prompts.item_indices(item_indices)
        choice_seed = seed if seed is not None else next_seed()
        with use_mesh(self._functional.mesh):
            run = _Run(self, prompts.repeated(settled.num_return_sequences), settled, items, choice_seed)
            new = run.to_end() if streamer is None and not criteria and strings is None else None
            if new is None:
                new = run.step_by_step(streamer, HostStops(strings, criteria))
        return run.output(new)

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
                    run = _Run(self, prompts.repeated(settled.num_return_sequences), settled, range(batch), 0)
                    jax.block_until_ready(run.state)
                    middle = time.perf_counter()
                    jax.block_until_ready(run.advance(0))
                    end = time.perf_counter()
                seconds[f"prefill {run.rows}x{length_bucket(length)}"] = middle - start
                seconds[f"decode {run.rows}x{run.slots}"] = end - middle
        return seconds


class _Run:
    """One call of `generate`: prefilled when made, then decoded to the end or step by step."""

    def __init__(self, generator: Generator, prompts: Prompts, settled: Settled, items: Sequence[int], seed: int):
        self._generator, self._prompts, self._settled = generator, prompts, settled
        functional = generator._functional
        count = len(prompts.rows)
        self.rows = batch_bucket(count, data_degree(functional.mesh))
        self.width = generator.width(prompts)
        self.slots = cache_bucket(self.width + settled.max_new_tokens)
        packed = np.zeros((self.rows, self.width), np.int32)
        lengths = np.ones((self.rows,), np.int32)
        for i, row in enumerate(prompts.rows):
            packed[i, : len(row)] = row
            lengths[i] = len(row)
        record = tuple(name for name in ("scores", "logits") if self._records(name))
        n = settled.num_return_sequences
        fill = self.rows - count

        def place(x: Any) -> jax.Array:
            return jax.device_put(x, batch_sharding(functional.mesh, self.rows, x.ndim))

        keys = None
        if settled.do_sample:
            item = np.pad(np.repeat(np.asarray(items), n), (0, fill))
            keys = place(row_keys(seed, item, np.pad(np.tile(np.arange(n), count // n), (0, fill))))
        self.pad_id = settled.pad_token_id if settled.pad_token_id is not None else 0
        self._choice = Choice(
            processors_for(settled, generator._config.vocab_size),
            keys,
            eos_array(settled.eos_token_ids),
            np.int32(self.pad_id),
            settled.do_sample,
            record,
        )
        recorded = length_bucket(settled.max_new_tokens) if record else 0
        idle = np.arange(self.rows) >= count
        arrays = [place(x) for x in (*generator.inputs(prompts, self.rows), packed, lengths, idle)]
        self.state: DecodeState = generator.prefill(generator._leaves, *arrays, self._choice, self.slots, recorded)

    def _records(self, name: str) -> bool:
        return self._settled.return_dict_in_generate and getattr(self._settled, f"output_{name}")

    def advance(self, steps: int) -> jax.Array:
        """Decodes up to `steps` tokens more; returns the last tokens (B,)."""
        self.state, last = self._generator.decode(self._generator._leaves, self.state, self._choice, np.int32(steps))
        return last

    def to_end(self) -> np.ndarray:
        """Decodes all tokens in one dispatch; returns the new tokens (B, new)."""
        if self._settled.max_new_tokens > 1:
            self.advance(self._settled.max_new_tokens - 1)
        steps = int(self.state.step)
        return np.asarray(self.state.tokens)[: len(self._prompts.rows), self.width : self.width + steps]

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
        """Joins prompts and new tokens (B, new) into what `generate` returns."""
        mesh = self._generator._functional.mesh
        sequences = jax.device_put(np.concatenate([self._prompts.ids, new], axis=1), mesh.devices.flat[0])
        if not self._settled.return_dict_in_generate:
            return sequences
        recorded = {
            name: tuple(np.asarray(values)[: len(new), i] for i in range(new.shape[1]))
            for name, values in self.state.recorded.items()
        }
        return GenerateOutput(sequences=sequences, **recorded)
