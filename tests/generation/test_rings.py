"""Generation with ring buffers equals generation with a cache that keeps every token."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM
from jaxpipe.generation import growth
from jaxpipe.generation.inputs import Prompts
from jaxpipe.generation.run import Run
from jaxpipe.generation.settle import Settled
from jaxpipe.model import PreTrainedModel
from jaxpipe.nn.cache import CacheLayout, slots_of
from jaxpipe.nn.ring import RingLayer
from jaxpipe.sharding.mesh import use_mesh

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.5,
    "eos_token_id": None,
}
LAYERS = ["sliding_attention", "full_attention"]
GPT_NEO = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "max_position_embeddings": 256,
}
# Architectures whose layers may have a window, with what gives them one beside `SIZES`; `window` becomes the window.
WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": {},
    "gemma2": {"layer_types": LAYERS, "query_pre_attn_scalar": 8},
    "gemma3_text": {"layer_types": LAYERS, "query_pre_attn_scalar": 8},
    "gpt_oss": {"layer_types": LAYERS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
    "olmo3": {"layer_types": LAYERS},
    "cohere2": {"layer_types": LAYERS},
    "exaone4": {"layer_types": LAYERS},
    "ministral3": {},
    "starcoder2": {},
    "phi3": {"pad_token_id": 0},
    "mixtral": {"num_local_experts": 4},
    "gpt_neo": GPT_NEO,
}
QUICK = ("mistral",)
ALL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in WINDOWED]


def make(name: str, window: int) -> PreTrainedModel:
    if name == "gpt_neo":
        sizes = {"vocab_size": VOCABULARY, "initializer_range": 0.5, "eos_token_id": None, "window_size": window}
    else:
        sizes = {**SIZES, "sliding_window": window}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**sizes, **WINDOWED[name]}), seed=1)


def prompts(lengths: tuple[int, ...] = (3, 17, 1, 30)) -> tuple[np.ndarray, np.ndarray]:
    """Padded on the left and on the right by turns."""
    random = np.random.default_rng(0)
    ids, mask = np.zeros((2, len(lengths), max(lengths)), int)
    for i, length in enumerate(lengths):
        place = slice(0, length) if i % 2 else slice(max(lengths) - length, None)
        ids[i, place], mask[i, place] = random.integers(1, VOCABULARY, length), 1
    return ids, mask


@pytest.fixture
def in_full(monkeypatch: pytest.MonkeyPatch) -> Callable[..., np.ndarray]:
    """Generates with caches that keep every token in every layer."""

    def generate(model: PreTrainedModel, *args: Any, **kwargs: Any) -> np.ndarray:
        with monkeypatch.context() as patch:
            patch.setattr(growth, "CacheLayout", lambda ring, stored: CacheLayout(ring=False, stored=stored))
            return np.asarray(model.generate(*args, **kwargs))

    return generate


def layers_of(model: PreTrainedModel, **settings: Any) -> tuple[Any, ...]:
    """The layers of the cache of a call."""
    settled = Settled(prompt_length=30, **settings)
    with use_mesh(model.mesh):
        run = Run(model._generator, Prompts.of(*prompts()), settled, range(4), 0)
    return run.state.cache.layers


@pytest.mark.parametrize("name", ALL)
def test_every_architecture_with_a_window(name: str, in_full: Callable[..., np.ndarray]) -> None:
    model = make(name, window=5)
    layers = layers_of(model, max_new_tokens=60)
    rings = [layer for layer in layers if isinstance(layer, RingLayer)]
    assert rings and all(slots_of(layer) == 16 for layer in rings)
    assert all(slots_of(layer) == 128 for layer in layers if not isinstance(layer, RingLayer))
    ids, mask = prompts()
    settings = {"max_new_tokens": 60, "pad_token_id": 0}  # the ring is written four times
    np.testing.assert_array_equal(model.generate(ids, mask, **settings), in_full(model, ids, mask, **settings))


@pytest.mark.parametrize(
    "window", [pytest.param(n, marks=() if n == 24 else pytest.mark.full) for n in (1, 16, 24, 40, 100)]
)
def test_windows_of_any_length(window: int, in_full: Callable[..., np.ndarray]) -> None:
    model = make("mistral", window)
    ids, mask = prompts()
    settings = {"max_new_tokens": 70, "pad_token_id": 0}
    out = np.asarray(model.generate(ids, mask, **settings))
    np.testing.assert_array_equal(out, in_full(model, ids, mask, **settings))
    # And as the model sees the tokens without any cache, each row alone.
    for i in (0, 3):
        row = np.concatenate([ids[i][mask[i] == 1], out[i, ids.shape[1] :]])
        logits = np.asarray(model(row[None]).logits)[0, -71:-1]
        np.testing.assert_array_equal(logits.argmax(-1), out[i, ids.shape[1] :])


@pytest.mark.parametrize(
    ("window", "settings"),
    [
        (5, {"num_beams": 3}),
        pytest.param(40, {"num_beams": 3}, marks=pytest.mark.full),
        pytest.param(5, {"do_sample": True, "seed": 3, "top_k": 0}, marks=pytest.mark.full),
    ],
)
def test_sampling_and_beams(window: int, settings: dict, in_full: Callable[..., np.ndarray]) -> None:
    model = make("gemma3_text", window)
    ids, mask = prompts()
    settings = {"max_new_tokens": 60, "pad_token_id": 0, **settings}
    np.testing.assert_array_equal(model.generate(ids, mask, **settings), in_full(model, ids, mask, **settings))


@pytest.mark.full
def test_prompts_that_differ_much_in_length(in_full: Callable[..., np.ndarray]) -> None:
    model = make("mistral", 24)
    ids, mask = prompts((1, 2, 90, 20, 33))
    settings = {"max_new_tokens": 30, "pad_token_id": 0}
    together = np.asarray(model.generate(ids, mask, **settings))
    np.testing.assert_array_equal(together, in_full(model, ids, mask, **settings))
    for i in range(len(ids)):
        alone = np.asarray(model.generate(ids[i][mask[i] == 1][None], **settings))[:, -30:]
        np.testing.assert_array_equal(together[i, -30:], alone[0])
