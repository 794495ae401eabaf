"""jaxpipe: Hugging Face checkpoints as sharded Flax modules, run through task pipelines on JAX.

Names are imported when they are first used, so that ``import jaxpipe`` is quick and touches no device.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxpipe.auto import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForQuestionAnswering,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )
    from jaxpipe.common.random import set_seed
    from jaxpipe.generation.config import GenerationConfig
    from jaxpipe.generation.streamers import TextIteratorStreamer, TextStreamer
    from jaxpipe.pipelines import PIPELINE_REGISTRY, SUPPORTED_TASKS, pipeline
    from jaxpipe.tokenization import AutoTokenizer

__version__ = "0.1.0"

__all__ = [
    "PIPELINE_REGISTRY",
    "SUPPORTED_TASKS",
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForQuestionAnswering",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "GenerationConfig",
    "TextIteratorStreamer",
    "TextStreamer",
    "__version__",
    "pipeline",
    "set_seed",
]

_LOCATIONS = {
    "AutoConfig": "jaxpipe.auto",
    "AutoModel": "jaxpipe.auto",
    "AutoModelForCausalLM": "jaxpipe.auto",
    "AutoModelForMaskedLM": "jaxpipe.auto",
    "AutoModelForQuestionAnswering": "jaxpipe.auto",
    "AutoModelForSeq2SeqLM": "jaxpipe.auto",
    "AutoModelForSequenceClassification": "jaxpipe.auto",
    "AutoModelForTokenClassification": "jaxpipe.auto",
    "AutoTokenizer": "jaxpipe.tokenization",
    "GenerationConfig": "jaxpipe.generation.config",
    "PIPELINE_REGISTRY": "jaxpipe.pipelines",
    "SUPPORTED_TASKS": "jaxpipe.pipelines",
    "TextIteratorStreamer": "jaxpipe.generation.streamers",
    "TextStreamer": "jaxpipe.generation.streamers",
    "pipeline": "jaxpipe.pipelines",
    "set_seed": "jaxpipe.common.random",
}


def __getattr__(name: str) -> Any:
    location = _LOCATIONS.get(name)
    if location is None:
        raise AttributeError(f"module 'jaxpipe' has no attribute {name!r}")
    value = getattr(importlib.import_module(location), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
