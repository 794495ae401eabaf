"""M2M-100 (Fan et al., 2021; arXiv 2010.11125) and NLLB-200, as facebook/nllb-200-distilled-600M holds it."""

from typing import ClassVar

from jaxpipe.models.bart import BartFamilyConfig, BartFamilyLM, BartFamilyModel, bart_architecture
from jaxpipe.models.registry import BASE, SEQ2SEQ_LM, register
from jaxpipe.nn.init import Init
from jaxpipe.nn.positions import PaddedSinusoidalPositions


class M2M100Config(BartFamilyConfig):
    """Configuration of M2M-100 and NLLB-200."""

    model_type: ClassVar[str] = "m2m_100"

    vocab_size: int = 128112
    activation_function: str = "relu"
    scale_embedding: bool = True
    forced_eos_token_id: int | list[int] | None = None

    def longest_input(self) -> None:
        """Positions are computed for inputs of any length."""


class M2M100Model(BartFamilyModel):
    """BART with sinusoidal positions that skip padding, and norms before attention and MLP, without a head."""

    def __init__(self, config: M2M100Config, init: Init):
        padding = config.pad_token_id if config.pad_token_id is not None else 1
        positions = PaddedSinusoidalPositions(config.d_model, padding)
        super().__init__(config, init, pre_norm=True, norm_embedding=False, positions=lambda init: positions)


class M2M100ForConditionalGeneration(BartFamilyLM):
    """Encoder and decoder with a language-model head."""

    def __init__(self, config: M2M100Config, init: Init):
        super().__init__(config, init, M2M100Model(config, init), bias=False)


register(bart_architecture(M2M100Config, {BASE: M2M100Model, SEQ2SEQ_LM: M2M100ForConditionalGeneration}))
