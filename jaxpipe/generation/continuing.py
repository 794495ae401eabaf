"""What one call of `generate` takes from earlier calls, and what it leaves for later ones."""

from dataclasses import replace
from typing import Any

import numpy as np

from jaxpipe.common.logging import info_once
from jaxpipe.generation.chunked import Reader, Reading
from jaxpipe.generation.inputs import Prompts
from jaxpipe.generation.kept import LastConversation, PastKeyValues
from jaxpipe.generation.prefix_cache import PrefixCache
from jaxpipe.generation.settle import Settled

ARGUMENTS = ("past_key_values", "prefix_cache")
"""Arguments of ``generate`` that `Continuation` takes."""


class Continuation:
    """Checks what a call is to go on from, and keeps what it leaves.

    Args:
        reader: of the model; None for an encoder-decoder.
        model_type: of the model, for messages.
        settled: the settings of the call.
        past: ``past_key_values``: `PastKeyValues`, `LastConversation` or None.
        prefixes: ``prefix_cache``: a `PrefixCache` or None.
        plain: whether the call decodes greedily, by sampling or with beams, and records nothing but scores; others
            read the whole prompts in one call.

    Attributes:
        reading: how the prompts are read; None as one whole.

    Raises:
        TypeError: an argument is something else.
        ValueError: the model cannot go on from what it is given.
    """

    def __init__(
        self, reader: Reader | None, model_type: str, settled: Settled, past: Any, prefixes: Any, *, plain: bool
    ):
        _check_types(past, prefixes)
        self._reader, self._settled = reader, settled
        self._conversation = past if isinstance(past, LastConversation) else None
        past = None if self._conversation else past
        self._prefixes: PrefixCache | None = prefixes
        for name, value in zip(ARGUMENTS, (past, prefixes), strict=True):
            if value is None:
                continue
            if reader is None:
                raise ValueError(
                    f"{name}= is for decoders: {model_type!r} is an encoder-decoder, whose encoder reads the input "
                    "anew in every call. Leave it out; tokens that the answer begins with go into decoder_input_ids."
                )
            if not reader.cuts:
                raise ValueError(
                    f"{name}= cannot be used with {model_type!r}: its layers keep a state of all tokens that cannot be "
                    "cut after some of them. Leave it out."
                )
        if not plain and reader is not None:
            given = (
                ("past_key_values", past),
                ("prefix_cache", prefixes),
                ("prefill_chunk_size", settled.prefill_chunk_size),
            )
            for name in (name for name, value in given if value is not None):
                info_once(f"{name} has no effect in this way of decoding, which reads whole prompts in one call.")
        if reader is None and settled.prefill_chunk_size is not None:
            info_once("prefill_chunk_size has no effect: the encoder of an encoder-decoder reads its input at once.")
        self._acts = plain and reader is not None
        keeps = settled.return_dict_in_generate and settled.num_beams == 1
        self._returns = self._acts and keeps and reader is not None and reader.cuts
        self._keeps = self._returns or (self._acts and reader is not None and reader.cuts and self._stores)
        self._past: PastKeyValues | None = past

    @property
    def _stores(self) -> bool:
        one = self._conversation is not None and self._settled.num_beams == 1
        return one or self._prefixes is not None

    def prompts(self, prompts: Prompts) -> Prompts:
        """Returns the prompts with how they are read.

        Raises:
            ValueError: they do not begin with what `past_key_values` holds, or it is another model's.
        """
        reader, past = self._reader, self._past
        if reader is None:
            return prompts
        times = self._settled.num_return_sequences if self._settled.num_beams == 1 else 1
        if past is not None:
            past.check(reader, prompts, times)
        elif self._conversation is not None:
            past = self._conversation.take(reader, prompts)
        if self._prefixes is not None:
            self._prefixes.bind(reader)
        if not self._acts:
            return prompts
        if past is not None and len(past.lengths) < len(prompts.rows) * times:
            past = past.repeated(times)
        reading = Reading(
            self._settled.prefill_chunk_size, past, self._prefixes, self._keeps, self._settled.cache_dtype
        )
        return replace(prompts, reading=reading)

    def keep(self, output: Any, run: Any, prompts: Prompts) -> Any:
        """Keeps what a run without beams leaves, and returns its output with ``past_key_values``.

        Args:
            output: of the run.
            run: with its last state, and the answers that were taken from it.
            prompts: of the run, repeated for the returned sequences.
        """
        if not self._keeps:
            return output
        ids = np.asarray(getattr(output, "sequences", output))[:, prompts.ids.shape[1] :]
        sequences = [np.concatenate([row, new]) for row, new in zip(prompts.rows, ids, strict=True)]
        state = run.state
        past = PastKeyValues.of_run(self._reader, state.cache, state.tokens, state.valid, sequences)
        self._store(past)
        if self._conversation is not None and len(sequences) == 1:
            self._conversation.past = past.copy()
        return replace(output, past_key_values=past) if self._returns else output

    def keep_prompts(self, output: Any, search: Any, prompts: Prompts) -> Any:
        """Keeps the prompts of a search with beams, each of which is several rows of the cache; returns its output."""
        if self._keeps:
            cache = search.state.cache
            each = len(cache.positions) // search.packed.rows
            lines = range(0, each * len(prompts.rows), each)
            self._store(PastKeyValues.of_prompts(self._reader, cache, prompts.rows, lines))
        return output

    def _store(self, past: PastKeyValues) -> None:
        if self._prefixes is not None and self._reader is not None:
            cache, rows = past.held()
            limit = self._reader.longest_kept
            if limit is None or past.longest <= limit:
                self._prefixes.store(cache, rows, self._settled.cache_dtype)


def _check_types(past: Any, prefixes: Any) -> None:
    if past is not None and not isinstance(past, PastKeyValues | LastConversation):
        raise TypeError(
            f"past_key_values= takes what generate returned as past_key_values (return_dict_in_generate=True), not "
            f"{type(past).__name__}."
        )
    if prefixes is not None and not isinstance(prefixes, PrefixCache):
        raise TypeError(f"prefix_cache= takes a PrefixCache, not {type(prefixes).__name__}.")
