"""Summarization of a text by an encoder-decoder."""

from jaxpipe.pipelines.generating import GeneratingPipeline


class SummarizationPipeline(GeneratingPipeline):
    """Summarization of a text by an encoder-decoder."""
