"""Classifiers on decoders: of sequences, by the last token that is no padding, as reward models and rerankers are."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.common.outputs import LogitsOutput
from jaxpipe.nn.encoder import EncoderHead, QuestionAnswering, head_output
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import Linear

Array = jax.Array


class DecoderHead(EncoderHead):
    """A decoder with a head that is no language model's.

    Attributes of the class:
        base: attribute of the decoder, as the checkpoint has the name.
        model: class of the decoder.
    """

    base: ClassVar[str] = "model"
    model: ClassVar[type[Any]]

    @classmethod
    def encoder(cls, config: Any, init: Init) -> Any:
        """Makes the decoder."""
        return cls.model(config, init)


class LastTokenClassification(DecoderHead):
    """A decoder with a classifier on each row's last token that is neither the padding token nor masked.

    Transformers goes by the padding token alone; both choose the same one where what is masked is padding.
    """

    def __init__(self, config: Any, init: Init):
        super().__init__(config, init)
        self.score = Linear(init, getattr(config, self.width), config.num_labels, bias=False)
        self.pad = config.pad_token_id

    @staticmethod
    def check_inputs(config: Any, arrays: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError where nothing tells how long the rows are."""
        rows = len(arrays["input_ids"])
        if rows > 1 and config.pad_token_id is None and "attention_mask" not in arrays:
            raise ValueError(
                f"input_ids has {rows} rows, each classified by its last token, but nothing tells which tokens are "
                "padding: pass attention_mask, or set pad_token_id in the config."
            )

    def __call__(self, input_ids: Array, *, attention_mask: Array | None = None, **inputs: Any) -> LogitsOutput:
        """Runs the decoder on input_ids (B, T); arguments as of the bare model."""
        out = self.encode(input_ids, attention_mask=attention_mask, **inputs)
        kept = jnp.ones(input_ids.shape, bool) if attention_mask is None else attention_mask != 0
        if self.pad is not None:
            kept &= input_ids != self.pad
        columns = jnp.arange(input_ids.shape[1], dtype=jnp.int32)
        last = jnp.max(jnp.where(kept, columns, 0), axis=1)  # (B,)
        pooled = out.last_hidden_state[jnp.arange(input_ids.shape[0]), last]  # (B, D)
        return head_output(out, self.score(pooled))  # (B, labels)


class DecoderTokenClassification(DecoderHead):
    """A decoder with a classifier on every token.

    Attributes of the class:
        scores: attribute of the classifier, as the checkpoint has the name.
    """

    scores: ClassVar[str] = "score"

    def __init__(self, config: Any, init: Init):
        super().__init__(config, init)
        setattr(self, self.scores, Linear(init, getattr(config, self.width), config.num_labels))

    def __call__(self, input_ids: Array, **inputs: Any) -> LogitsOutput:
        """Runs the decoder; arguments as of the bare model."""
        out = self.encode(input_ids, **inputs)
        return head_output(out, getattr(self, self.scores)(out.last_hidden_state))  # (B, T, labels)


class DecoderQuestionAnswering(DecoderHead, QuestionAnswering):
    """A decoder with scores of the answer's first and last token."""
