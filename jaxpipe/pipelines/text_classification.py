"""Text classification: labels of a text or a pair of texts."""

from jaxpipe.pipelines.base import Pipeline


class TextClassificationPipeline(Pipeline):
    """Text classification: labels of a text or a pair of texts."""
