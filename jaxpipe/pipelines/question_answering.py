"""Extractive question answering: the span of a context that answers."""

from jaxpipe.pipelines.base import ChunkPipeline


class QuestionAnsweringPipeline(ChunkPipeline):
    """Extractive question answering: the span of a context that answers."""
