"""Zero-shot classification through natural language inference."""

from jaxpipe.pipelines.base import ChunkPipeline


class ZeroShotClassificationPipeline(ChunkPipeline):
    """Zero-shot classification through natural language inference."""
