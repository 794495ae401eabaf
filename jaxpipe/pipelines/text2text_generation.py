"""Text to text: an encoder-decoder answers a text."""

from jaxpipe.pipelines.generating import GeneratingPipeline


class Text2TextGenerationPipeline(GeneratingPipeline):
    """Text to text: an encoder-decoder answers a text."""
