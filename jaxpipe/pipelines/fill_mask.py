"""Fill-mask: the likeliest tokens at a text's masks."""

from jaxpipe.pipelines.base import Pipeline


class FillMaskPipeline(Pipeline):
    """Fill-mask: the likeliest tokens at a text's masks."""
