"""What the architectures of decoders share: their classifying heads, and configurations with rotary positions."""

import types
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxpipe.common.errors import ConfigError, nearest
from jaxpipe.models.config import ModelConfig
from jaxpipe.models.registry import QUESTION_ANSWERING, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder_heads import DecoderQuestionAnswering, DecoderTokenClassification, LastTokenClassification
from jaxpipe.nn.rope import Rope, rope_parameters

SLIDING, FULL = "sliding_attention", "full_attention"
# Names in GGUF files of what the layers of Llama and its like hold; see `GGUFSpec`.
GGUF_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{bid}.attn_norm": "model.layers.{bid}.input_layernorm",
    "blk.{bid}.attn_q": "model.layers.{bid}.self_attn.q_proj",
    "blk.{bid}.attn_k": "model.layers.{bid}.self_attn.k_proj",
    "blk.{bid}.attn_v": "model.layers.{bid}.self_attn.v_proj",
    "blk.{bid}.attn_output": "model.layers.{bid}.self_attn.o_proj",
    "blk.{bid}.ffn_norm": "model.layers.{bid}.post_attention_layernorm",
    "blk.{bid}.ffn_gate": "model.layers.{bid}.mlp.gate_proj",
    "blk.{bid}.ffn_up": "model.layers.{bid}.mlp.up_proj",
    "blk.{bid}.ffn_down": "model.layers.{bid}.mlp.down_proj",
}


def classifiers(
    name: str,
    model: type[Any],
    *,
    base: str = "model",
    tokens: str | None = "score",
    answers: str | None = None,
    width: str = "hidden_size",
) -> dict[str, type[Any]]:
    """Makes the classes of a decoder's heads that classify, by what they do.

    Args:
        name: what the classes' names begin with, in the Hub's ``architectures``.
        model: class of the decoder.
        base: attribute of the decoder, as checkpoints have it.
        tokens: attribute of the classifier of tokens; None where the Hub has no such head.
        answers: attribute of the decoder under the head for question answering; None where there is none.
        width: key of the config that has the width of the decoder's states.
    """

    def made(suffix: str, head: type[Any], **attributes: Any) -> type[Any]:
        own = {"model": model, "width": width, "__module__": model.__module__, "__doc__": head.__doc__, **attributes}
        return types.new_class(f"{name}For{suffix}", (head,), {}, lambda body: body.update(own))

    heads = {SEQUENCE_CLASSIFICATION: made("SequenceClassification", LastTokenClassification, base=base)}
    if tokens is not None:
        heads[TOKEN_CLASSIFICATION] = made("TokenClassification", DecoderTokenClassification, base=base, scores=tokens)
    if answers is not None:
        heads[QUESTION_ANSWERING] = made("QuestionAnswering", DecoderQuestionAnswering, base=answers)
    return heads


class DecoderConfig(ModelConfig):
    """Base of the config dataclasses of decoders with rotary positions.

    Attributes of the class:
        default_theta: base of the rotary frequencies where config.json names none, or one for each layer type.
        default_rotary_factor: rotated part of a head where config.json names none; None for all of it.
    """

    default_theta: ClassVar[float | Mapping[str, float]] = 10_000.0
    default_rotary_factor: ClassVar[float | None] = None

    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 0  # as many as there are heads
    head_dim: int = 0  # hidden_size / num_attention_heads
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rope_parameters: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in {"hidden_act", "hidden_activation"} & self.keys():
            activation(getattr(self, key), key)
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"config.json: num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}."
            )
        keys = ("rope_parameters", "max_position_embeddings", "original_max_position_embeddings")
        self.rope_parameters = self.read_rope({key: getattr(self, key) for key in keys if key in self.keys()})

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super().normalise(values)
        # null stands for what the other sizes give, whatever the class's default is.
        width, heads = (values.get(k) or getattr(cls, k) for k in ("hidden_size", "num_attention_heads"))
        if isinstance(width, int) and isinstance(heads, int):
            derived = {"num_key_value_heads": heads, "head_dim": width // heads}
            values |= {k: size for k, size in derived.items() if k in values and values[k] is None}
        values["rope_parameters"] = cls.read_rope(values)
        return {k: v for k, v in values.items() if k not in ("rope_theta", "rope_scaling", "partial_rotary_factor")}

    @classmethod
    def read_rope(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Reads the rope keys of a config.json; see `nn.rope.rope_parameters`."""
        return rope_parameters(values, theta=cls.default_theta, partial=cls.default_rotary_factor)

    def rope(self) -> Rope:
        """The frequencies of all layers."""
        return Rope.of(self.rope_parameters or {}, self.head_dim, self.max_position_embeddings)

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, key-value heads and the width of each."""
        return self.num_attention_heads, self.num_key_value_heads, self.head_dim


def layer_types(given: Sequence[str] | None, layers: int, period: int, window: int | None) -> list[str]:
    """Settles the kind of attention of each layer: ``"sliding_attention"`` or ``"full_attention"``.

    Args:
        given: ``layer_types`` of a config.json, or None.
        layers: how many there are.
        period: where `given` is None, each `period`-th layer is full and the others slide.
        window: ``sliding_window`` of the config.

    Raises:
        ConfigError: an unknown kind, not one for each layer, or sliding layers without a window.
    """
    kinds = [SLIDING if (i + 1) % period else FULL for i in range(layers)] if given is None else list(given)
    unknown = [kind for kind in kinds if kind not in (SLIDING, FULL)]
    if unknown:
        raise ConfigError(
            f"config.json: layer_types holds {unknown[0]!r}; known kinds: {SLIDING!r}, {FULL!r}."
            + nearest(unknown[0], (SLIDING, FULL))
        )
    if len(kinds) != layers:
        raise ConfigError(f"config.json: layer_types has {len(kinds)} entries, but num_hidden_layers={layers}.")
    if SLIDING in kinds and not window:
        raise ConfigError(f"config.json: layer_types holds {SLIDING!r}, but sliding_window is {window!r}.")
    return kinds
