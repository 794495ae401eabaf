"""The kernel for few queries, run without a GPU, against its plain twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from jaxpipe.kernels.attention import xla_attention
from jaxpipe.kernels.decode_attention import applies, decode_attention, splits_of
from tests.kernels.cached import Case, make

CASES = {
    "one query": Case(2, 1, 8, 2, 32, 96, splits=1),
    "split": Case(1, 1, 4, 4, 32, 320, splits=4, sinks=True),
    "few queries, slots that no block divides": Case(2, 3, 4, 2, 32, 130, splits=2, window=30, softcap=5.0),
    "eight bits": Case(2, 1, 4, 1, 64, 128, splits=2, stored="int8"),
}


@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_its_twin(name: str) -> None:
    case = CASES[name]
    q, k, v, mask, extras = make(case, jnp.float32)
    plain, _ = xla_attention(q, k, v, mask=mask, causal=False, weights=False, **extras)
    fast = decode_attention(q, k, v, mask, splits=case.splits, interpret=True, **extras)
    np.testing.assert_allclose(np.asarray(fast), np.asarray(plain), atol=1e-5)


def test_slots_that_no_query_sees_are_not_read() -> None:
    case = Case(2, 1, 4, 2, 32, 256, splits=1)
    q, k, v, mask, extras = make(case, jnp.float32)
    plain = decode_attention(q, k, v, mask, splits=1, interpret=True, **extras)
    behind = 64 * -(-int(np.flatnonzero(np.asarray(mask).any((0, 1)))[-1] + 1) // 64)
    assert behind < case.slots
    fast = decode_attention(q, k.at[:, behind:].set(jnp.nan), v, mask, splits=1, interpret=True, **extras)
    np.testing.assert_array_equal(np.asarray(fast), np.asarray(plain))


def test_a_row_that_sees_nothing_is_zero() -> None:
    q, k, v, mask, extras = make(Case(2, 1, 4, 2, 32, 128, splits=2), jnp.float32)
    out = decode_attention(q, k, v, mask.at[1].set(False), splits=2, interpret=True, **extras)
    assert np.isfinite(np.asarray(out)).all() and not np.asarray(out)[1].any()


def test_where_it_applies() -> None:
    def shapes(t: int, heads: int, kv_heads: int, width: int, dtype: jnp.dtype) -> list[jax.ShapeDtypeStruct]:
        cache = jax.ShapeDtypeStruct((1, 64, kv_heads, width), dtype)
        return [jax.ShapeDtypeStruct((1, t, heads, width), dtype), cache, cache]

    assert applies(*shapes(1, 32, 8, 128, jnp.bfloat16))  # type: ignore[arg-type]
    assert applies(*shapes(16, 32, 8, 128, jnp.float16))  # type: ignore[arg-type]
    assert not applies(*shapes(17, 32, 8, 128, jnp.bfloat16))  # type: ignore[arg-type]
    assert not applies(*shapes(1, 32, 8, 96, jnp.bfloat16))  # type: ignore[arg-type]
    assert not applies(*shapes(1, 32, 8, 128, jnp.float32))  # type: ignore[arg-type]


def test_slots_are_split_until_the_device_is_full() -> None:
    assert splits_of(8, 256) == 1
    assert splits_of(8, 8192) == 32
    assert splits_of(8, 10240) == 32
    assert splits_of(512, 8192) == 1


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_it_lowers_for_a_gpu() -> None:
    case = Case(2, 3, 8, 2, 64, 640, splits=2, stored="int8", sinks=True)
    q, k, v, mask, extras = make(case, jnp.bfloat16)
    h100 = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu"))
    with use_abstract_mesh(h100):  # jax 0.12 asks which GPU
        traced = jax.jit(lambda: decode_attention(q, k, v, mask, **extras)).trace()
        assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()
