import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.generation.sampling import greedy, row_keys, sample


def test_draws_follow_the_distribution() -> None:
    probabilities = np.array([0.5, 0.25, 0.15, 0.1, 0.0])
    rows = 20_000
    with np.errstate(divide="ignore"):
        logits = jnp.broadcast_to(jnp.asarray(np.log(probabilities), jnp.float32), (rows, 5))
    keys = row_keys(7, jnp.arange(rows), jnp.zeros(rows, jnp.int32))
    counts = np.bincount(np.asarray(jax.jit(sample)(keys, jnp.zeros(rows, jnp.int32), logits)), minlength=5)
    assert counts[4] == 0
    expected = probabilities[:4] * rows
    chi_square = float(((counts[:4] - expected) ** 2 / expected).sum())
    assert chi_square < 16.27  # 0.1 % quantile of 3 degrees of freedom


def test_draws_of_one_row_follow_the_distribution_over_positions() -> None:
    steps = 20_000
    key = row_keys(11, jnp.array([3]), jnp.array([0]))
    draw = jax.jit(jax.vmap(lambda position: sample(key, position[None], jnp.log(jnp.array([[0.3, 0.7]])))[0]))
    ones = int(draw(jnp.arange(steps)).sum())
    assert abs(ones - 0.7 * steps) < 3.3 * (steps * 0.21) ** 0.5


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1], [2], [1, 1, 0]])
def test_a_row_draws_the_same_alone_and_in_any_batch(order: list[int]) -> None:
    logits = jax.random.normal(jax.random.key(0), (4, 50))
    positions = jnp.array([0, 5, 9, 2])
    items, returns = jnp.array([0, 1, 1, 1000]), jnp.array([0, 0, 1, 0])
    whole = sample(row_keys(3, items, returns), positions, logits)
    rows = jnp.array(order)
    part = sample(row_keys(3, items[rows], returns[rows]), positions[rows], logits[rows])
    assert part.tolist() == whole[rows].tolist()


def test_seed_item_return_index_and_position_each_change_the_draw() -> None:
    def draws(seed: int, item: int, sequence: int, start: int) -> list[int]:
        keys = jnp.repeat(row_keys(seed, jnp.array([item]), jnp.array([sequence])), 32)
        return sample(keys, start + jnp.arange(32), jnp.zeros((32, 1000))).tolist()

    variants = [(0, 0, 0, 0), (1, 0, 0, 0), (2**32, 0, 0, 0), (-1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 32)]
    results = [draws(*variant) for variant in variants]
    assert len({tuple(result) for result in results}) == len(variants)
    assert draws(0, 0, 0, 0) == results[0]


def test_keys_do_not_depend_on_the_users_generator() -> None:
    with jax.default_prng_impl("rbg"):
        keys = row_keys(5, jnp.array([1]), jnp.array([2]))
    assert (jax.random.key_data(keys) == jax.random.key_data(row_keys(5, jnp.array([1]), jnp.array([2])))).all()


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    tokens = greedy(jnp.array([[0.0, 2.0, 2.0], [1.0, 0.0, -1.0]]))
    assert tokens.tolist() == [1, 0] and tokens.dtype == jnp.int32
