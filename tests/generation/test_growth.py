"""A cache that grows while it fills gives what a cache of full length from the start gives."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from jaxpipe.generation import buckets
from jaxpipe.generation.buckets import cache_bucket, cache_stages
from jaxpipe.generation.growth import extended, grow_cache
from jaxpipe.generation.streamers import BaseStreamer
from jaxpipe.model import PreTrainedModel
from jaxpipe.nn.cache import Cache, CacheLayout, WindowShape, slots_of
from jaxpipe.nn.ssm import SSMShape

VOCABULARY = 61


@pytest.fixture
def small_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches begin with 64 slots."""
    monkeypatch.setattr(buckets, "_GROWS_FROM", 64)
    monkeypatch.setattr(buckets, "_FIRST_ROOM", 8)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Generates with caches of full length."""

    def generate(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(buckets, "_GROWS_FROM", 1 << 20)
            return model.generate(*args, **kwargs)

    return generate


def make(**sizes: Any) -> PreTrainedModel:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.5,
        "eos_token_id": None,
        "query_pre_attn_scalar": 8,
        # A ring that is as long as its window from the start, one that grows to it, and a layer without a window.
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 100,
        **sizes,
    }
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3_text", **sizes), seed=1)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make()


def prompts(lengths: tuple[int, ...] = (3, 17, 30)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    ids, mask = np.zeros((2, len(lengths), max(lengths)), int)
    for i, length in enumerate(lengths):
        ids[i, max(lengths) - length :], mask[i, max(lengths) - length :] = random.integers(1, VOCABULARY, length), 1
    return ids, mask


@pytest.mark.parametrize(
    ("width", "new", "stages"),
    [
        (128, 256, (384,)),  # a prompt and an answer as most are
        (16, 1000, (1024,)),
        (1024, 7168, (1280, 2560, 5120, 8192)),  # 1k in a cache of 8k costs 1k
        (16, 4000, (1024, 2048, 4096)),
        (8192, 128, (10240,)),
        (4096, 8192, (5120, 10240, 12288)),
    ],
)
def test_stages(width: int, new: int, stages: tuple[int, ...]) -> None:
    expected = stages if width != 128 else (cache_bucket(384),)
    assert cache_stages(width, cache_bucket(width + new)) == expected


def test_stages_hold_the_prompt_and_end_with_all_slots() -> None:
    for width in (1, 16, 100, 1024, 5000):
        for new in (1, 20, 500, 5000, 50_000):
            slots = cache_bucket(width + new)
            stages = cache_stages(width, slots)
            assert stages[-1] == slots and stages[0] > width and list(stages) == sorted(set(stages))
            # Never more than twice what is filled, where that is more than a small cache.
            assert all(later <= 2 * earlier for earlier, later in itertools.pairwise(stages))
            assert stages[0] <= max(1024, 1.5 * (width + 256))


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("stored", [None, "int8"])
def test_growing_keeps_what_is_held_and_frees_what_it_replaces(ring: bool, stored: str | None) -> None:
    shapes = [(2, 3), WindowShape(2, 3, 20, 3), WindowShape(2, 3, 100, 3), SSMShape(4, 5, 2, 3, 2)]
    layout = CacheLayout(ring=ring, stored=stored)
    cache = Cache.empty(shapes, 2, 64, jnp.dtype(jnp.float32), layout)
    fill = lambda x: jnp.arange(x.size).astype(x.dtype).reshape(x.shape)  # noqa: E731
    cache = Cache(jax.tree.map(fill, cache.layers), fill(cache.positions), jnp.int32(60), fresh=False)
    before, arrays = jax.tree.map(np.asarray, cache), jax.tree.leaves(cache)
    grown = grow_cache(cache, 160)
    assert [slots_of(layer) for layer in grown.layers] == ([160, 32, 112, None] if ring else [160, 160, 160, None])
    assert jax.tree.structure(grown) == jax.tree.structure(cache)
    for old, new, array in zip(jax.tree.leaves(before), jax.tree.leaves(grown), arrays, strict=True):
        assert array.is_deleted() == (old.shape != new.shape)
        if old.ndim > 1:
            kept = np.asarray(new)[:, : old.shape[1]]
            np.testing.assert_array_equal(kept, old)
            rest = np.asarray(new)[:, old.shape[1] :]
            assert (rest == (-1 if old.ndim == 2 else 0)).all()


def test_nothing_happens_to_what_is_long_enough() -> None:
    x = jnp.ones((2, 8))
    assert extended(x, 8, 0) is x


@pytest.mark.usefixtures("small_stages")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"do_sample": True, "seed": 2, "num_return_sequences": 2}, marks=pytest.mark.full),
        {"num_beams": 3},
        pytest.param({"num_beams": 2, "do_sample": True, "seed": 2, "early_stopping": True}, marks=pytest.mark.full),
        pytest.param({"num_beams": 2, "length_penalty": 2.0, "eos_token_id": 5}, marks=pytest.mark.full),
        pytest.param({"cache_implementation": "quantized"}, marks=pytest.mark.full),
        pytest.param({"penalty_alpha": 0.6, "top_k": 3}, marks=pytest.mark.full),
        pytest.param({"guidance_scale": 1.5}, marks=pytest.mark.full),
        pytest.param({"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}, marks=pytest.mark.full),
    ],
)
def test_ids_are_those_of_a_cache_of_full_length(
    model: PreTrainedModel, settings: dict, at_once: Callable[..., Any]
) -> None:
    ids, mask = prompts()
    settings = {"max_new_tokens": 90, "pad_token_id": 0, **settings}  # 64 and 128 slots
    np.testing.assert_array_equal(model.generate(ids, mask, **settings), at_once(model, ids, mask, **settings))


@pytest.mark.full
@pytest.mark.usefixtures("small_stages")
def test_scores_of_every_step_are_kept(model: PreTrainedModel, at_once: Callable[..., Any]) -> None:
    ids, mask = prompts()
    settings = {"max_new_tokens": 150, "pad_token_id": 0, "return_dict_in_generate": True, "output_scores": True}
    out, wanted = model.generate(ids, mask, **settings), at_once(model, ids, mask, **settings)
    assert len(out.scores) == 150
    np.testing.assert_allclose(np.stack(out.scores), np.stack(wanted.scores), atol=1e-3)


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: np.ndarray) -> None:
        self.tokens += np.asarray(value).reshape(-1).tolist()

    def end(self) -> None:
        pass


@pytest.mark.usefixtures("small_stages")
def test_streams_and_criteria_see_every_token(model: PreTrainedModel) -> None:
    ids = prompts((20,))[0]
    plain = np.asarray(model.generate(ids, max_new_tokens=90))[0]
    streamer = Collector()
    model.generate(ids, max_new_tokens=90, streamer=streamer)
    assert streamer.tokens == plain.tolist()
    seen: list[int] = []

    def criterion(input_ids: np.ndarray, scores: object) -> bool:
        seen.append(input_ids.shape[1])
        return input_ids.shape[1] >= 20 + 70

    out = np.asarray(model.generate(ids, max_new_tokens=90, stopping_criteria=[criterion]))
    np.testing.assert_array_equal(out[0], plain[: 20 + 70])
    assert seen == list(range(21, 91))


@pytest.mark.full
@pytest.mark.usefixtures("small_stages")
def test_criteria_of_beams(model: PreTrainedModel, at_once: Callable[..., Any]) -> None:
    ids, mask = prompts()

    def criterion(input_ids: np.ndarray, scores: object) -> np.ndarray:
        return np.asarray(input_ids[:, -1] == 7) & (input_ids.shape[1] > 120)

    settings = {"max_new_tokens": 140, "num_beams": 2, "stopping_criteria": [criterion], "pad_token_id": 0}
    np.testing.assert_array_equal(model.generate(ids, mask, **settings), at_once(model, ids, mask, **settings))


@pytest.mark.full
@pytest.mark.usefixtures("small_stages")
@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}])
def test_an_encoder_decoder(settings: dict, at_once: Callable[..., Any]) -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "initializer_factor": 2.0}
    config = AutoConfig.for_model("t5", vocab_size=VOCABULARY, decoder_start_token_id=0, eos_token_id=None, **sizes)
    t5 = AutoModelForSeq2SeqLM.from_config(config, seed=1)
    ids, mask = prompts()
    settings = {"max_new_tokens": 150, "pad_token_id": 0, **settings}
    np.testing.assert_array_equal(t5.generate(ids, mask, **settings), at_once(t5, ids, mask, **settings))


@pytest.mark.usefixtures("small_stages")
def test_executables_are_those_of_the_lengths_that_were_reached() -> None:
    model = make(hidden_size=16, num_hidden_layers=1, layer_types=["full_attention"])
    generator = model._generator

    def compiled() -> tuple[int, int]:
        return generator.prefill._cache_size(), generator.decode._cache_size()

    ids = prompts((20,))[0]
    plain = np.asarray(model.generate(ids, max_new_tokens=220))[0, 20:]  # 64, 128 and 256 slots
    assert compiled() == (1, 3)
    # Other numbers of new tokens share what they have in common.
    for new in (30, 90, 200):
        np.testing.assert_array_equal(np.asarray(model.generate(ids, max_new_tokens=new))[0, 20:], plain[:new])
    assert compiled() == (1, 3)
    # What ends early does not grow.
    eos = int(plain[70])
    end = int(np.flatnonzero(plain == eos)[0])
    out = model.generate(ids, max_new_tokens=220, eos_token_id=eos, return_dict_in_generate=True)
    np.testing.assert_array_equal(np.asarray(out.sequences)[0, 20:], plain[: end + 1])
    reached = next(slots for slots in (64, 128) if end + 1 <= slots - 32)
    assert out.past_key_values.get_max_cache_shape() == reached


@pytest.mark.usefixtures("small_stages")
@pytest.mark.parametrize("settings", [{}, pytest.param({"num_beams": 2}, marks=pytest.mark.full)])
def test_warmup_compiles_every_length(settings: dict) -> None:
    model = make(hidden_size=16, num_hidden_layers=1, layer_types=["full_attention"])
    seconds = model.warmup(batch_sizes=(1,), prompt_lengths=(20,), max_new_tokens=100, **settings)
    assert set(seconds) == {"prefill 1x32", "decode 1x64", "decode 1x128", "decode 1x256"}
    compiled: list[str] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    model.generate(prompts((20,))[0], max_new_tokens=100, **settings)
    model.generate(prompts((25,))[0], max_new_tokens=98, **settings)
    assert not compiled
