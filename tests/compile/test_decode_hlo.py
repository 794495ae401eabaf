"""What XLA makes of a decode step: the cache is updated in place."""

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
def test_the_cache_is_donated_and_not_copied(steps: np.int32 | None) -> None:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    generator = model._generator
    settled = Settled(prompt_length=20, max_new_tokens=40)
    with use_mesh(model.mesh):
        run = Run(generator, Prompts.of(np.ones((3, 20), int), None), settled, range(3), 0)
        lowered = generator.decode.lower(generator.leaves, run.state, run._choice, steps)
    compiled = lowered.compile()
    cache = sum(leaf.nbytes for leaf in jax.tree.leaves(run.state.cache.layers))
    assert compiled.memory_analysis().alias_size_in_bytes >= cache
    batch, slots, heads, width = run.state.cache.layers[0].keys.shape
    copies = re.findall(rf"= f32\[{batch},{slots},{heads},{width}\]\S* copy\(", compiled.as_text())
    assert not copies
