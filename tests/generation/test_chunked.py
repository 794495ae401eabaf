"""Prompts that are read in chunks give what one call on them gives."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModelForSeq2SeqLM
from jaxpipe.generation.chunked import Reading, chunks
from jaxpipe.generation.inputs import Prompts
from jaxpipe.model import PreTrainedModel
from jaxpipe.sharding.mesh import use_mesh
from tests.generation.continued import BOTH, CASES, LENGTHS, ask, made, padded, same

ARCHITECTURES = [
    pytest.param(name, marks=[] if name in ("llama", "gemma3_text") else pytest.mark.full) for name in CASES
]


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return made("llama")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_chunks_equal_the_whole(name: str) -> None:
    model = made(name)
    for side in ("left", "right"):
        ids, mask = padded(LENGTHS, side=side)
        whole = ask(model, ids, mask)
        for size in (8, 24) if name == "llama" else (12,):
            same(ask(model, ids, mask, prefill_chunk_size=size), whole)


@pytest.mark.full
def test_a_row_does_not_depend_on_its_neighbours(llama: PreTrainedModel) -> None:
    ids, mask = padded(LENGTHS)
    draw = {"do_sample": True, "seed": 4, "prefill_chunk_size": 8}
    together = ask(llama, ids, mask, **draw)
    for i, length in enumerate(LENGTHS):
        alone = ask(llama, ids[i : i + 1, -length:], None, item_indices=[i], **draw)
        np.testing.assert_array_equal(together.sequences[i, ids.shape[1] :], alone.sequences[0, length:])


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        pytest.param({"do_sample": True, "seed": 1, "num_return_sequences": 2}, marks=pytest.mark.full),
        pytest.param({"eos_token_id": [3, 9, 17, 40], "repetition_penalty": 1.3}, marks=pytest.mark.full),
    ],
)
def test_beams_and_other_settings(llama: PreTrainedModel, settings: dict[str, Any]) -> None:
    ids, mask = padded(LENGTHS)
    given: dict[str, Any] = {"max_new_tokens": 6, "pad_token_id": 0, **settings}
    whole = llama.generate(ids, mask, **given)
    np.testing.assert_array_equal(llama.generate(ids, mask, prefill_chunk_size=8, **given), whole)


def test_one_executable_reads_all_chunks_and_lengths(llama: PreTrainedModel) -> None:
    reader = llama._generator.reader
    assert reader is not None
    llama.generate(padded((40,))[0], max_new_tokens=4, prefill_chunk_size=16)
    before = reader.read_chunk._cache_size()
    assert before
    for length in (17, 33, 47, 48):
        llama.generate(padded((length,))[0], max_new_tokens=3, prefill_chunk_size=16)
    assert reader.read_chunk._cache_size() == before


def test_the_memory_is_that_of_a_chunk() -> None:
    model = made("llama", max_position_embeddings=4096)
    generator = model._generator
    reader = generator.reader
    assert reader is not None
    ids = np.zeros((1, 1024), np.int32)
    lengths, slots = np.full((1,), 1024, np.int32), 1024

    def compiled(size: int) -> Any:
        filled = reader._empty(1, slots, None)
        arguments = generator.leaves, filled, ids, lengths, np.int32(0)
        return reader.read_chunk.lower(*arguments, size).compile().memory_analysis()

    with use_mesh(model.mesh):
        small, large = compiled(64), compiled(1024)
        cache = sum(x.nbytes for x in jax.tree.leaves(reader._empty(1, slots, None).cache.layers))
    assert small.temp_size_in_bytes < large.temp_size_in_bytes / 8
    assert small.alias_size_in_bytes >= cache  # written in place


def test_long_prompts_are_cut_where_memory_is_short(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = made("llama")._generator.reader
    assert reader is not None
    prompts = Prompts.of(*padded((500, 300)))
    with use_mesh(reader._functional.mesh):
        assert reader.pack(prompts, 4, Reading()) is None  # this machine has memory enough
        monkeypatch.setattr(reader, "_memory", 8 * 9_000_000)
        assert reader.activation_bytes(2, 256) < 9_000_000 < reader.activation_bytes(2, 512)
        assert reader.chunk_size(2, 500) == 256
        packed = reader.pack(prompts, 4, Reading())
    assert packed is not None and packed.width == 512
    monkeypatch.setattr(reader, "_memory", None)
    assert reader.chunk_size(2, 5000) == 5120  # nothing tells how much there is


@pytest.mark.full
def test_the_automatic_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama", max_position_embeddings=1024)
    reader = model._generator.reader
    assert reader is not None
    ids, mask = padded((300, 130))
    whole = ask(model, ids, mask)
    monkeypatch.setattr(reader, "_memory", 1)
    same(ask(model, ids, mask), whole)
    assert reader.read_chunk._cache_size() == 1


@pytest.mark.parametrize("kind", ["longrope", pytest.param("dynamic", marks=pytest.mark.full)])
def test_positions_turn_as_in_the_whole_prompt(kind: str) -> None:
    longrope = {"short_factor": [1.0] * 4, "long_factor": [1.7, 2.5, 4.0, 8.0], "original_max_position_embeddings": 16}
    given = longrope if kind == "longrope" else {"factor": 4.0}
    positions = 256 if kind == "longrope" else 16
    rope = {"rope_type": kind, "rope_theta": 100.0, **given}
    model = made("llama", rope_parameters=rope, max_position_embeddings=positions, head_dim=8)
    for lengths in ((50, 7), (15, 9)):
        ids, mask = padded(lengths)
        same(ask(model, ids, mask, prefill_chunk_size=8), ask(model, ids, mask))


@pytest.mark.full
def test_a_mesh_gives_the_same_and_compiles_once() -> None:
    one = made("llama", num_attention_heads=4, num_key_value_heads=2)
    mesh = made("llama", num_attention_heads=4, num_key_value_heads=2, device_map={"data": 2, "tensor": 2})
    ids, mask = padded((40, 25, 33, 9))
    same(ask(mesh, ids, mask, prefill_chunk_size=8), ask(one, ids, mask))
    reader = mesh._generator.reader
    assert reader is not None and reader.read_chunk._cache_size() == 1


def test_sizes_of_chunks() -> None:
    assert chunks(10, 4096, exact=False) == (32, 1)  # the bucket
    assert chunks(10, 16, exact=True) == (16, 1)
    assert chunks(100, 24, exact=True) == (24, 5)
    assert chunks(5000, 4096, exact=False) == (2560, 2)
    for tokens in (1, 7, 256, 257, 3000, 4097, 100_000):
        for most in (256, 1024):
            size, count = chunks(tokens, most, exact=False)
            assert size <= most and (count - 1) * size < tokens <= count * size


def test_bad_sizes_raise_before_anything_compiles(llama: PreTrainedModel) -> None:
    reader = llama._generator.reader
    assert reader is not None
    before = reader.read_chunk._cache_size()
    for size in (0, -4, 2.5, "8", True):
        with pytest.raises(ValueError, match=r"prefill_chunk_size=.*an integer of at least 1"):
            llama.generate(padded((40,))[0], prefill_chunk_size=size)
    assert reader.read_chunk._cache_size() == before


@pytest.mark.full
def test_encoder_decoders_read_their_input_at_once(caplog: pytest.LogCaptureFixture) -> None:
    config = AutoConfig.for_model("t5", **BOTH)
    model = AutoModelForSeq2SeqLM.from_config(config, seed=0)
    ids = padded((20,))[0]
    whole = model.generate(ids, max_new_tokens=4)
    caplog.set_level("INFO", logger="jaxpipe")
    np.testing.assert_array_equal(model.generate(ids, max_new_tokens=4, prefill_chunk_size=4), whole)
    assert "prefill_chunk_size has no effect" in caplog.text


@pytest.mark.full
def test_ways_of_decoding_that_read_whole_prompts(llama: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="jaxpipe")
    ids = padded((20,))[0]
    given: dict[str, Any] = {"max_new_tokens": 4, "guidance_scale": 1.5}
    whole = llama.generate(ids, **given)
    np.testing.assert_array_equal(llama.generate(ids, prefill_chunk_size=4, **given), whole)
    assert "prefill_chunk_size has no effect in this way of decoding" in caplog.text


@pytest.mark.full
def test_warmup_compiles_the_chunks(llama: PreTrainedModel) -> None:
    model = made("llama")
    model.warmup(prompt_lengths=(40,), max_new_tokens=8, prefill_chunk_size=16)
    reader = model._generator.reader
    assert reader is not None
    counts = reader.read_chunk._cache_size(), model._generator.decode._cache_size()
    model.generate(padded((44,))[0], max_new_tokens=7, prefill_chunk_size=16)
    assert counts == (reader.read_chunk._cache_size(), model._generator.decode._cache_size()) and counts[0] == 1
