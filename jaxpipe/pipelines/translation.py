"""Translation of a text by an encoder-decoder."""

from jaxpipe.pipelines.generating import GeneratingPipeline


class TranslationPipeline(GeneratingPipeline):
    """Translation of a text by an encoder-decoder."""
