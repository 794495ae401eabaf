"""ELECTRA (Clark et al., 2020; arXiv 2003.10555), as google/electra-small-discriminator and -generator hold it."""

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
from jaxpipe.nn.activations import activation
from jaxpipe.nn.attention import full_span
from jaxpipe.nn.bert import BertEmbeddings, BertEncoder
from jaxpipe.nn.encoder import (
    EncoderHead,
    FirstTokenClassification,
    QuestionAnswering,
    TokenClassification,
    VocabularyProjection,
    head_output,
    run_encoder,
)
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import Linear
from jaxpipe.nn.norms import LayerNorm

Array = jax.Array


class ElectraConfig(EncoderConfig):
    """Configuration of ELECTRA."""

    model_type: ClassVar[str] = "electra"
    # Of the multiple-choice head.
    inert: ClassVar[frozenset[str]] = frozenset(
        """summary_activation summary_first_dropout summary_last_dropout summary_proj_to_labels summary_type
        summary_use_proj""".split()
    )

    embedding_size: int = 128
    hidden_size: int = 256
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    type_vocab_size: int = 2


class ElectraModel(nnx.Module):
    """The encoder without a head: BERT's on embeddings of a width of their own, without its pooler."""

    def __init__(self, config: ElectraConfig, init: Init):
        self.embeddings = BertEmbeddings(config, init, width=config.embedding_size)
        project = config.embedding_size != config.hidden_size
        self.embeddings_project = Linear(init, config.embedding_size, config.hidden_size) if project else None
        self.encoder = BertEncoder(config, init)

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
        x = self.embeddings(input_ids, token_type_ids, position_ids)  # (B, T, D of the embedding)
        if self.embeddings_project is not None:
            x = self.embeddings_project(x)  # (B, T, D)
        span = full_span(input_ids.shape[1], attention_mask)
        walk = run_encoder(self.encoder.layer, x, span, weights=output_attentions)
        return walk.finish(walk.x, output_hidden_states)


class ElectraGeneratorPredictions(nnx.Module):
    """What comes before the generator's projection to the vocabulary, back in the embedding's width."""

    def __init__(self, config: ElectraConfig, init: Init):
        self.dense = Linear(init, config.hidden_size, config.embedding_size)
        self.LayerNorm = LayerNorm(init, config.embedding_size, config.layer_norm_eps)

    def __call__(self, x: Array) -> Array:
        return self.LayerNorm(activation("gelu")(self.dense(x)))


class ElectraHead(EncoderHead):
    """The encoder under a head."""

    base: ClassVar[str] = "electra"

    @staticmethod
    def encoder(config: ElectraConfig, init: Init) -> ElectraModel:
        """Makes the encoder."""
        return ElectraModel(config, init)


class ElectraForMaskedLM(ElectraHead):
    """The generator: the encoder with a masked-language-model head."""

    def __init__(self, config: ElectraConfig, init: Init):
        super().__init__(config, init)
        self.generator_predictions = ElectraGeneratorPredictions(config, init)
        self.generator_lm_head = VocabularyProjection(
            init, config.embedding_size, config.vocab_size, tied=config.tie_word_embeddings
        )

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of `ElectraModel`."""
        out = self.encode(input_ids, **inputs)
        x = self.generator_predictions(out.last_hidden_state)
        return head_output(out, self.generator_lm_head(x, self.base_model.embeddings.word_embeddings.attend))


class ElectraForSequenceClassification(ElectraHead, FirstTokenClassification):
    """The encoder with a classifier on the first token."""

    act: ClassVar[str] = "gelu"


class ElectraForTokenClassification(ElectraHead, TokenClassification):
    """The encoder with a classifier on every token."""


class ElectraForQuestionAnswering(ElectraHead, QuestionAnswering):
    """The encoder with scores of the answer's first and last token."""


register(
    Architecture(
        config=ElectraConfig,
        heads={
            BASE: ElectraModel,
            MASKED_LM: ElectraForMaskedLM,
            SEQUENCE_CLASSIFICATION: ElectraForSequenceClassification,
            TOKEN_CLASSIFICATION: ElectraForTokenClassification,
            QUESTION_ANSWERING: ElectraForQuestionAnswering,
        },
        base="electra",
        tied={"generator_lm_head.weight": "embeddings.word_embeddings.weight"},
    )
)
