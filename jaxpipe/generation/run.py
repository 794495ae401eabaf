"""One call of `generate` without beams: its prefill, then its decode to the end or step by step."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.generation.assisted import Assistant
from jaxpipe.generation.buckets import length_bucket
from jaxpipe.generation.filled import Filled, begin
from jaxpipe.generation.growth import cache_sizes, grow
from jaxpipe.generation.inputs import Prompts
from jaxpipe.generation.loop import Answer, Choice, DecodeState, in_one_array
from jaxpipe.generation.outputs import GenerateOutput, output_class
from jaxpipe.generation.packing import Packed, constant, place_rows
from jaxpipe.generation.processors import check_logits
from jaxpipe.generation.processors_user import NOTHING, Given, processors_of_call, user_processors
from jaxpipe.generation.sampling import row_keys
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.speculative_run import Speculator
from jaxpipe.generation.stopping import HostStops, eos_array
from jaxpipe.generation.strategies import Strategies, contrast_of
from jaxpipe.generation.streamers import BaseStreamer
from jaxpipe.models.config import ModelConfig
from jaxpipe.nn.cache import CacheLayout
from jaxpipe.nn.functional import Functional, Leaves


class Engine(Protocol):
    """What a run needs of a `Generator`."""

    functional: Functional
    leaves: Leaves
    config: ModelConfig
    strategies: Strategies

    def pack(self, prompts: Prompts, max_new_tokens: int) -> Packed:
        """Pads and places prompts."""
        ...

    def speculator(self, settled: Settled, assistant: Assistant | None) -> Speculator:
        """Returns the speculative decoding of a call."""
        ...


class Run:
    """One call of `generate`: prefilled when made, then decoded to the end or step by step."""

    _ahead = 0  # tokens that a step writes beyond those that are kept

    def __init__(
        self,
        generator: Engine,
        prompts: Prompts,
        settled: Settled,
        items: Sequence[int],
        seed: int,
        given: Given = NOTHING,
    ):
        self._generator, self._prompts, self._settled = generator, prompts, settled
        self._broken: np.ndarray | None = None  # (B,), once it was read with the tokens
        self.packed = self._pack(given)
        record = tuple(name for name in ("scores", "logits") if self._records(name))
        n, count = settled.num_return_sequences, len(prompts.rows)
        keys, mesh = None, generator.functional.mesh
        if settled.do_sample:
            fill = self.packed.rows - count
            item = np.pad(np.repeat(np.asarray(items), n), (0, fill))
            number = np.pad(np.tile(np.arange(n), count // n), (0, fill))
            keys = place_rows(row_keys(seed, item, number), mesh)
        self.pad_id = settled.pad_token_id if settled.pad_token_id is not None else 0
        self._choice = Choice(
            processors_of_call(settled, self.packed, generator.config.vocab_size, mesh, given),
            keys,
            constant(tuple(eos_array(settled.eos_token_ids).tolist()), mesh),
            constant(self.pad_id, mesh),
            settled.do_sample,
            record,
            contrast_of(settled),
        )
        recorded = length_bucket(settled.max_new_tokens + self._ahead) if record else 0
        strategy = generator.strategies.of(settled)
        self._decode = strategy.decode
        self._sizes, layout = self._cache_sizes()
        inputs, ids, lengths, idle = self.packed.arrays
        rest = ids, lengths, idle, self._choice, self._sizes[0], recorded
        self.state: DecodeState
        if isinstance(inputs, Filled):
            self.state = begin(inputs, *rest)
        else:
            self.state = strategy.prefill(generator.leaves, inputs, *rest, layout)

    def _pack(self, given: Given) -> Packed:
        return self._generator.pack(self._prompts, self._settled.max_new_tokens)

    def _cache_sizes(self) -> tuple[tuple[int, ...], CacheLayout]:
        return cache_sizes(self.packed, self._settled)

    def _records(self, name: str) -> bool:
        return self._settled.return_dict_in_generate and getattr(self._settled, f"output_{name}")

    def advance(self, steps: int | None) -> jax.Array:
        """Decodes up to `steps` tokens more, or one; returns what stays readable, as `decode_steps` does."""
        count = None if steps is None else constant(steps, self._generator.functional.mesh)
        self.state, readable = self._decode(self._generator.leaves, self.state, self._choice, count)
        return readable

    def compile(self, streamed: bool = False) -> Iterator[int]:
        """Compiles the decode for every length that the cache may have, and runs it for no step, or for one in the
        form of calls that are `streamed`; yields the lengths.
        """
        for slots in self._sizes:
            self._grow(slots)
            jax.block_until_ready(self.advance(None if streamed else 0))
            yield slots

    def _grow(self, slots: int) -> None:
        if self.state.tokens.shape[1] < slots:
            self.state = grow(self.state, slots)

    def _room(self, slots: int) -> int:
        """New tokens that a cache has slots for, no more than are asked for."""
        return min(slots - self.packed.width, self._settled.max_new_tokens)

    def to_end(self) -> np.ndarray:
        """Decodes all tokens in one dispatch, or in one for each length of a growing cache; returns them (B, new)."""
        new, readable = 1, None  # the prefill's
        for slots in self._sizes:
            if readable is not None and self._settled.eos_token_ids and Answer.of(readable).done.all():
                break  # where rows can end, the host waits between two dispatches, lest it grow a cache for nothing
            self._grow(slots)
            room = self._room(slots)
            if room > new:
                readable = self.advance(room - new)
            new = room
        answer = Answer.of(in_one_array(self.state) if readable is None else readable)
        self._broken, width = answer.broken, self.packed.width
        return answer.tokens[: len(self._prompts.rows), width : width + answer.steps]

    def _tokens(self) -> Iterator[np.ndarray]:
        """Yields each step's tokens (B,); the next step runs while the host works on this one's."""
        count = len(self._prompts.rows)
        last: Any = jnp.copy(self.state.current)  # since the state is donated to the next step
        sizes = iter(self._sizes)
        room = self._room(next(sizes))
        for step in range(self._settled.max_new_tokens):
            if step + 1 == room < self._settled.max_new_tokens:
                self._grow(slots := next(sizes))
                room = self._room(slots)
            following = self.advance(None) if step + 1 < self._settled.max_new_tokens else None
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
        broken = np.asarray(self.state.broken if self._broken is None else self._broken)[: len(new)]
        check_logits(np.logical_or.reduce(broken.reshape(-1, self._settled.num_return_sequences), axis=1))
        mesh = self._generator.functional.mesh
        sequences = jax.device_put(np.concatenate([self._prompts.ids, new], axis=1), mesh.devices.flat[0])
        if not self._settled.return_dict_in_generate:
            return sequences
        recorded = {
            name: tuple(np.asarray(values)[: len(new), i] for i in range(new.shape[1]))
            for name, values in self.state.recorded.items()
        }
        made = output_class(beams=False, encoder_decoder=self._prompts.source_rows() is not None)
        return made(sequences=sequences, **recorded)


class SpeculativeRun(Run):
    """A run whose steps choose several tokens; see `speculative`."""

    def __init__(
        self,
        generator: Engine,
        prompts: Prompts,
        settled: Settled,
        items: Sequence[int],
        seed: int,
        given: Given = NOTHING,
        *,
        assistant: Assistant | None,
    ):
        self._speculator = generator.speculator(settled, assistant)
        self._ahead = self._speculator.rule.width
        super().__init__(generator, prompts, settled, items, seed, given)
        self._speculator.begin(self.state, self.packed, self._choice)
        self.state = self._speculator.state

    def _pack(self, given: Given) -> Packed:
        speculator, count = self._speculator, len(self._prompts.rows)
        packed = self._generator.pack(self._prompts, self._settled.max_new_tokens + speculator.spare(count))
        # Processors see all places of all rows at once.
        shape = packed.rows * speculator.rule.width, packed.slots
        user_processors(given.functions, shape, self._generator.config.vocab_size)
        return packed

    def _cache_sizes(self) -> tuple[tuple[int, ...], CacheLayout]:
        # A ring cannot go back.
        return (self.packed.slots,), CacheLayout(ring=False, stored=self._settled.cache_dtype)

    def compile(self, streamed: bool = False) -> Iterator[int]:
        """Compiles the decode, which streamed calls go through as well, and runs it for no step; yields the length of
        the cache.
        """
        jax.block_until_ready(self._speculator.advance(0))
        yield self.packed.slots

    def to_end(self) -> np.ndarray:
        """Decodes all tokens; returns the new tokens (B, new)."""
        return self._speculator.to_end(len(self._prompts.rows))

    def _tokens(self) -> Iterator[np.ndarray]:
        return self._speculator.tokens(len(self._prompts.rows))

    def output(self, new: np.ndarray) -> Any:
        """As of `Run`."""
        self.state = self._speculator.state
        return super().output(new)
