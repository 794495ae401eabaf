"""Rotary frequencies of every type against Transformers, and the parameters that are refused."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.common.errors import ConfigError
from jaxpipe.nn.rope import ROPE_TYPES, LayerRopes, Rope, rope_parameters, rotate

SHORT, LONG = [1.0, 1.25, 1.5, 2.0, 3.0], [2.0, 3.5, 4.0, 8.0, 11.0]  # of heads of 10
# Rope parameters, width of a head, max_position_embeddings.
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "default": ({"rope_type": "default", "rope_theta": 1234.5}, 14, 50),
    "default_partial": ({"rope_type": "default", "rope_theta": 1234.5, "partial_rotary_factor": 0.43}, 14, 50),
    "linear": ({"rope_type": "linear", "factor": 3.7}, 10, 50),
    "linear_partial": ({"rope_type": "linear", "factor": 3, "partial_rotary_factor": 0.5}, 12, 50),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.5, "rope_theta": 777.0}, 10, 17),
    "dynamic_partial": ({"rope_type": "dynamic", "factor": 4.0, "partial_rotary_factor": 0.5}, 20, 9),
    "yarn": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 34, 256),
    "yarn_by_length": ({"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 100}, 34, 420),
    "yarn_odd": (
        {
            "rope_type": "yarn",
            "factor": 7.3,
            "original_max_position_embeddings": 4096,
            "rope_theta": 150_000.0,
            "beta_fast": 21.5,
            "beta_slow": 1.7,
            "truncate": False,
            "partial_rotary_factor": 0.75,
        },
        64,
        30_000,
    ),
    "yarn_mscale": (
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 512,
            "mscale": 0.9,
            "mscale_all_dim": 0.4,
        },
        26,
        20_480,
    ),
    "yarn_attention_factor": (
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 31, "attention_factor": 0.7},
        10,
        62,
    ),
    "yarn_one_pair_wide": (
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2, "beta_fast": 4, "beta_slow": 2},
        10,
        62,
    ),
    "longrope": (
        {
            "rope_type": "longrope",
            "short_factor": SHORT,
            "long_factor": LONG,
            "original_max_position_embeddings": 13,
        },
        10,
        80,
    ),
    "longrope_factor": (
        {
            "rope_type": "longrope",
            "short_factor": SHORT,
            "long_factor": LONG,
            "factor": 3.0,
            "original_max_position_embeddings": 13,
            "partial_rotary_factor": 0.5,
        },
        20,
        80,
    ),
    "longrope_attention_factor": (
        {
            "rope_type": "longrope",
            "short_factor": SHORT,
            "long_factor": LONG,
            "original_max_position_embeddings": 13,
            "attention_factor": 1.19,
        },
        10,
        80,
    ),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 6.0,
            "low_freq_factor": 1.3,
            "high_freq_factor": 3.1,
            "original_max_position_embeddings": 48,
            "rope_theta": 500.0,
        },
        22,
        300,
    ),
    "proportional": ({"rope_type": "proportional", "partial_rotary_factor": 0.3, "factor": 2.0}, 22, 50),
    "proportional_whole": ({"rope_type": "proportional", "rope_theta": 99.0}, 12, 50),
}


def made(name: str) -> Rope:
    parameters, head_dim, positions = CASES[name]
    found = rope_parameters({"rope_parameters": parameters, "max_position_embeddings": positions})
    return Rope.of(found, head_dim, positions)


def test_every_type_has_a_case():
    assert {parameters["rope_type"] for parameters, _, _ in CASES.values()} == set(ROPE_TYPES)


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_frequencies_are_the_oracles(name: str):
    """Cosine and sine at growing lengths, short ones first, as a model meets them in generation."""
    import torch
    from transformers import StableLmConfig
    from transformers.models.stablelm.modeling_stablelm import StableLmRotaryEmbedding

    parameters, head_dim, positions = CASES[name]
    # A config whose rotary embedding heeds the partial factor in the default type too.
    values: dict[str, Any] = {
        "rope_parameters": {"partial_rotary_factor": 1.0, "rope_theta": 10_000.0, **parameters},
        "head_dim": head_dim,
        "max_position_embeddings": positions,
    }
    config = StableLmConfig(**values)
    oracle = StableLmRotaryEmbedding(config)
    rope = made(name)
    # The oracle's ramp of yarn lies a float32 rounding or two away.
    np.testing.assert_allclose(rope.inverse_frequencies, oracle.inv_freq.numpy(), rtol=2e-6)
    assert rope.attention_factor == pytest.approx(oracle.attention_scaling, rel=1e-12)
    for length in (3, 12, 13, 14, 17, 18, 40, 41):
        columns = jnp.arange(length)[None]
        cos, sin = oracle(torch.zeros(1), torch.arange(length)[None])
        half = cos.shape[-1] // 2
        found = rope(columns)
        for ours, theirs in zip(found, (cos, sin), strict=True):
            np.testing.assert_allclose(np.asarray(ours), theirs[..., :half].numpy(), atol=2e-5, err_msg=str(length))


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_the_length_is_that_of_the_batch_without_its_padding(name: str):
    rope = made(name)
    columns = jnp.arange(40)[None]
    valid = columns < jnp.array([[5], [9]])
    short = [np.asarray(x)[0] for x in rope(columns[:, :9])]
    padded = [np.asarray(x)[0, :9] for x in rope(columns, valid)]
    assert np.array_equal(short, padded)
    assert not np.allclose(short, [np.asarray(x)[0, :9] for x in rope(columns)])


@pytest.mark.parametrize("name", CASES)
def test_the_frequencies_serve_as_a_key(name: str):
    """Modules hold them as static data, which has to be hashable and equal to itself made again."""
    assert hash(made(name)) == hash(made(name)) and made(name) == made(name)


def test_parameters_by_layer_type():
    theta = {"full_attention": 1e6, "sliding_attention": 1e4}
    linear = {"rope_type": "linear", "factor": 8.0}
    wanted = {
        "full_attention": {**linear, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert rope_parameters({"rope_scaling": linear}, theta=theta) == wanted
    assert rope_parameters({"rope_parameters": {"full_attention": linear}}, theta=theta) == wanted
    assert rope_parameters({"rope_parameters": wanted}, theta=theta) == wanted
    assert rope_parameters({}, theta=theta)["full_attention"] == {"rope_type": "default", "rope_theta": 1e6}
    both = rope_parameters({"rope_scaling": linear}, theta=theta, scaled=theta)
    assert both["sliding_attention"] == {**linear, "rope_theta": 1e4}
    ropes = LayerRopes.of(wanted, {"full_attention": 8, "sliding_attention": 12})
    tables = ropes(jnp.arange(7)[None])
    assert {kind: cos.shape for kind, (cos, _) in tables.items()} == {
        "full_attention": (1, 7, 4),
        "sliding_attention": (1, 7, 6),
    }


def test_original_positions_beside_the_parameters_come_first():
    """As Phi-3 writes them."""
    config = {
        "rope_scaling": {"type": "su", "short_factor": SHORT, "long_factor": LONG},
        "original_max_position_embeddings": 13,
        "max_position_embeddings": 80,
        "partial_rotary_factor": 0.5,
    }
    found = rope_parameters(config, partial=1.0)
    assert found["rope_type"] == "longrope" and found["original_max_position_embeddings"] == 13
    assert found["partial_rotary_factor"] == 0.5
    del config["original_max_position_embeddings"]
    assert rope_parameters(config)["original_max_position_embeddings"] == 80


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"rope_type": "yarnn"}, "Did you mean 'yarn'"),
        ({"rope_type": "dynamic"}, "'factor'"),
        ({"rope_type": "dynamic", "factor": 0}, "'factor'"),
        ({"rope_type": "yarn", "factor": -1.0}, "factor"),
        ({"rope_type": "yarn", "factor": 2.0}, "original_max_position_embeddings"),
        ({"rope_type": "longrope", "short_factor": SHORT}, "'long_factor'"),
        ({"rope_type": "longrope", "short_factor": SHORT, "long_factor": ["1"]}, "'long_factor'"),
        (
            {
                "rope_type": "longrope",
                "short_factor": SHORT[1:],
                "long_factor": LONG[1:],
                "original_max_position_embeddings": 13,
                "factor": 2.0,
            },
            "must hold 5 numbers",
        ),
        ({"rope_type": "default", "partial_rotary_factor": 1.5}, "15 of the 10 dimensions"),
        ({"rope_type": "default", "partial_rotary_factor": 0.05}, "0 of the 10 dimensions"),
    ],
)
def test_refused(parameters: dict[str, Any], named: str):
    with pytest.raises(ConfigError) as error:
        Rope.of(rope_parameters({"rope_parameters": parameters}), 10)
    assert named in str(error.value)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_keeps_lengths_and_depends_on_distance_alone(interleaved: bool):
    rng = np.random.default_rng(0)
    q, k = jnp.asarray(rng.standard_normal((2, 1, 1, 3, 14)), jnp.float32)
    rope = made("default_partial")  # 6 of the 14 dimensions turn
    products = []
    for shift in (0, 11):
        tables = [rope(jnp.array([[position + shift]])) for position in (2, 9)]
        turned = [np.asarray(rotate(x, t, interleaved=interleaved)) for x, t in zip((q, k), tables, strict=True)]
        assert np.array_equal(turned[0][..., 6:], q[..., 6:])
        assert not np.allclose(turned[0][..., :6], q[..., :6])
        np.testing.assert_allclose(np.linalg.norm(turned[0], axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-5)
        products.append((turned[0] * turned[1]).sum(-1))
    np.testing.assert_allclose(*products, atol=1e-4)
