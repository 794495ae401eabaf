"""mBART (Liu et al., 2020; arXiv 2001.08210), as facebook/mbart-large-50-many-to-many-mmt holds it."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxpipe.models.bart import (
    BartFamilyClassifier,
    BartFamilyConfig,
    BartFamilyLM,
    BartFamilyModel,
    bart_architecture,
)
from jaxpipe.models.registry import BASE, SEQ2SEQ_LM, SEQUENCE_CLASSIFICATION, register
from jaxpipe.nn.init import Init
from jaxpipe.nn.positions import LearnedPositions
from jaxpipe.nn.transformer import shifted

Array = jax.Array


class MBartConfig(BartFamilyConfig):
    """Configuration of mBART; the decoder starts from the token of a language, which the tokenizer knows."""

    model_type: ClassVar[str] = "mbart"

    decoder_start_token_id: int | None = None


class MBartModel(BartFamilyModel):
    """BART with norms before attention and MLP, without a head."""

    def __init__(self, config: MBartConfig, init: Init):
        def positions(init: Init) -> LearnedPositions:
            return LearnedPositions(init, config.max_position_embeddings, config.d_model)

        super().__init__(config, init, pre_norm=True, norm_embedding=True, positions=positions)
        self.padding = config.pad_token_id

    def decoder_ids(self, input_ids: Array) -> Array:
        """The encoder's ids behind their last token, which names the language."""
        if self.padding is None:
            return super().decoder_ids(input_ids)
        last = jnp.sum(input_ids != self.padding, axis=1) - 1  # (B,)
        return shifted(input_ids, input_ids[jnp.arange(input_ids.shape[0]), last])


class MBartForConditionalGeneration(BartFamilyLM):
    """Encoder and decoder with a language-model head."""

    def __init__(self, config: MBartConfig, init: Init):
        super().__init__(config, init, MBartModel(config, init))


class MBartForSequenceClassification(BartFamilyClassifier):
    """Encoder and decoder with a classifier on the last end token."""

    def __init__(self, config: MBartConfig, init: Init):
        super().__init__(config, init, MBartModel(config, init))


register(
    bart_architecture(
        MBartConfig,
        {
            BASE: MBartModel,
            SEQ2SEQ_LM: MBartForConditionalGeneration,
            SEQUENCE_CLASSIFICATION: MBartForSequenceClassification,
        },
    )
)
