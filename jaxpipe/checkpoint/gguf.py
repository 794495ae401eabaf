"""GGUF files as checkpoints: metadata as a Hub configuration and vocabulary, tensors under the Hub's names."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from jaxpipe.checkpoint.gguf_header import GGUFTensor, read_header
from jaxpipe.checkpoint.gguf_rope import llama3_scaling, metadata_scaling
from jaxpipe.checkpoint.gguf_tensors import RAW, ROPE_FREQS, ROPE_LONG, ROPE_SHORT, GGUFSource
from jaxpipe.checkpoint.source import TensorSource
from jaxpipe.common.errors import CheckpointError, nearest
from jaxpipe.common.gguf_spec import GGUFSpec
from jaxpipe.common.logging import info_once

# GGUF's key after "<architecture>." -> the key of config.json that most architectures have.
CONFIG_KEYS: dict[str, str | None] = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "rope.freq_base": "rope_theta",
}
# Read elsewhere, or the same as a key above.
SEEN = ("rope.", "attention.value_length", "vocab_size")
VOCABULARY, TOKENIZER = "tokenizer.ggml.", "tokenizer."
# Ids that end a text: the end of a text, of a turn and of a message.
END_IDS = ("eos_token_id", "eot_token_id", "eom_token_id")
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
DEFAULT_THETA = 10000.0


class GGUFFile:
    """A GGUF file: what its header says, in the Hub's terms, and its tensors.

    Args:
        path: the file.
        spec: names and layouts of its architecture; by default those of the registered model.

    Attributes:
        metadata: the header's keys and values as plain Python.
        tensors: the header's tensors by GGUF's name.
        architecture: ``general.architecture``.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or is one part of several.
    """

    def __init__(self, path: str | os.PathLike[str], spec: GGUFSpec | None = None) -> None:
        self.path = Path(path)
        header = read_header(self.path)
        self.metadata: dict[str, Any] = header.metadata
        self.tensors: dict[str, GGUFTensor] = header.tensors
        self._data = header.data
        self._spec = spec
        architecture = self.metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise CheckpointError(f"{self.path}: the metadata has no general.architecture; it holds no model.")
        self.architecture: str = architecture
        parts = self.metadata.get("split.count")
        if isinstance(parts, int) and parts > 1:
            raise CheckpointError(
                f"{self.path}: is one of {parts} parts; join them first with `llama-gguf-split --merge FIRST_PART OUT`."
            )

    @property
    def spec(self) -> GGUFSpec:
        """Names and layouts of the architecture.

        Raises:
            CheckpointError: the architecture is not known.
        """
        if self._spec is None:
            from jaxpipe.models import registry

            self._spec = registry.gguf_spec(self.architecture)
            if self._spec is None:
                specs = (registry.architecture(model_type).gguf for model_type in registry.model_types())
                known = sorted(spec.architecture for spec in specs if spec)
                raise CheckpointError(
                    f"{self.path}: general.architecture {self.architecture!r} is not supported in GGUF files; "
                    f"supported: {', '.join(known)}.{nearest(self.architecture, known)}"
                )
        return self._spec

    def _value(self, key: str, default: Any = None) -> Any:
        """Returns ``<architecture>.<key>``; a list of one value for each layer is given as that value if all agree."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            return value[0]
        return value

    def _number(self, key: str) -> int | float | None:
        value = self._value(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0):
            raise CheckpointError(
                f"{self.path}: {self.architecture}.{key} must be a number of at least 0, not {value!r:.80}."
            )
        return value

    def config(self) -> dict[str, Any]:
        """Returns the configuration in the keys of config.json, ``model_type`` among them.

        Raises:
            CheckpointError: the architecture is not known, or the file contradicts itself.
        """
        spec = self.spec
        config: dict[str, Any] = {"model_type": spec.model_type, **spec.defaults}
        keys: dict[str, str | None] = {**CONFIG_KEYS, **spec.config_keys}
        for theirs, ours in keys.items():
            if ours is not None and (value := self._value(theirs)) is not None:
                if theirs in CONFIG_KEYS and not isinstance(value, list):
                    value = self._number(theirs)
                config[ours] = value
        # The embedding's rows are what the model has; the key and the token list may be padded otherwise.
        if EMBEDDING in self.tensors and self.tensors[EMBEDDING].shape:
            config["vocab_size"] = self.tensors[EMBEDDING].shape[0]
        elif "vocab_size" not in config and f"{VOCABULARY}tokens" in self.metadata:
            config["vocab_size"] = len(self.metadata[f"{VOCABULARY}tokens"])
        config["tie_word_embeddings"] = OUTPUT not in self.tensors
        config |= {key: name in self.tensors for key, name in spec.flags.items()}
        config |= self._rope(config)
        config |= {"bos_token_id": None, "eos_token_id": None} | self.generation_config()
        if spec.derive:
            config |= spec.derive(config, self.tensors.keys())
        config["dtype"] = self._dtype()
        self._report_unused(keys)
        return config

    def _rope(self, config: dict[str, Any]) -> dict[str, Any]:
        """Returns the rotary keys of the configuration beside the base."""
        prefix = f"{self.architecture}.rope."
        values = {key.removeprefix(prefix): value for key, value in self.metadata.items() if key.startswith(prefix)}
        found: dict[str, Any] = {}
        if scaling := metadata_scaling(self.path, values):
            found["rope_scaling"] = scaling
        if ROPE_FREQS in self.tensors:
            theta = float(self._number("rope.freq_base") or DEFAULT_THETA)
            if scaling := llama3_scaling(self.path, self._rope_factors(ROPE_FREQS), theta):
                found["rope_scaling"] = scaling
        if {ROPE_LONG, ROPE_SHORT} <= set(self.tensors):
            long, short = (self._rope_factors(name).tolist() for name in (ROPE_LONG, ROPE_SHORT))
            found["rope_scaling"] = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
            if "scaling.attn_factor" in values:
                found["rope_scaling"]["attention_factor"] = values["scaling.attn_factor"]
        rotated, width = self._number("rope.dimension_count"), self._head_width()
        if rotated and width and rotated != width:
            found["partial_rotary_factor"] = rotated / width
        return found

    def _head_width(self) -> int | float | None:
        if width := self._number("attention.key_length"):
            return width
        if isinstance(self._value("attention.head_count"), list):
            return None
        width, heads = self._number("embedding_length"), self._number("attention.head_count")
        return width // heads if width and heads else None

    def _rope_factors(self, name: str) -> np.ndarray:
        tensor = self.tensors[name]
        if tensor.type not in RAW:
            raise CheckpointError(f"{self.path}: {name!r} must be stored as plain numbers.")
        data = np.frombuffer(self._data, np.uint8)[tensor.begin : tensor.end]
        return data.view(RAW[tensor.type]).astype(np.float64)

    def _dtype(self) -> str:
        """Returns the dtype that most of the values are read in; float32 for quantised ones."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            dtype = RAW.get(tensor.type, np.dtype(np.float32))
            if dtype.kind not in "iu":
                sizes[dtype.name] += int(np.prod(tensor.shape, dtype=np.int64))
        return sizes.most_common(1)[0][0] if sizes else "float32"

    def _report_unused(self, keys: dict[str, str | None]) -> None:
        prefix = f"{self.architecture}."
        own = [key.removeprefix(prefix) for key in self.metadata if key.startswith(prefix)]
        if unused := [key for key in own if key not in keys and not key.startswith(SEEN)]:
            info_once(f"{self.path.name}: metadata that is not used: {', '.join(unused)}.")

    def generation_config(self) -> dict[str, Any]:
        """Returns the ids that begin, end and pad texts or start a decoder, in the keys of generation_config.json."""
        ids = {name: self.metadata.get(VOCABULARY + name) for name in END_IDS}
        ends = list(dict.fromkeys(value for value in ids.values() if isinstance(value, int)))
        found: dict[str, Any] = {"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {}
        for theirs, ours in {"bos_token_id": "bos_token_id", "padding_token_id": "pad_token_id"}.items():
            if isinstance(value := self.metadata.get(VOCABULARY + theirs), int):
                found[ours] = value
        if isinstance(start := self._value("decoder_start_token_id"), int):
            found["decoder_start_token_id"] = start
        return found

    def vocabulary(self) -> dict[str, Any]:
        """Returns the tokenizer's part of the metadata: keys after ``tokenizer.ggml.``, and ``chat_template``.

        Named templates come as ``chat_templates``, name -> template.
        """
        result: dict[str, Any] = {}
        templates: dict[str, str] = {}
        for key, value in self.metadata.items():
            if key.startswith(VOCABULARY):
                result[key.removeprefix(VOCABULARY)] = value
            elif key.startswith(f"{TOKENIZER}chat_template."):
                templates[key.removeprefix(f"{TOKENIZER}chat_template.")] = value
            elif key.startswith(TOKENIZER) and key != f"{TOKENIZER}chat_templates":
                result[key.removeprefix(TOKENIZER)] = value
        if templates:
            result["chat_templates"] = templates
        return result

    def source(self) -> TensorSource:
        """Opens the tensors under the Hub's names; those that the architecture does not know keep their own.

        Raises:
            CheckpointError: a quantisation type cannot be read, or a tensor does not fit the architecture.
        """
        heads = self._value("attention.head_count")
        kv_heads = self._value("attention.head_count_kv", heads)
        return GGUFSource(self.path, self._data, self.tensors, self.spec, (heads, kv_heads), self.metadata)
