"""Task pipelines: text in, plain Python out, batched and compiled in between."""

from jaxpipe.common.errors import PipelineException
from jaxpipe.pipelines.base import ChunkPipeline, Pipeline
from jaxpipe.pipelines.entities import AggregationStrategy
from jaxpipe.pipelines.factory import pipeline
from jaxpipe.pipelines.feature_extraction import FeatureExtractionPipeline
from jaxpipe.pipelines.fill_mask import FillMaskPipeline
from jaxpipe.pipelines.generating import GeneratingPipeline
from jaxpipe.pipelines.inputs import KeyDataset, KeyPairDataset
from jaxpipe.pipelines.question_answering import QuestionAnsweringPipeline
from jaxpipe.pipelines.registry import (
    PIPELINE_REGISTRY,
    SUPPORTED_TASKS,
    TASK_ALIASES,
    PipelineRegistry,
    check_task,
    get_supported_tasks,
)
from jaxpipe.pipelines.sentence_similarity import SentenceSimilarityPipeline
from jaxpipe.pipelines.summarization import SummarizationPipeline
from jaxpipe.pipelines.text2text_generation import Text2TextGenerationPipeline
from jaxpipe.pipelines.text_classification import TextClassificationPipeline
from jaxpipe.pipelines.text_generation import ReturnType, TextGenerationPipeline
from jaxpipe.pipelines.text_ranking import TextRankingPipeline
from jaxpipe.pipelines.token_classification import TokenClassificationPipeline
from jaxpipe.pipelines.translation import TranslationPipeline
from jaxpipe.pipelines.zero_shot_classification import ZeroShotClassificationPipeline

__all__ = [
    "PIPELINE_REGISTRY",
    "SUPPORTED_TASKS",
    "TASK_ALIASES",
    "AggregationStrategy",
    "ChunkPipeline",
    "FeatureExtractionPipeline",
    "FillMaskPipeline",
    "GeneratingPipeline",
    "KeyDataset",
    "KeyPairDataset",
    "Pipeline",
    "PipelineException",
    "PipelineRegistry",
    "QuestionAnsweringPipeline",
    "ReturnType",
    "SentenceSimilarityPipeline",
    "SummarizationPipeline",
    "Text2TextGenerationPipeline",
    "TextClassificationPipeline",
    "TextGenerationPipeline",
    "TextRankingPipeline",
    "TokenClassificationPipeline",
    "TranslationPipeline",
    "ZeroShotClassificationPipeline",
    "check_task",
    "get_supported_tasks",
    "pipeline",
]
