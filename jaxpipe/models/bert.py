"""BERT (Devlin et al., 2019; arXiv 1810.04805), as google-bert/bert-base-uncased holds it."""

from typing import Any, ClassVar

import jax
from flax import nnx

from jaxpipe.common.outputs import BaseModelOutput, LogitsOutput
from jaxpipe.models.encoder import EncoderConfig
from jaxpipe.models.registry import (
    BASE,
    MASKED_LM,
    QUESTION_ANSWERING,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Architecture,
    register,
)
from jaxpipe.nn.attention import full_span
from jaxpipe.nn.bert import BertEmbeddings, BertEncoder, BertPooler, Predictions
from jaxpipe.nn.encoder import (
    EncoderHead,
    PooledClassification,
    QuestionAnswering,
    TokenClassification,
    head_output,
    run_encoder,
)
from jaxpipe.nn.init import Init

Array = jax.Array


class BertConfig(EncoderConfig):
    """Configuration of BERT."""

    model_type: ClassVar[str] = "bert"
    # Left in config.json by the scripts that converted and distilled old checkpoints.
    inert: ClassVar[frozenset[str]] = frozenset(
        """directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head
        pooler_type""".split()
    )

    type_vocab_size: int = 2


class BertModel(nnx.Module):
    """The encoder without a head.

    Args:
        pooler: with the pooler, which the masked language model does without.
    """

    def __init__(self, config: BertConfig, init: Init, *, pooler: bool = True):
        self.embeddings = BertEmbeddings(config, init)
        self.encoder = BertEncoder(config, init)
        self.pooler = BertPooler(config, init) if pooler else None

    def __call__(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BaseModelOutput:
        """Runs the encoder on input_ids (B, T); token types are 0 and positions count the columns if not given."""
        x = self.embeddings(input_ids, token_type_ids, position_ids)  # (B, T, D)
        span = full_span(input_ids.shape[1], attention_mask)
        walk = run_encoder(self.encoder.layer, x, span, weights=output_attentions)
        out = walk.finish(walk.x, output_hidden_states)
        if self.pooler is not None:
            out.pooler_output = self.pooler(walk.x)
        return out


class BertHead(EncoderHead):
    """The encoder under a head."""

    base: ClassVar[str] = "bert"

    @staticmethod
    def encoder(config: BertConfig, init: Init) -> BertModel:
        """Makes the encoder."""
        return BertModel(config, init, pooler=False)


class BertForMaskedLM(BertHead):
    """The encoder with a masked-language-model head."""

    def __init__(self, config: BertConfig, init: Init):
        super().__init__(config, init)
        self.cls = Predictions(config, init, tied=config.tie_word_embeddings)

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of `BertModel`."""
        out = self.encode(input_ids, **inputs)
        logits = self.cls.predictions(out.last_hidden_state, self.base_model.embeddings.word_embeddings.attend)
        return head_output(out, logits)


class BertForSequenceClassification(BertHead, PooledClassification):
    """The encoder with a classifier on the pooled first token."""

    @staticmethod
    def encoder(config: BertConfig, init: Init) -> BertModel:
        """Makes the encoder, with its pooler."""
        return BertModel(config, init)


class BertForTokenClassification(BertHead, TokenClassification):
    """The encoder with a classifier on every token."""


class BertForQuestionAnswering(BertHead, QuestionAnswering):
    """The encoder with scores of the answer's first and last token."""


register(
    Architecture(
        config=BertConfig,
        heads={
            BASE: BertModel,
            MASKED_LM: BertForMaskedLM,
            SEQUENCE_CLASSIFICATION: BertForSequenceClassification,
            TOKEN_CLASSIFICATION: BertForTokenClassification,
            QUESTION_ANSWERING: BertForQuestionAnswering,
        },
        base="bert",
        optional=("pooler",),
        tied={
            "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        # The next-sentence head of pre-training checkpoints lies beside the masked language model's.
        other_heads=(r"cls\.seq_relationship\..*",),
    )
)
