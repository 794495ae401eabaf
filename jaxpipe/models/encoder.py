"""What the configurations of encoders built like BERT share."""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxpipe.common.errors import ConfigError
from jaxpipe.models.config import ModelConfig
from jaxpipe.nn.activations import activation


class EncoderConfig(ModelConfig):
    """Base of the config dataclasses of encoders with learned positions."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"position_embedding_type": ("absolute", None)}

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.hidden_act)
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"config.json: hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}."
            )

    def limits(self) -> dict[str, int]:
        """First value out of range of each input."""
        types = {"token_type_ids": self.type_vocab_size} if "type_vocab_size" in self.keys() else {}
        return {"input_ids": self.vocab_size, "position_ids": self.max_position_embeddings, **types}
