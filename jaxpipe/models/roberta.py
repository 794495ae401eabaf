"""RoBERTa (Liu et al., 2019; arXiv 1907.11692), as FacebookAI/roberta-base holds it."""

from typing import Any, ClassVar

import jax
from flax import nnx

from jaxpipe.common.errors import ConfigError
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
from jaxpipe.nn.bert import (
    BertEmbeddings,
    BertEncoder,
    BertPooler,
    LMHead,
    positions_from_ids,
)
from jaxpipe.nn.encoder import (
    EncoderHead,
    FirstTokenClassification,
    QuestionAnswering,
    TokenClassification,
    head_output,
    run_encoder,
)
from jaxpipe.nn.init import Init

Array = jax.Array


class RobertaConfig(EncoderConfig):
    """Configuration of RoBERTa and of what is built like it."""

    model_type: ClassVar[str] = "roberta"

    vocab_size: int = 50265
    type_vocab_size: int = 2
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pad_token_id is None or self.pad_token_id < 0:
            raise ConfigError(
                f"config.json: pad_token_id={self.pad_token_id}, but {self.model_type!r} counts its positions from the "
                "padding token on."
            )

    @property
    def padding(self) -> int:
        """The padding token's id, which is also the position before the first."""
        return self.pad_token_id or 0

    def longest_input(self) -> int:
        """Number of tokens that the positions after the padding's serve: 512 where the table holds 514."""
        return self.max_position_embeddings - self.padding - 1


class RobertaModel(nnx.Module):
    """The encoder without a head: BERT's with positions of its own.

    Args:
        pooler: with the pooler, which the heads do without.
    """

    def __init__(self, config: RobertaConfig, init: Init, *, pooler: bool = True):
        self.embeddings = BertEmbeddings(config, init)
        self.encoder = BertEncoder(config, init)
        self.pooler = BertPooler(config, init) if pooler else None
        self.padding = config.padding

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
        """Runs the encoder on input_ids (B, T); positions that are not given count the tokens but the padding."""
        if position_ids is None:
            position_ids = positions_from_ids(input_ids, self.padding)
        x = self.embeddings(input_ids, token_type_ids, position_ids)  # (B, T, D)
        span = full_span(input_ids.shape[1], attention_mask)
        walk = run_encoder(self.encoder.layer, x, span, weights=output_attentions)
        out = walk.finish(walk.x, output_hidden_states)
        if self.pooler is not None:
            out.pooler_output = self.pooler(walk.x)
        return out


class RobertaHead(EncoderHead):
    """The encoder under a head."""

    base: ClassVar[str] = "roberta"

    @staticmethod
    def encoder(config: RobertaConfig, init: Init) -> RobertaModel:
        """Makes the encoder."""
        return RobertaModel(config, init, pooler=False)


class RobertaForMaskedLM(RobertaHead):
    """The encoder with a masked-language-model head."""

    def __init__(self, config: RobertaConfig, init: Init):
        super().__init__(config, init)
        self.lm_head = LMHead(config, init, tied=config.tie_word_embeddings)

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the encoder; arguments as of `RobertaModel`."""
        out = self.encode(input_ids, **inputs)
        embedding = self.base_model.embeddings.word_embeddings.attend
        return head_output(out, self.lm_head(out.last_hidden_state, embedding))  # (B, T, V)


class RobertaForSequenceClassification(RobertaHead, FirstTokenClassification):
    """The encoder with a classifier on the first token."""


class RobertaForTokenClassification(RobertaHead, TokenClassification):
    """The encoder with a classifier on every token."""


class RobertaForQuestionAnswering(RobertaHead, QuestionAnswering):
    """The encoder with scores of the answer's first and last token."""


def roberta_architecture(config: type[RobertaConfig], prefix: str) -> Architecture:
    """Describes an architecture that is this one under other class names, those that begin with `prefix`."""
    heads = {
        BASE: RobertaModel,
        MASKED_LM: RobertaForMaskedLM,
        SEQUENCE_CLASSIFICATION: RobertaForSequenceClassification,
        TOKEN_CLASSIFICATION: RobertaForTokenClassification,
        QUESTION_ANSWERING: RobertaForQuestionAnswering,
    }
    if prefix != "Roberta":
        named = {head: cls.__name__.replace("Roberta", prefix, 1) for head, cls in heads.items()}
        heads = {head: type(named[head], (cls,), {"__doc__": cls.__doc__}) for head, cls in heads.items()}
    return Architecture(
        config=config,
        heads=heads,
        base="roberta",
        optional=("pooler",),
        tied={"lm_head.decoder.weight": "embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"},
    )


register(roberta_architecture(RobertaConfig, "Roberta"))
