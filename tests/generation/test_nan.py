"""Logits that are NaN are an error, not an answer."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM

SETTINGS = ({}, {"do_sample": True, "seed": 0}, {"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True})


@pytest.fixture(scope="module")
def model():
    """A Llama whose embedding of token 5 is NaN."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config, seed=0)
    built = model._built
    at = next(i for i, path in enumerate(built.paths) if "embed_tokens" in str(path))
    leaves = list(built.leaves)
    leaves[at] = leaves[at].at[5].set(jnp.nan)
    model._built = dataclasses.replace(built, leaves=leaves)
    return model


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_prompt_is_named(model, settings):
    ids = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    with pytest.raises(ValueError, match=r"logits of prompt 1 are NaN.*remove_invalid_values"):
        model.generate(ids, max_new_tokens=1, pad_token_id=0, **settings)


def test_they_may_be_mended(model):
    out = model.generate(np.array([[4, 5, 6]]), max_new_tokens=2, remove_invalid_values=True)
    assert out.shape == (1, 5)
