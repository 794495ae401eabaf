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
    from jaxpipe.generation.constraints import (
        Constraint,
        ConstraintListState,
        DisjunctiveConstraint,
        PhrasalConstraint,
    )
    from jaxpipe.generation.prefix_cache import PrefixCache
    from jaxpipe.generation.streamers import AsyncTextIteratorStreamer, TextIteratorStreamer, TextStreamer
    from jaxpipe.generation.synthid import SynthIDTextWatermarkLogitsProcessor
    from jaxpipe.generation.watermark_detector import (
        BayesianDetectorConfig,
        BayesianDetectorModel,
        SynthIDTextWatermarkDetector,
        WatermarkDetector,
    )
    from jaxpipe.generation.watermarking import SynthIDTextWatermarkingConfig, WatermarkingConfig
    from jaxpipe.pipelines import PIPELINE_REGISTRY, SUPPORTED_TASKS, pipeline
    from jaxpipe.tokenization import AutoTokenizer

__version__ = "0.1.0"

__all__ = [
    "PIPELINE_REGISTRY",
    "SUPPORTED_TASKS",
    "AsyncTextIteratorStreamer",
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForQuestionAnswering",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "BayesianDetectorConfig",
    "BayesianDetectorModel",
    "Constraint",
    "ConstraintListState",
    "DisjunctiveConstraint",
    "GenerationConfig",
    "PhrasalConstraint",
    "PrefixCache",
    "SynthIDTextWatermarkDetector",
    "SynthIDTextWatermarkLogitsProcessor",
    "SynthIDTextWatermarkingConfig",
    "TextIteratorStreamer",
    "TextStreamer",
    "WatermarkDetector",
    "WatermarkingConfig",
    "__version__",
    "pipeline",
    "set_seed",
]

_LOCATIONS = {
    "AsyncTextIteratorStreamer": "jaxpipe.generation.streamers",
    "AutoConfig": "jaxpipe.auto",
    "AutoModel": "jaxpipe.auto",
    "AutoModelForCausalLM": "jaxpipe.auto",
    "AutoModelForMaskedLM": "jaxpipe.auto",
    "AutoModelForQuestionAnswering": "jaxpipe.auto",
    "AutoModelForSeq2SeqLM": "jaxpipe.auto",
    "AutoModelForSequenceClassification": "jaxpipe.auto",
    "AutoModelForTokenClassification": "jaxpipe.auto",
    "AutoTokenizer": "jaxpipe.tokenization",
    "BayesianDetectorConfig": "jaxpipe.generation.watermark_detector",
    "BayesianDetectorModel": "jaxpipe.generation.watermark_detector",
    "Constraint": "jaxpipe.generation.constraints",
    "ConstraintListState": "jaxpipe.generation.constraints",
    "DisjunctiveConstraint": "jaxpipe.generation.constraints",
    "GenerationConfig": "jaxpipe.generation.config",
    "PhrasalConstraint": "jaxpipe.generation.constraints",
    "PIPELINE_REGISTRY": "jaxpipe.pipelines",
    "PrefixCache": "jaxpipe.generation.prefix_cache",
    "SUPPORTED_TASKS": "jaxpipe.pipelines",
    "SynthIDTextWatermarkDetector": "jaxpipe.generation.watermark_detector",
    "SynthIDTextWatermarkLogitsProcessor": "jaxpipe.generation.synthid",
    "SynthIDTextWatermarkingConfig": "jaxpipe.generation.watermarking",
    "TextIteratorStreamer": "jaxpipe.generation.streamers",
    "TextStreamer": "jaxpipe.generation.streamers",
    "WatermarkDetector": "jaxpipe.generation.watermark_detector",
    "WatermarkingConfig": "jaxpipe.generation.watermarking",
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
