"""Gemma 3 (Gemma Team, 2025; arXiv 2503.19786), the text model of google/gemma-3-4b-it, which sees images too."""

from typing import Any, ClassVar

from jaxpipe.models.config import ModelConfig
from jaxpipe.models.decoder import classifiers
from jaxpipe.models.gemma3_text import Gemma3ForCausalLM, Gemma3TextConfig, Gemma3TextModel
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register

# Keys that stand beside the text model's config, and hold for it unless it says otherwise.
SHARED = ("dtype", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id")


class Gemma3Config(ModelConfig):
    """Configuration of Gemma 3 with images, of which the text model is built."""

    model_type: ClassVar[str] = "gemma3"
    inert: ClassVar[frozenset[str]] = frozenset(
        {"vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"}
        | {"boi_token_id", "eoi_token_id", "image_token_id"}
    )

    text_config: dict[str, Any] | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        shared = {key: getattr(self, key) for key in SHARED if getattr(self, key) is not None}
        text = {**shared, "tie_word_embeddings": self.tie_word_embeddings, **(self.text_config or {})}
        self._text = Gemma3TextConfig.from_dict(text, file="config.json, text_config")
        self.text_config = self._text.to_dict()
        self.vocab_size = self._text.vocab_size

    def get_text_config(self) -> ModelConfig:
        """Returns the text model's own config."""
        return self._text


register(
    Architecture(
        config=Gemma3Config,
        heads={
            BASE: Gemma3TextModel,
            CAUSAL_LM: Gemma3ForCausalLM,
            **classifiers("Gemma3Text", Gemma3TextModel, tokens=None),
        },
        base="model",
        renamed=((r"^language_model\.(model|lm_head)\.", r"\1."), (r"^model\.language_model\.", "model.")),
        tied={"lm_head.weight": "embed_tokens.weight"},
    )
)
