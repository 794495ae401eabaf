"""The jitted functions of each way of decoding that a `_Run` of `generate` goes through."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxpipe.generation.beam import Beams, make_beams
from jaxpipe.generation.constrained_beam import ConstrainedBeams, make_constrained_beams
from jaxpipe.generation.contrastive import Contrast, make_contrastive
from jaxpipe.generation.dola import LayerLogits, check_dola, early_layers
from jaxpipe.generation.group_beam import GroupBeams, make_group_beams
from jaxpipe.generation.guidance import guided
from jaxpipe.generation.inputs import Prompts
from jaxpipe.generation.loop import make_decode, make_prefill
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.settle_cache import QUANTIZED
from jaxpipe.models.config import ModelConfig
from jaxpipe.nn.functional import Functional, Leaves


class Strategy(NamedTuple):
    """The jitted functions of one way of decoding.

    Attributes:
        prefill: as of `make_prefill`.
        decode: as of `make_decode`.
        beams: of beam search; None where there is none.
        groups: of diverse beam search; None where there is none.
        constrained: of constrained beam search; None where there is none.
    """

    prefill: Callable[..., Any]
    decode: Callable[..., Any]
    beams: Beams | None = None
    groups: GroupBeams | None = None
    constrained: ConstrainedBeams | None = None


class Strategies:
    """Those of one model, each made when it is first asked for.

    Attributes:
        plain: of greedy search, sampling and beams.

    Args:
        functional: the model taken apart.
        leaves: its weights.
        config: its configuration.
        read: calls the model on prompts, as `read_prompts` does.
        forward: calls the model on one more token of every row, as `next_logits` does.
    """

    def __init__(
        self,
        functional: Functional,
        leaves: Leaves,
        config: ModelConfig,
        read: Callable[..., Any],
        forward: Callable[..., Any],
    ):
        self._functional, self._leaves, self._config = functional, leaves, config
        self._read, self._forward = read, forward
        self._made: dict[Any, Strategy] = {}
        self.plain = self._make("plain")

    def of(self, settled: Settled) -> Strategy:
        """Returns the strategy of a call, which `check` has let through."""
        key: Any
        if settled.candidates:
            key = "contrastive"
        elif settled.dola_layers is not None:
            key = early_layers(settled.dola_layers, len(self._layers()), self._config.tie_word_embeddings)
        elif settled.guidance_scale != 1.0:
            key = "guided"
        else:
            return self.plain
        if key not in self._made:
            self._made[key] = self._make(key)
        return self._made[key]

    def check(self, settled: Settled, prompts: Prompts) -> None:
        """Checks a call against the model, before anything compiles.

        Raises:
            ValueError: the model, its vocabulary or its positions do not allow what the settings ask for.
        """
        model_type, limit = self._config.model_type, self._config.longest_input()
        if settled.cache_dtype is not None and not any(isinstance(layer, tuple) for layer in self._layers()):
            raise ValueError(
                f"cache_implementation={QUANTIZED!r}: {model_type!r} keeps no keys and values that could be kept in "
                "8 bits; leave it out."
            )
        if settled.dola_layers is not None:
            layers = self._layers()
            check_dola(settled.dola_layers, layers, prompts.source_rows() is not None, model_type)
            early_layers(settled.dola_layers, len(layers), self._config.tie_word_embeddings)
        if not settled.candidates:
            return
        if settled.candidates > self._config.vocab_size:
            raise ValueError(
                f"top_k={settled.candidates} with penalty_alpha={settled.penalty_alpha}: contrastive search takes that "
                f"many tokens as candidates, but the vocabulary has {self._config.vocab_size}; lower top_k."
            )
        longest = prompts.longest()
        # All new tokens are read, the last one too.
        if limit is not None and longest + settled.max_new_tokens > limit:
            raise ValueError(
                f"A prompt of {longest} tokens and max_new_tokens={settled.max_new_tokens} need "
                f"{longest + settled.max_new_tokens} positions in contrastive search, but {model_type!r} has learned "
                f"{limit}; shorten the prompt or set max_new_tokens to at most {max(limit - longest, 0)}."
            )

    def _layers(self) -> list[Any]:
        return self._functional.module(self._leaves).cache_layers()

    def _make(self, key: str | tuple[int, ...]) -> Strategy:
        functional, read, forward = self._functional, self._read, self._forward
        if key == "contrastive":
            return Strategy(*make_contrastive(functional, read, forward))
        if isinstance(key, tuple):
            functional = LayerLogits.of(functional, key)
            return Strategy(make_prefill(functional, read), make_decode(functional, forward))
        if key == "guided":
            read, forward = guided(read, forward)
        return Strategy(
            make_prefill(functional, read),
            make_decode(functional, forward),
            make_beams(functional, read, forward),
            make_group_beams(functional, read, forward),
            make_constrained_beams(functional, read, forward),
        )


def contrast_of(settled: Settled) -> Contrast | None:
    """Returns what a contrastive search weighs; None where the settings do not ask for one."""
    if not settled.candidates:
        return None
    return Contrast(np.float32(settled.penalty_alpha), settled.candidates)
