"""The setting of a watermark: read and checked."""

from collections.abc import Mapping
from typing import Any

from jaxpipe.common.errors import nearest
from jaxpipe.generation.layers import Merged
from jaxpipe.generation.watermarking import SynthIDTextWatermarkingConfig, WatermarkingConfig

Watermark = WatermarkingConfig | SynthIDTextWatermarkingConfig


def watermark_settings(merged: Merged) -> Watermark | None:
    """Returns the watermark that ``watermarking_config`` asks for, or None.

    Raises:
        ValueError: it is of another kind, an entry is unknown, or a value is out of range.
    """
    value = merged.get("watermarking_config")
    if value is None:
        return None
    try:
        return as_watermark(value)
    except ValueError as error:
        layer = merged.layer("watermarking_config")
        raise ValueError(f"watermarking_config ({layer.origin if layer else 'given'}): {error}") from None


def as_watermark(value: Any) -> Watermark:
    """Returns a checked config of a watermark.

    Args:
        value: a `WatermarkingConfig` or `SynthIDTextWatermarkingConfig`, one of Transformers, or a mapping of its
            entries; with ``ngram_len`` or ``keys`` it is SynthID's.

    Raises:
        ValueError: it is of another kind, an entry is unknown, or a value is out of range.
    """
    entries = value if isinstance(value, Mapping) else getattr(value, "to_dict", lambda: None)()
    if not isinstance(entries, Mapping):
        raise ValueError(
            f"{value!r}: expected a WatermarkingConfig, a SynthIDTextWatermarkingConfig, or a mapping of the entries "
            "of one."
        )
    kind = SynthIDTextWatermarkingConfig if {"ngram_len", "keys"} & set(entries) else WatermarkingConfig
    names = kind.__dataclass_fields__
    unknown = next((name for name in entries if name not in names), None)
    if unknown is not None:
        raise ValueError(f"{kind.__name__} has no entry {unknown!r}.{nearest(str(unknown), list(names))}")
    missing = [name for name in ("ngram_len", "keys") if name in names and name not in entries]
    if missing:
        raise ValueError(f"{kind.__name__} needs {' and '.join(missing)}.")
    config = kind(**entries)
    config.validate()
    return config
