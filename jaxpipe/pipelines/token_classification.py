"""Token classification: labels of tokens, words or entities."""

from jaxpipe.pipelines.base import ChunkPipeline


class TokenClassificationPipeline(ChunkPipeline):
    """Token classification: labels of tokens, words or entities."""
