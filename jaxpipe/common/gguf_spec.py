"""What an architecture must say so that a GGUF file of it can be read."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class GGUFSpec:
    """How llama.cpp's converter names and lays out one architecture, seen from the Hub's checkpoint.

    Attributes:
        architecture: GGUF's ``general.architecture``.
        model_type: the Hub's ``model_type``.
        tensors: GGUF's tensor name -> the Hub's, both without ``.weight`` and ``.bias``, with ``{bid}`` for the layer.
        config_keys: GGUF's key after ``<architecture>.`` -> the key of config.json; over and above the generic ones,
            None leaves a key out.
        defaults: config.json keys that GGUF does not hold.
        flags: config.json key -> the GGUF tensor (``blk.0.attn_q.bias``) whose presence makes it true.
        transforms: regular expression on the Hub's tensor name -> what undoes the converter's layout:
            ``unpermute_heads`` and ``unpermute_kv_heads`` (rows of rotary halves interleaved per head), ``transpose``,
            ``regroup_heads`` (rows of all query, all key, then all value heads, which the Hub has in groups),
            ``minus_one``.
        variants: GGUF tensor (``blk.0.attn_norm_2.weight``) -> entries that take the place of those of `tensors` where
            it is there.
        derive: makes further keys of config.json from those that were found and from the names of GGUF's tensors, where
            it takes knowledge of the models.
    """

    architecture: str
    model_type: str
    tensors: Mapping[str, str]
    config_keys: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    transforms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    variants: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    derive: Callable[[Mapping[str, Any], Collection[str]], Mapping[str, Any]] | None = None
