"""What XLA makes of a decode step on each kind of cache: it is updated in place."""

import re

import jax
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM
from jaxpipe.generation.inputs import Prompts
from jaxpipe.generation.run import Run
from jaxpipe.generation.settle import Settled
from jaxpipe.sharding.mesh import use_mesh


@pytest.mark.parametrize("steps", [np.int32(5), None], ids=["loop", "one step"])
@pytest.mark.parametrize(
    ("kv_heads", "window", "stored"),
    [
        (2, None, None),
        (2, 100, None),
        (2, None, "int8"),
        pytest.param(4, None, None, marks=pytest.mark.full),
        pytest.param(2, 100, "int8", marks=pytest.mark.full),
    ],
)
def test_a_step_copies_no_cache(kv_heads: int, window: int | None, stored: str | None, steps: np.int32 | None) -> None:
    config = AutoConfig.for_model(
        "mistral",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        sliding_window=window,
    )
    model = AutoModelForCausalLM.from_config(config)
    generator = model._generator
    settled = Settled(prompt_length=20, max_new_tokens=200, cache_dtype=stored)
    with use_mesh(model.mesh):
        run = Run(generator, Prompts.of(np.ones((3, 20), int), None), settled, range(3), 0)
        compiled = generator.decode.lower(generator.leaves, run.state, run._choice, steps).compile()
    leaves = jax.tree.leaves(run.state.cache.layers)
    assert compiled.memory_analysis().alias_size_in_bytes >= sum(x.nbytes for x in leaves)
    made = re.findall(r"= \w+\[([\d,]+)\]\S* (\S+)\(", compiled.as_text())
    shapes = {",".join(map(str, x.shape)) for x in leaves if x.ndim == 4}
    made = [operation for shape, operation in made if shape in shapes]
    assert "dynamic-update-slice" in made and "copy" not in made
