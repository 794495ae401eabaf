"""Text ranking: texts in the order of a cross-encoder's scores for a query."""

from jaxpipe.pipelines.base import ChunkPipeline


class TextRankingPipeline(ChunkPipeline):
    """Text ranking: texts in the order of a cross-encoder's scores for a query."""
