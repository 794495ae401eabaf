from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

from jaxpipe.checkpoint import gguf_tensors
from jaxpipe.checkpoint.gguf import GGUFFile
from jaxpipe.checkpoint.gguf_tensors import CHUNK, hub_name
from jaxpipe.common.errors import CheckpointError
from jaxpipe.common.gguf_spec import GGUFSpec
from tests.checkpoint.gguf_files import GPT2, LLAMA, interleave, llama_keys, random, random_blocks, write

DEQUANTISABLE = [kind for kind in Type if kind not in (Type.Q8_1, Type.Q8_K, Type.Q1_0)]


@pytest.mark.parametrize("kind", DEQUANTISABLE, ids=lambda kind: kind.name)
def test_every_type_equals_the_gguf_package_whole_and_in_slices(tmp_path: Path, kind: Type) -> None:
    block = gguf.GGML_QUANT_SIZES[kind][0]
    stored = random_blocks(kind, 7, 3 if block > 1 else 64)
    if kind in gguf_tensors.RAW:
        stored = stored.view(gguf_tensors.RAW[kind])
        expected = stored
        path = write(tmp_path / "x.gguf", {"w": (stored.view(np.uint8), kind) if kind == Type.BF16 else stored})
    else:
        with np.errstate(all="ignore"):
            expected = dequantize(stored, kind)
        path = write(tmp_path / "x.gguf", {"w": (stored, kind)})
    source = GGUFFile(path, LLAMA).source()
    assert source.infos["w"].shape == expected.shape and source.infos["w"].dtype == expected.dtype
    width = expected.shape[1]
    indices: list[tuple[slice, ...] | None] = [
        None,
        (slice(2, 5),),
        (slice(None), slice(block + 1, block + 3)),
        (slice(1, 6, 2), slice(0, width, 3)),
        (slice(3, 3),),
        (slice(None), slice(5, 5)),
        (slice(6, 7), slice(width - 1, None)),
    ]
    for index in indices:
        part = source.read("w", index)
        wanted = expected[index or ()]
        assert part.shape == wanted.shape and part.dtype == wanted.dtype
        assert part.tobytes() == wanted.tobytes()  # bits, as random scales also give NaN


def test_plain_types_are_views_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", {"a": random(4, 5).astype(np.float16), "b": random(6)})
    source = GGUFFile(path, LLAMA).source()
    for name in ("a", "b"):
        array = source.read(name, (slice(1, 3),))
        assert not array.flags.owndata and not array.flags.writeable
    kept = source.read("b")
    source.close()
    assert kept.shape == (6,)
    with pytest.raises(ValueError, match="closed"):
        source.read("b")


def test_only_the_rows_asked_for_are_dequantised_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random(100, 256)
    path = write(tmp_path / "x.gguf", {"w": (quantize(weights, Type.Q8_0), Type.Q8_0)})
    sizes: list[tuple[int, ...]] = []
    real = gguf_tensors.dequantiser(Type.Q8_0)
    assert real is not None

    def counted(blocks: np.ndarray) -> np.ndarray:
        sizes.append(blocks.shape)
        return real(blocks)

    monkeypatch.setattr(gguf_tensors, "dequantiser", lambda kind: counted)
    monkeypatch.setattr(gguf_tensors, "CHUNK", 1024)
    source = GGUFFile(path, LLAMA).source()
    expected = dequantize(quantize(weights, Type.Q8_0), Type.Q8_0)
    np.testing.assert_array_equal(source.read("w", (slice(10, 20), slice(40, 50))), expected[10:20, 40:50])
    assert sizes == [(10, 34)]  # one block of ten rows
    sizes.clear()
    np.testing.assert_array_equal(source.read("w"), expected)
    assert sizes == [(4, 8 * 34)] * 25
    assert CHUNK * 4 <= 16 * 2**20


def test_three_dimensions(tmp_path: Path) -> None:
    weights = random(3, 4, 64)
    stored = quantize(weights, Type.Q4_0)
    path = write(tmp_path / "x.gguf", {"w": (stored, Type.Q4_0)})
    source = GGUFFile(path, LLAMA).source()
    expected = dequantize(stored, Type.Q4_0)
    np.testing.assert_array_equal(source.read("w"), expected)
    np.testing.assert_array_equal(
        source.read("w", (slice(1, 3), slice(0, 4, 3), slice(33, 40))), expected[1:3, 0:4:3, 33:40]
    )


@pytest.mark.parametrize("kind", [Type.F32, Type.Q8_0], ids=lambda kind: kind.name)
def test_heads_of_queries_and_keys_are_unpermuted(tmp_path: Path, kind: Type) -> None:
    q, k, v = random(64, 64), random(32, 64), random(32, 64)
    bias = random(64)
    stored = {
        "blk.0.attn_q.weight": quantize(interleave(q, 4), kind),
        "blk.0.attn_k.weight": quantize(interleave(k, 2), kind),
        "blk.0.attn_v.weight": quantize(v, kind),
    }
    tensors: dict = {name: (array, kind) for name, array in stored.items()}
    path = write(tmp_path / "x.gguf", {**tensors, "blk.0.attn_q.bias": interleave(bias, 4)}, llama_keys)
    source = GGUFFile(path, LLAMA).source()
    prefix = "model.layers.0.self_attn"
    for name, weight in {"q_proj": q, "k_proj": k, "v_proj": v}.items():
        expected = dequantize(quantize(weight, kind), kind)
        np.testing.assert_array_equal(source.read(f"{prefix}.{name}.weight"), expected)
        index = slice(3, 29, 2), slice(7, 41)
        np.testing.assert_array_equal(source.read(f"{prefix}.{name}.weight", index), expected[index])
    np.testing.assert_array_equal(source.read(f"{prefix}.q_proj.bias", (slice(5, 60),)), bias[5:60])


def test_transposed_weights_of_gpt2(tmp_path: Path) -> None:
    weight = random(64, 96)  # the Hub's layout: in, out
    stored = quantize(np.ascontiguousarray(weight.T), Type.Q8_0)
    path = write(
        tmp_path / "x.gguf",
        {"blk.3.ffn_up.weight": (stored, Type.Q8_0), "blk.3.ffn_up.bias": random(96), "output_norm.bias": random(64)},
        architecture="gpt2",
    )
    source = GGUFFile(path, GPT2).source()
    name = "transformer.h.3.mlp.c_fc.weight"
    assert source.infos[name].shape == (64, 96)
    assert set(source.infos) == {name, "transformer.h.3.mlp.c_fc.bias", "transformer.ln_f.bias"}
    expected = dequantize(stored, Type.Q8_0).T
    np.testing.assert_array_equal(source.read(name), expected)
    np.testing.assert_array_equal(source.read(name, (slice(3, 40), slice(50, 60))), expected[3:40, 50:60])
    np.testing.assert_array_equal(source.read(name, (slice(3, 5),)), expected[3:5])


def test_names() -> None:
    assert hub_name(LLAMA.tensors, "blk.12.ffn_down.weight") == "model.layers.12.mlp.down_proj.weight"
    assert hub_name(LLAMA.tensors, "output.weight") == "lm_head.weight"
    assert hub_name(LLAMA.tensors, "blk.0.attn_rot_embd.weight") == "blk.0.attn_rot_embd.weight"
    assert hub_name(LLAMA.tensors, "odd") == "odd"


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    spec = GGUFSpec("llama", "llama", {"a": "same", "b": "same"})
    path = write(tmp_path / "x.gguf", {"a.weight": random(2), "b.weight": random(2)})
    with pytest.raises(CheckpointError, match=r"'b\.weight' and 'a\.weight' are both 'same\.weight'"):
        GGUFFile(path, spec).source()


@pytest.mark.parametrize(("heads", "rows"), [(3, 64), (0, 64), (64, 64)])
def test_heads_that_do_not_divide(tmp_path: Path, heads: int, rows: int) -> None:
    path = write(tmp_path / "x.gguf", {"blk.0.attn_q.weight": random(rows, 4)}, lambda w: w.add_head_count(heads))
    with pytest.raises(CheckpointError, match=f"attn_q.weight.*cannot be split in {heads} heads"):
        GGUFFile(path, LLAMA).source()


def test_type_that_cannot_be_dequantised(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", {"w": (random_blocks(Type.Q8_1, 2, 1), Type.Q8_1)})
    with pytest.raises(CheckpointError, match=r"'w'.*type Q8_1, which cannot be dequantised.*Q4_0.*Q8_0"):
        GGUFFile(path, LLAMA).source()


def test_bfloat16_values(tmp_path: Path) -> None:
    values = random(3, 4).astype(ml_dtypes.bfloat16)
    path = write(tmp_path / "x.gguf", {"w": (values.view(np.uint8), Type.BF16)})
    file = GGUFFile(path, LLAMA)
    np.testing.assert_array_equal(file.source().read("w").astype(np.float32), values.astype(np.float32))
    assert file.config()["dtype"] == "bfloat16"
