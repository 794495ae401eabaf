"""mT5 (Xue et al., 2021; arXiv 2010.11934), as google/mt5-small holds it: T5 1.1, its head never scaled."""

from typing import ClassVar

from jaxpipe.models.registry import register
from jaxpipe.models.t5 import T5FamilyConfig, T5ForConditionalGeneration, T5Model, t5_architecture


class MT5Config(T5FamilyConfig):
    """Configuration of mT5."""

    model_type: ClassVar[str] = "mt5"

    vocab_size: int = 250112
    d_ff: int = 1024
    num_layers: int = 8
    num_heads: int = 6
    feed_forward_proj: str = "gated-gelu"
    decoder_start_token_id: int | None = 0


class MT5Model(T5Model):
    """Encoder and decoder without a head."""


class MT5ForConditionalGeneration(T5ForConditionalGeneration):
    """Encoder and decoder with a language-model head."""


register(t5_architecture(MT5Config, MT5Model, MT5ForConditionalGeneration))
