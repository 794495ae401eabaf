"""CamemBERT (Martin et al., 2020; arXiv 1911.03894), as almanach/camembert-base holds it: RoBERTa's network."""

from typing import ClassVar

from jaxpipe.models.registry import register
from jaxpipe.models.roberta import RobertaConfig, roberta_architecture


class CamembertConfig(RobertaConfig):
    """Configuration of CamemBERT."""

    model_type: ClassVar[str] = "camembert"

    vocab_size: int = 30522


register(roberta_architecture(CamembertConfig, "Camembert"))
