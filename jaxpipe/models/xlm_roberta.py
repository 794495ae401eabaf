"""XLM-RoBERTa (Conneau et al., 2020; arXiv 1911.02116), as FacebookAI/xlm-roberta-base holds it: RoBERTa's network."""

from typing import ClassVar

from jaxpipe.models.registry import register
from jaxpipe.models.roberta import RobertaConfig, roberta_architecture


class XLMRobertaConfig(RobertaConfig):
    """Configuration of XLM-RoBERTa."""

    model_type: ClassVar[str] = "xlm-roberta"

    vocab_size: int = 30522


register(roberta_architecture(XLMRobertaConfig, "XLMRoberta"))
