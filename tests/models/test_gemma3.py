"""Gemma 3: its text model out of a checkpoint that sees images, the older dialect, and both directions at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModel, AutoModelForCausalLM
from jaxpipe.common.errors import ConfigError, WeightsError

TEXT: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "initializer_range": 0.15,
}
VISION: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def ids_and_mask() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.ones((3, 19), np.int64)
    mask[1, :4] = 0
    mask[2, -5:] = 0
    return rng.integers(3, 130, mask.shape), mask


def check_equal(found: Any, wanted: Any, mask: np.ndarray) -> None:
    keep = mask.astype(bool)
    found, wanted = np.asarray(found)[keep], wanted.numpy()[keep]
    assert np.abs(found - wanted).max() <= 1e-4 * max(1.0, float(np.abs(wanted).max()))


# Its heads split over four devices, whose key-value heads are repeated; those of `TEXT` do not.
SPLIT: dict[str, Any] = {
    **TEXT,
    "hidden_size": 48,
    "intermediate_size": 52,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "query_pre_attn_scalar": 10,
    "attention_bias": True,
}


def make_seeing(text: dict[str, Any], directory: Path) -> Any:
    """Makes the oracle's model with images, saved under the names of the Hub's checkpoints."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Gemma3Config(
        text_config=text, vision_config=VISION, mm_tokens_per_image=4, image_token_index=130
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.generation_config = transformers.GenerationConfig(bos_token_id=2, eos_token_id=1, pad_token_id=0)
    model.save_pretrained(directory)
    return model


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A checkpoint of the model with images."""
    directory = tmp_path_factory.mktemp("gemma3")
    return make_seeing(TEXT, directory), directory


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """One whose heads split over devices."""
    directory = tmp_path_factory.mktemp("gemma3_split")
    return make_seeing(SPLIT, directory), directory


@pytest.mark.oracle
def test_the_text_model_of_a_checkpoint_with_images(
    seeing: tuple[Any, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    import torch
    import transformers

    oracle, directory = seeing
    ids, mask = ids_and_mask()
    with torch.no_grad():
        wanted = oracle(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)  # type: ignore[misc]
    check_equal(model(ids, mask).logits, wanted, mask)
    assert info["missing_keys"] == set()
    assert "vision_tower.* (32 weights)" in caplog.text
    assert {name.split(".")[0] for name in info["unexpected_keys"]} == {"vision_tower", "multi_modal_projector"}
    given = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    theirs = oracle.generate(torch.tensor(ids[:1]), attention_mask=torch.tensor(mask[:1]), **given)
    assert np.array_equal(np.asarray(model.generate(ids[:1], mask[:1], **given)), theirs.numpy())

    # Saved, it is a text model, which the oracle reads as one.
    assert (model.config.model_type, model.class_name) == ("gemma3_text", "Gemma3ForCausalLM")
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is transformers.Gemma3ForCausalLM
    with torch.no_grad():
        check_equal(again(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits, wanted, mask)


MESHES: dict[str, Any] = {
    "tensor": {"tensor": 4, "data": 2},
    "fsdp": {"fsdp": 8},
}


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("sizes", "mesh"),
    [
        ("split", "tensor"),
        pytest.param("split", "fsdp", marks=pytest.mark.full),
        pytest.param("seeing", "tensor", marks=pytest.mark.full),
    ],
)
def test_the_text_model_on_8_devices(sizes: str, mesh: str, request: pytest.FixtureRequest):
    import torch

    oracle, directory = request.getfixturevalue(sizes)
    model = AutoModelForCausalLM.from_pretrained(directory, device_map=MESHES[mesh])
    assert {axis: size for axis, size in dict(model.mesh.shape).items() if size > 1} == MESHES[mesh]
    ids, mask = ids_and_mask()
    with torch.no_grad():
        wanted = oracle(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits
    found = model(ids, mask).logits
    check_equal(found, wanted, mask)
    check_equal(
        found, torch.tensor(np.asarray(AutoModelForCausalLM.from_pretrained(directory)(ids, mask).logits)), mask
    )


@pytest.mark.oracle
@pytest.mark.parametrize("mesh", [None, "tensor"])
def test_greedy_ids(split: tuple[Any, Path], mesh: str | None):
    import torch

    oracle, directory = split
    ids, mask = ids_and_mask()
    mask[2] = 1
    mask[2, :5] = 0  # to the left, as generation has it
    given = {"max_new_tokens": 32, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_pretrained(directory, device_map=mesh and MESHES[mesh])
    theirs = oracle.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **given).numpy()
    assert np.array_equal(np.asarray(model.generate(ids, mask, **given)), theirs)


@pytest.mark.oracle
def test_the_names_of_version_5(seeing: tuple[Any, Path], tmp_path: Path):
    """As the oracle's module has them: the language model under ``model.``, the head outside."""
    from safetensors.numpy import save_file

    oracle, directory = seeing
    tensors = {name: weight.numpy() for name, weight in oracle.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    ids, mask = ids_and_mask()
    first, second = (AutoModelForCausalLM.from_pretrained(path)(ids, mask)["logits"] for path in (directory, tmp_path))
    assert np.array_equal(np.asarray(first), np.asarray(second))
    base = AutoModel.from_pretrained(tmp_path)
    assert base.class_name == "Gemma3TextModel"


@pytest.mark.oracle
def test_an_incomplete_text_model_is_refused(seeing: tuple[Any, Path], tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    _, directory = seeing
    tensors = load_file(directory / "model.safetensors")
    del tensors["language_model.model.layers.1.self_attn.k_norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    with pytest.raises(WeightsError, match=r"missing: model\.layers\.1\.self_attn\.k_norm\.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.oracle
def test_both_directions(tmp_path: Path):
    """Embedding models made of Gemma 3 see later tokens too, half a window to each side; they cannot generate."""
    import torch
    import transformers

    torch.manual_seed(1)
    config = transformers.Gemma3TextConfig(**TEXT, use_bidirectional_attention=True)
    oracle = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    oracle.save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    ids, mask = ids_and_mask()
    with torch.no_grad():
        wanted = oracle(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state
        alone = oracle(input_ids=torch.tensor(ids)).last_hidden_state
    check_equal(model(ids, mask)["last_hidden_state"], wanted, mask)
    check_equal(model(ids)["last_hidden_state"], alone, np.ones_like(mask))
    generator = AutoModelForCausalLM.from_config(model.config)
    with pytest.raises(ValueError, match="use_bidirectional_attention"):
        generator.generate(ids[:1], max_new_tokens=2)


def test_older_dialect():
    """Keys as the first checkpoints have them."""
    config = AutoConfig.for_model(
        "gemma3_text",
        num_hidden_layers=7,
        sliding_window_pattern=3,
        rope_theta=2e6,
        rope_local_base_freq=5e3,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    )
    sliding, full = "sliding_attention", "full_attention"
    assert config.layer_types == [sliding, sliding, full, sliding, sliding, full, sliding]
    assert config.rope_parameters == {
        sliding: {"rope_type": "default", "rope_theta": 5e3},
        full: {"rope_type": "linear", "rope_theta": 2e6, "factor": 8.0},
    }
    outer = {"dtype": "bfloat16", "eos_token_id": [1, 106], "text_config": {**TEXT, "model_type": "gemma3_text"}}
    text = AutoConfig.for_model("gemma3", **outer).get_text_config()
    assert (text.model_type, text.dtype, text.hidden_size) == ("gemma3_text", "bfloat16", 36)
    assert text.eos_token_id == [1, 106]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"layer_types": ["sliding_attention", "sparse", "full_attention"]}, ["layer_types", "'sparse'"]),
        ({"layer_types": ["full_attention"]}, ["layer_types has 1", "num_hidden_layers=3"]),
        ({"sliding_window": None}, ["sliding_window is None"]),
        ({"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping=50.0"]),
    ],
)
def test_refused(values: dict[str, Any], named: list[str]):
    with pytest.raises(ConfigError) as error:
        AutoConfig.for_model("gemma3_text", **{**TEXT, **values})
    assert all(part in str(error.value) for part in named)
