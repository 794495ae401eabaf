"""Sentence similarity: how near sentences are to a source sentence."""

from jaxpipe.pipelines.base import Pipeline


class SentenceSimilarityPipeline(Pipeline):
    """Sentence similarity: how near sentences are to a source sentence."""
