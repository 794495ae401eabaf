"""How the call's key-value cache is kept: ``cache_implementation`` and ``cache_config``."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxpipe.common.logging import info_once
from jaxpipe.generation.layers import Merged
from jaxpipe.nn.quantized_cache import GREATEST

# All of these are the static cache that generation always has.
STATIC = ("static", "dynamic", "hybrid", "hybrid_chunked", "sliding_window")
QUANTIZED = "quantized"

_BACKENDS = {"quanto": "int8", "hqq": "int8", "fp8": "float8_e4m3fn"}
# Of Transformers' groups and of the tokens that it keeps as they are.
_OF_GROUPS = ("axis_key", "axis_value", "q_group_size", "residual_length")


def cache_settings(merged: Merged) -> dict[str, Any]:
    """Returns ``cache_dtype``, the 8-bit type in which keys and values are kept, or None.

    ``cache_config`` of a quantised cache holds ``"dtype"`` (``"int8"`` or ``"float8_e4m3fn"``), or as in Transformers
    ``"backend"`` (``"quanto"`` and ``"hqq"`` are int8, ``"fp8"`` is float8_e4m3fn) and ``"nbits"`` (8). Without it the
    type is int8.

    Raises:
        ValueError: another kind of cache, other bits, or a setting of groups.
    """
    kind = merged.get("cache_implementation")
    if kind is not None and kind not in (*STATIC, QUANTIZED):
        raise merged.error("cache_implementation", f"None, {QUANTIZED!r}, or one of {', '.join(map(repr, STATIC))}")
    if kind != QUANTIZED:
        if merged.by_user("cache_config") and merged.get("cache_config") is not None:
            info_once(f"cache_config has no effect: it only acts with cache_implementation={QUANTIZED!r}.")
        return {"cache_dtype": None}
    return {"cache_dtype": _stored(merged)}


def _stored(merged: Merged) -> str:
    config = merged.get("cache_config")
    if config is not None and not isinstance(config, Mapping):
        raise merged.error("cache_config", 'a dict such as {"dtype": "int8"} or {"backend": "hqq", "nbits": 8}')
    given = {name: value for name, value in (config or {}).items() if value is not None}
    for name, value in given.items():
        if name in _OF_GROUPS:
            raise ValueError(
                f"cache_config[{name!r}]={value!r} is not supported: every token has one scale for each head, in 8 "
                "bits; leave it out."
            )
        if name not in ("backend", "dtype", "nbits"):
            raise ValueError(f'cache_config has an unknown key {name!r}; known are "backend", "dtype" and "nbits".')
    backend = given.get("backend")
    if backend is not None and backend not in _BACKENDS:
        raise ValueError(f"cache_config['backend']={backend!r}: expected one of {', '.join(map(repr, _BACKENDS))}.")
    if backend == "fp8" and "nbits" in given:
        raise ValueError(
            f"cache_config['nbits']={given['nbits']!r} is for 'quanto' and 'hqq'; 'fp8' has 8 bits: leave it out."
        )
    if given.get("nbits", 8) != 8:
        raise ValueError(
            f"cache_config['nbits']={given['nbits']!r} is not supported: keys and values are kept in 8 bits; set it to "
            "8."
        )
    stored = _dtype(given["dtype"]) if "dtype" in given else None
    if stored is not None and backend is not None and _BACKENDS[backend] != stored:
        raise ValueError(
            f"cache_config['backend']={backend!r} is {_BACKENDS[backend]}, but cache_config['dtype'] is {stored}; give "
            "one of them."
        )
    return stored or (_BACKENDS[backend] if backend is not None else "int8")


def _dtype(value: Any) -> str:
    try:
        name = jnp.dtype(value).name
    except TypeError:
        name = None
    if name not in GREATEST:
        raise ValueError(f"cache_config['dtype']={value!r}: expected {' or '.join(map(repr, GREATEST))}.")
    return name
