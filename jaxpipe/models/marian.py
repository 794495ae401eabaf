"""Marian (Junczys-Dowmunt et al., 2018; arXiv 1804.00344), as Helsinki-NLP/opus-mt-en-de holds it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxpipe.common.errors import ConfigError
from jaxpipe.models.bart import BartFamilyConfig, BartFamilyLM, BartFamilyModel, bart_architecture
from jaxpipe.models.registry import BASE, SEQ2SEQ_LM, register
from jaxpipe.nn.init import Init
from jaxpipe.nn.positions import SinusoidalPositions


class MarianConfig(BartFamilyConfig):
    """Configuration of Marian."""

    model_type: ClassVar[str] = "marian"
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"share_encoder_decoder_embeddings": (True, None)}

    vocab_size: int = 58101
    decoder_vocab_size: int = 0  # as many as the encoder's
    pad_token_id: int | None = 58100
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 0
    decoder_start_token_id: int | None = 58100
    forced_eos_token_id: int | list[int] | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.decoder_vocab_size = self.decoder_vocab_size or self.vocab_size
        if self.decoder_vocab_size != self.vocab_size:
            raise ConfigError(
                f"config.json: decoder_vocab_size={self.decoder_vocab_size} differs from vocab_size={self.vocab_size}: "
                "a decoder with a vocabulary of its own is not supported for 'marian'."
            )


class MarianModel(BartFamilyModel):
    """BART with sinusoidal positions and no norm on the embedding, without a head."""

    def __init__(self, config: MarianConfig, init: Init):
        positions = SinusoidalPositions(config.d_model)
        super().__init__(config, init, pre_norm=False, norm_embedding=False, positions=lambda init: positions)


class MarianMTModel(BartFamilyLM):
    """Encoder and decoder with a language-model head."""

    def __init__(self, config: MarianConfig, init: Init):
        super().__init__(config, init, MarianModel(config, init))


register(bart_architecture(MarianConfig, {BASE: MarianModel, SEQ2SEQ_LM: MarianMTModel}))
