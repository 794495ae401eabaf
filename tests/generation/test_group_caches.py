"""Diverse and constrained beam search with caches that grow, and with layers that keep a window."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxpipe import AutoConfig, AutoModelForCausalLM
from jaxpipe.generation import buckets
from jaxpipe.model import PreTrainedModel

VOCABULARY = 23
SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    {"num_beams": 3, "force_words_ids": [[19, 20], [[5], [6, 7]]]},
    {"num_beams": 3, "length_penalty": 0.5},
]


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    widths = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": VOCABULARY, "initializer_range": 0.5}
    made = {
        "llama": AutoConfig.for_model("llama", num_hidden_layers=1, **heads, **widths, eos_token_id=None),
        "gemma3_text": AutoConfig.for_model(
            "gemma3_text", num_hidden_layers=2, sliding_window=9, layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=8, **heads, **widths, eos_token_id=None, pad_token_id=0, bos_token_id=1,
        ),
        "mamba2": AutoConfig.for_model(
            "mamba2", num_hidden_layers=1, hidden_size=16, vocab_size=VOCABULARY, num_heads=4, head_dim=8, state_size=8,
            n_groups=1, expand=2, conv_kernel=4, chunk_size=8, initializer_range=0.5, eos_token_id=None,
        ),
    }  # fmt: skip
    return {name: AutoModelForCausalLM.from_config(config, seed=3) for name, config in made.items()}


def prompts() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(1, VOCABULARY, (3, 12)), np.ones((3, 12), int)
    mask[1, :5] = mask[2, :9] = 0
    return ids, mask


def answers(model: PreTrainedModel, **settings: Any) -> Any:
    ids, mask = prompts()
    asked = {"return_dict_in_generate": True, "output_scores": True, "pad_token_id": 0, "num_return_sequences": 2}
    return model.generate(ids, mask, **asked, **settings)


@pytest.mark.parametrize(
    "settings", [SEARCHES[0], *(pytest.param(own, marks=pytest.mark.full) for own in SEARCHES[1:])], ids=str
)
@pytest.mark.parametrize("stepwise", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_cache_that_grows(
    models: dict[str, PreTrainedModel], settings: dict, stepwise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {"stopping_criteria": [lambda ids, scores: ids[:, -1] == 22]} if stepwise else {}
    at_once = answers(models["llama"], max_new_tokens=60, **settings, **more)
    monkeypatch.setattr(buckets, "_GROWS_FROM", 64)
    monkeypatch.setattr(buckets, "_FIRST_ROOM", 8)
    grown = answers(models["llama"], max_new_tokens=60, **settings, **more)
    assert buckets.cache_stages(16, 96) == (64, 96)
    for name in ("sequences", "beam_indices"):
        np.testing.assert_array_equal(grown[name], at_once[name])
    np.testing.assert_allclose(grown.sequences_scores, at_once.sequences_scores, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("settings", SEARCHES, ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mamba2"])
def test_scores_are_those_of_the_whole_sequence(models: dict[str, PreTrainedModel], name: str, settings: dict) -> None:
    """Computed anew without a cache, so that a wrong move of the cache shows."""
    model = models[name]
    ids, mask = prompts()
    out = answers(model, max_new_tokens=24, **settings)
    whole, indices = np.asarray(out.sequences), out.beam_indices
    for i, row in enumerate(whole):
        own = np.concatenate([ids[i // 2][mask[i // 2] == 1], row[12:]])
        logits: Any = model(own[None])
        wanted = np.asarray(jax.nn.log_softmax(logits.logits[0, -25:-1]))
        for step in range(24):
            found = out.scores[step][indices[i, step]]
            if "num_beam_groups" in settings and indices[i, step] % 4 >= 2:
                paid = (wanted[step] - found) / settings["diversity_penalty"]
                np.testing.assert_allclose(paid, paid.round(), atol=2e-3)
                assert paid.round().sum() in (1, 2)  # of the first group's two beams, or of one that is done
            else:
                np.testing.assert_allclose(found, wanted[step], atol=1e-3)
