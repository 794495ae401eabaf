"""UMT5 (Chung et al., 2023; arXiv 2304.09151), as google/umt5-small holds it: mT5 with biases in every layer."""

from typing import ClassVar

from jaxpipe.models.registry import register
from jaxpipe.models.t5 import T5Config, T5ForConditionalGeneration, T5Model, t5_architecture


class UMT5Config(T5Config):
    """Configuration of UMT5. Where config.json has the head apart its logits are not scaled, as the model was trained;
    Transformers 5.23 scales them.
    """

    model_type: ClassVar[str] = "umt5"
    bias_in_every_layer: ClassVar[bool] = True

    vocab_size: int = 250112
    d_ff: int = 1024
    num_layers: int = 8
    num_heads: int = 6
    feed_forward_proj: str = "gated-gelu"
    decoder_start_token_id: int | None = 0


class UMT5Model(T5Model):
    """Encoder and decoder without a head."""


class UMT5ForConditionalGeneration(T5ForConditionalGeneration):
    """Encoder and decoder with a language-model head."""


register(t5_architecture(UMT5Config, UMT5Model, UMT5ForConditionalGeneration))
