"""Whether a head shares the embedding, where config and checkpoint may disagree."""

import dataclasses
from typing import Any

import numpy as np

from jaxpipe.checkpoint.names import current_name
from jaxpipe.checkpoint.source import TensorSource
from jaxpipe.common.errors import WeightsError
from jaxpipe.common.logging import logger
from jaxpipe.models.config import ModelConfig
from jaxpipe.models.registry import Architecture

ROWS = 1024


def settle_tying(config: ModelConfig, architecture: Architecture, source: TensorSource) -> ModelConfig:
    """Unties a config whose checkpoint holds a head of its own.

    A checkpoint of a tied model may hold the head as well. Where it equals its twin it is
    left out; where it does not, the checkpoint is believed.

    Raises:
        WeightsError: weights that are always one differ in the checkpoint.
    """
    names = {current_name(name, architecture).removeprefix(f"{architecture.base}."): name for name in source.infos}
    copies, pairs = (
        [(names[name], names[twin]) for name, twin in table.items() if {name, twin} <= set(names)]
        for table in (architecture.copies, architecture.tied)
    )
    for pair in copies:
        if not _equal(source, *pair):
            raise WeightsError(
                f"{pair[0]} and {pair[1]} differ in the checkpoint; in {architecture.model_type!r} they are one "
                "weight, and tables apart are not supported."
            )
    if not config.tie_word_embeddings:
        return config
    different = [pair for pair in pairs if not _equal(source, *pair)]
    if not different:
        return config
    logger.warning(
        "tie_word_embeddings is true, but %s and %s differ in the checkpoint: the head is kept apart.", *different[0]
    )
    settled: Any = config
    untied = dataclasses.replace(settled, tie_word_embeddings=False)
    untied.extra = config.extra
    return untied


def _equal(source: TensorSource, first: str, second: str) -> bool:
    shape = source.infos[first].shape
    if shape != source.infos[second].shape:
        return False
    chunks = (slice(i, min(i + ROWS, shape[0])) for i in range(0, shape[0], ROWS))
    rest = tuple(slice(0, n) for n in shape[1:])
    return all(np.array_equal(source.read(first, (rows, *rest)), source.read(second, (rows, *rest))) for rows in chunks)
