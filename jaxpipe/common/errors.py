"""Exceptions of jaxpipe; each also is the built-in that users of Transformers catch."""

import difflib
from collections.abc import Iterable


class CheckpointError(OSError):
    """A checkpoint's file is missing, unreadable, truncated or lies about its contents."""


class WeightsError(RuntimeError):
    """The weights of a checkpoint do not make up the model that was asked for."""


class ConfigError(ValueError):
    """A configuration value is wrong, or asks for a computation that is not supported."""


class PlacementError(ValueError):
    """A model cannot be placed on the devices that were asked for."""


class PipelineException(ValueError):
    """A pipeline cannot do its task with an input or a tokenizer.

    Args:
        task: the pipeline's task.
        model: the model's name, or its type.
        reason: the message.
    """

    def __init__(self, task: str, model: str, reason: str) -> None:
        super().__init__(reason)
        self.task = task
        self.model = model

    def __reduce__(self) -> tuple[type["PipelineException"], tuple[str, str, str]]:
        return type(self), (self.task, self.model, str(self))


def nearest(name: str, accepted: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for the closest accepted name, or ``""`` where none is close."""
    close = difflib.get_close_matches(name, list(accepted), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
