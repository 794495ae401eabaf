"""Task pipelines: text in, plain Python out, batched and compiled in between."""

from jaxpipe.pipelines.base import ChunkPipeline, Pipeline
from jaxpipe.pipelines.factory import pipeline
from jaxpipe.pipelines.feature_extraction import FeatureExtractionPipeline
from jaxpipe.pipelines.generating import GeneratingPipeline
from jaxpipe.pipelines.inputs import KeyDataset, KeyPairDataset
from jaxpipe.pipelines.registry import (
    PIPELINE_REGISTRY,
    SUPPORTED_TASKS,
    TASK_ALIASES,
    PipelineRegistry,
    check_task,
    get_supported_tasks,
)
from jaxpipe.pipelines.text_generation import ReturnType, TextGenerationPipeline

__all__ = [
    "PIPELINE_REGISTRY",
    "SUPPORTED_TASKS",
    "TASK_ALIASES",
    "ChunkPipeline",
    "FeatureExtractionPipeline",
    "GeneratingPipeline",
    "KeyDataset",
    "KeyPairDataset",
    "Pipeline",
    "PipelineRegistry",
    "ReturnType",
    "TextGenerationPipeline",
    "check_task",
    "get_supported_tasks",
    "pipeline",
]
