"""PEGASUS (Zhang et al., 2020; arXiv 1912.08777), as google/pegasus-xsum holds it."""

from typing import ClassVar

from jaxpipe.models.bart import BartFamilyConfig, BartFamilyLM, BartFamilyModel, bart_architecture
from jaxpipe.models.registry import BASE, SEQ2SEQ_LM, register
from jaxpipe.nn.init import Init
from jaxpipe.nn.positions import SinusoidalPositions


class PegasusConfig(BartFamilyConfig):
    """Configuration of PEGASUS."""

    model_type: ClassVar[str] = "pegasus"

    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1
    decoder_start_token_id: int | None = 0
    forced_eos_token_id: int | list[int] | None = 1


class PegasusModel(BartFamilyModel):
    """BART with sinusoidal positions and norms before attention and MLP, without a head."""

    def __init__(self, config: PegasusConfig, init: Init):
        positions = SinusoidalPositions(config.d_model)
        super().__init__(config, init, pre_norm=True, norm_embedding=False, positions=lambda init: positions)


class PegasusForConditionalGeneration(BartFamilyLM):
    """Encoder and decoder with a language-model head."""

    def __init__(self, config: PegasusConfig, init: Init):
        super().__init__(config, init, PegasusModel(config, init))


register(bart_architecture(PegasusConfig, {BASE: PegasusModel, SEQ2SEQ_LM: PegasusForConditionalGeneration}))
