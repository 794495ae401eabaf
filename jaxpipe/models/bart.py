"""BART (Lewis et al., 2020; arXiv 1910.13461), as facebook/bart-base holds it."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxpipe.common.errors import ConfigError
from jaxpipe.common.outputs import Seq2SeqLogitsOutput
from jaxpipe.models.config import ModelConfig
from jaxpipe.models.registry import BASE, SEQ2SEQ_LM, SEQUENCE_CLASSIFICATION, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.encoder_decoder import EncoderDecoder, seq2seq_output, with_logits
from jaxpipe.nn.init import Init
from jaxpipe.nn.layout import Direct
from jaxpipe.nn.linear import Linear
from jaxpipe.nn.positions import LearnedPositions
from jaxpipe.nn.transformer import Positions, Stack, Transformer, shifted

Array = jax.Array


class BartFamilyConfig(ModelConfig):
    """What the configurations of BART and its kin have in common."""

    # Switches of fairseq that older conversions wrote down; the Hub's classes never read them.
    inert: ClassVar[frozenset[str]] = frozenset(
        """_num_labels activation_dropout add_bias_logits add_final_layer_norm classif_dropout decoder_layerdrop
        do_blenderbot_90_layernorm dropout encoder_layerdrop extra_pos_embeddings force_bos_token_to_be_generated
        normalize_before normalize_embedding save_step static_position_embeddings""".split()
    )
    attribute_map: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "initializer_range": "init_std",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }

    vocab_size: int = 50265
    max_position_embeddings: int = 1024
    encoder_layers: int = 12
    encoder_ffn_dim: int = 4096
    encoder_attention_heads: int = 16
    decoder_layers: int = 12
    decoder_ffn_dim: int = 4096
    decoder_attention_heads: int = 16
    activation_function: str = "gelu"
    d_model: int = 1024
    init_std: float = 0.02
    scale_embedding: bool = False
    is_encoder_decoder: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 2
    forced_eos_token_id: int | list[int] | None = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        activation(self.activation_function, "activation_function")
        for key in ("encoder_attention_heads", "decoder_attention_heads"):
            if self.d_model % getattr(self, key):
                raise ConfigError(
                    f"config.json: d_model={self.d_model} is not a multiple of {key}={getattr(self, key)}."
                )
        if not self.is_encoder_decoder:
            raise ConfigError(f"config.json: is_encoder_decoder=false is not supported for {self.model_type!r}.")

    def limits(self) -> dict[str, int]:
        """First value out of range of each input of indices."""
        return {"input_ids": self.vocab_size, "decoder_input_ids": self.vocab_size}

    def longest_input(self) -> int | None:
        """Number of tokens that there are positions for, in the encoder as in the decoder."""
        return self.max_position_embeddings

    def to_dict(self) -> dict[str, Any]:
        """Returns the keys of a config.json. A head that lies apart tells so itself; the key would also take apart
        the embeddings of encoder and decoder, which are always one here.
        """
        return {**super().to_dict(), "tie_word_embeddings": True}

    def stack(self, half: str, *, pre_norm: bool, norm_embedding: bool) -> Stack:
        """Returns what the half ``"encoder"`` or ``"decoder"`` is made of."""
        return Stack(
            self.d_model,
            getattr(self, f"{half}_attention_heads"),
            getattr(self, f"{half}_ffn_dim"),
            getattr(self, f"{half}_layers"),
            activation(self.activation_function, "activation_function"),
            pre_norm,
            norm_embedding,
        )


class BartFamilyModel(Transformer):
    """Encoder and decoder without a head, of BART or of its kin.

    Args:
        pre_norm, norm_embedding: see `Stack`.
        positions: makes the positions of a half.
    """

    def __init__(
        self,
        config: BartFamilyConfig,
        init: Init,
        *,
        pre_norm: bool,
        norm_embedding: bool,
        positions: Callable[[Init], Positions],
    ):
        encoder, decoder = (
            config.stack(half, pre_norm=pre_norm, norm_embedding=norm_embedding) for half in ("encoder", "decoder")
        )
        super().__init__(
            init,
            config.vocab_size,
            scaled=config.scale_embedding,
            encoder=encoder,
            decoder=decoder,
            positions=positions,
        )


class BartFamilyLM(nnx.Module):
    """An encoder-decoder with a language-model head, tied to the embedding unless the checkpoint has one apart.

    Args:
        model: the encoder-decoder.
        bias: whether logits are biased; a checkpoint may lack the bias.
    """

    inputs: ClassVar[tuple[str, ...]] = EncoderDecoder.inputs

    def __init__(self, config: BartFamilyConfig, init: Init, model: Transformer, *, bias: bool = True):
        self.model = model
        tied, head, row = config.tie_word_embeddings, (config.d_model, config.vocab_size), (1, config.vocab_size)
        self.lm_head = None if tied else Linear(init, *head, bias=False, axes=("embed", "vocab"))
        layout = Direct("final_logits_bias", row)
        self.final_logits_bias = init.param((None, "vocab"), row, layout, initializer="zeros") if bias else None

    def cache_layers(self) -> list[tuple[int, int]]:
        """Heads and head width of each layer's cache of the decoder's tokens."""
        return self.model.cache_layers()

    def memory_layers(self) -> list[tuple[int, int]]:
        """Heads and head width of each layer's memory of the encoder's output."""
        return self.model.memory_layers()

    def head(self, x: Array) -> Array:
        """Logits (B, T, V) of states x (B, T, D)."""
        logits = self.model.shared.attend(x) if self.lm_head is None else self.lm_head(x)
        return logits if self.final_logits_bias is None else logits + self.final_logits_bias[...]

    def __call__(
        self, input_ids: Array | None = None, *, last: Array | None = None, **inputs: Any
    ) -> Seq2SeqLogitsOutput:
        """Runs both halves; `last` (B,) picks the one column of each row whose logits are computed."""
        return seq2seq_output(self.model(input_ids, **inputs), self.head, last)


class ClassificationHead(nnx.Module):
    """Two layers on the state of the last end token."""

    def __init__(self, config: ModelConfig, init: Init, width: int):
        self.dense = Linear(init, width, width)
        self.out_proj = Linear(init, width, config.num_labels)

    def __call__(self, x: Array) -> Array:
        return self.out_proj(jnp.tanh(self.dense(x)))  # (B, labels)


def _eos(config: ModelConfig) -> int:
    eos = config.eos_token_id
    if isinstance(eos, list):
        eos = next(iter(eos), None)
    if eos is None:
        raise ConfigError("config.json: eos_token_id is needed: a text is classified by the state of its end token.")
    return eos


class BartFamilyClassifier(nnx.Module):
    """An encoder-decoder that reads the same text twice, with a classifier on the decoder's last end token."""

    inputs: ClassVar[tuple[str, ...]] = EncoderDecoder.inputs

    def __init__(self, config: BartFamilyConfig, init: Init, model: Transformer):
        self.model = model
        self.classification_head = ClassificationHead(config, init, config.d_model)
        self.eos = _eos(config)

    @staticmethod
    def check_inputs(config: BartFamilyConfig, arrays: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError where a row has no end token to classify by, or the decoder reads another length."""
        ends = (arrays["input_ids"] == _eos(config)) & (arrays.get("attention_mask", 1) != 0)
        lacking = np.flatnonzero(~ends.any(axis=1))
        if len(lacking):
            raise ValueError(
                f"input_ids[{lacking[0]}] has no end token ({config.eos_token_id}), whose state is classified; the "
                "tokenizer adds it with add_special_tokens=True."
            )
        given = arrays.get("decoder_input_ids", ends)
        if given.shape != ends.shape:
            raise ValueError(f"decoder_input_ids has shape {given.shape}, but input_ids has {ends.shape}.")

    def __call__(self, input_ids: Array, **inputs: Any) -> Seq2SeqLogitsOutput:
        """Runs both halves on input_ids (B, T), each row of which holds an end token that is not masked."""
        out = self.model(input_ids, **inputs)
        columns = jnp.arange(input_ids.shape[1], dtype=jnp.int32)
        ends = input_ids == self.eos
        if inputs.get("attention_mask") is not None:
            ends = ends & inputs["attention_mask"].astype(bool)
        last = jnp.max(jnp.where(ends, columns, 0), axis=1)  # (B,)
        pooled = out.last_hidden_state[jnp.arange(input_ids.shape[0]), last]  # (B, D)
        return with_logits(out, self.classification_head(pooled))


def bart_architecture(config: type[BartFamilyConfig], heads: Mapping[str, type[Any]]) -> Architecture:
    """Returns the architecture of BART or of one of its kin."""
    return Architecture(
        config=config,
        heads=heads,
        base="model",
        tied={"lm_head.weight": "shared.weight"},
        copies={"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
        head_optional=("final_logits_bias",),
        # Sinusoids, which some checkpoints hold, are computed.
        ignored=(r"(encoder|decoder)\.(version|embed_positions\.weights?)",),
    )


class BartConfig(BartFamilyConfig):
    """Configuration of BART."""

    model_type: ClassVar[str] = "bart"

    def __post_init__(self) -> None:
        if self.id2label is None:
            self.id2label = {i: f"LABEL_{i}" for i in range(3)}
        super().__post_init__()


class BartModel(BartFamilyModel):
    """Encoder and decoder without a head."""

    def __init__(self, config: BartConfig, init: Init):
        def positions(init: Init) -> LearnedPositions:
            return LearnedPositions(init, config.max_position_embeddings, config.d_model)

        super().__init__(config, init, pre_norm=False, norm_embedding=True, positions=positions)
        self.start = config.decoder_start_token_id

    def decoder_ids(self, input_ids: Array) -> Array:
        """The encoder's ids behind the start token."""
        if self.start is None:
            return super().decoder_ids(input_ids)
        return shifted(input_ids, self.start)


class BartForConditionalGeneration(BartFamilyLM):
    """Encoder and decoder with a language-model head."""

    def __init__(self, config: BartConfig, init: Init):
        super().__init__(config, init, BartModel(config, init))


class BartForSequenceClassification(BartFamilyClassifier):
    """Encoder and decoder with a classifier on the last end token."""

    def __init__(self, config: BartConfig, init: Init):
        super().__init__(config, init, BartModel(config, init))


register(
    bart_architecture(
        BartConfig,
        {
            BASE: BartModel,
            SEQ2SEQ_LM: BartForConditionalGeneration,
            SEQUENCE_CLASSIFICATION: BartForSequenceClassification,
        },
    )
)
