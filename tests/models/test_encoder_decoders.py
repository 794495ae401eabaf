"""What is peculiar to encoder-decoders: weights under several names, T5's float16 and buckets, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpipe.auto import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
from jaxpipe.common.errors import ConfigError, WeightsError
from jaxpipe.nn.relative_bias import distance_buckets, relative_buckets

T5: dict[str, Any] = {"vocab_size": 61, "d_model": 24, "d_kv": 8, "num_heads": 3, "d_ff": 40, "num_layers": 2}
BART: dict[str, Any] = {
    "vocab_size": 61,
    "d_model": 24,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 30,
    "max_position_embeddings": 20,
    "init_std": 0.5,
}
IDS = np.random.default_rng(0).integers(3, 61, (2, 9))


def saved(directory: Path, model_type: str, **values: Any) -> Any:
    """A model with random weights, saved; and what it puts out."""
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(model_type, **values), seed=1)
    model.save_pretrained(directory)
    return np.asarray(model(IDS, decoder_input_ids=IDS).logits)


def change(directory: Path, change: Any) -> None:
    """Rewrites the tensors of a checkpoint."""
    file = directory / "model.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("model_type", "values", "base"),
    [pytest.param("t5", T5, "", marks=pytest.mark.full), ("bart", BART, "model.")],
)
def test_names_of_the_one_embedding(model_type: str, values: dict[str, Any], base: str, tmp_path: Path) -> None:
    wanted = saved(tmp_path, model_type, **values)
    copies = [f"{base}encoder.embed_tokens.weight", f"{base}decoder.embed_tokens.weight", "lm_head.weight"]

    def logits(cls: Any = AutoModelForSeq2SeqLM) -> np.ndarray:
        return np.asarray(cls.from_pretrained(tmp_path)(IDS, decoder_input_ids=IDS)[0])

    def all_of_them(tensors: dict[str, np.ndarray]) -> None:
        tensors.update({name: tensors[f"{base}shared.weight"].copy() for name in copies})

    change(tmp_path, all_of_them)
    np.testing.assert_array_equal(logits(), wanted)
    assert logits(AutoModel).shape == (2, 9, 24)
    change(tmp_path, lambda tensors: tensors.pop(f"{base}shared.weight"))
    np.testing.assert_array_equal(logits(), wanted)

    def only_the_decoder_s(tensors: dict[str, np.ndarray]) -> None:
        tensors.pop(copies[0])
        tensors.pop(copies[2])

    change(tmp_path, only_the_decoder_s)
    np.testing.assert_array_equal(logits(), wanted)

    def apart(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{base}shared.weight"] = tensors[copies[1]] + 1

    change(tmp_path, apart)
    with pytest.raises(WeightsError, match=r"decoder\.embed_tokens\.weight and .*shared\.weight differ"):
        logits()


def test_a_bias_that_a_checkpoint_lacks_is_zero(tmp_path: Path) -> None:
    wanted = saved(tmp_path, "bart", **BART)  # where it is 0
    change(tmp_path, lambda tensors: tensors.pop("final_logits_bias"))
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    np.testing.assert_array_equal(np.asarray(model(IDS, decoder_input_ids=IDS).logits), wanted)
    model.save_pretrained(tmp_path / "again")
    assert "final_logits_bias" not in load_file(tmp_path / "again" / "model.safetensors")
    with pytest.raises(WeightsError, match=r"missing: classification_head\.dense\.weight"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_a_head_apart_is_saved_and_loaded(tmp_path: Path) -> None:
    wanted = saved(tmp_path, "bart", **BART, tie_word_embeddings=False)
    assert "lm_head.weight" in load_file(tmp_path / "model.safetensors")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    np.testing.assert_array_equal(np.asarray(again(IDS, decoder_input_ids=IDS).logits), wanted)


def test_a_text_without_end_token_is_not_classified() -> None:
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bart", **BART))
    assert model.config.num_labels == 3
    ids = IDS.copy()
    ids[0, 4] = ids[0, 6] = 2
    with pytest.raises(ValueError, match=r"input_ids\[1\] has no end token \(2\)"):
        model(ids)
    ids[1, 6] = 2
    mask = np.ones_like(ids)
    mask[:, 5:] = 0
    with pytest.raises(ValueError, match=r"input_ids\[1\] has no end token"):
        model(ids, mask)  # padding may be the end token too
    assert model(ids).logits.shape == (2, 3)
    ids[1, 4] = 2
    other = np.where(mask, ids, 7)
    np.testing.assert_allclose(model(ids, mask).logits, model(other, mask).logits, rtol=0, atol=1e-5)


def test_float16_residuals_do_not_overflow(tmp_path: Path) -> None:
    saved(tmp_path, "t5", **T5)

    def large(tensors: dict[str, np.ndarray]) -> None:
        for name in tensors:
            if name.endswith("wo.weight"):
                tensors[name] *= 3e4

    change(tmp_path, large)
    half, exact = (AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=dtype) for dtype in ("float16", "float32"))
    found, wanted = (np.asarray(m(IDS, decoder_input_ids=IDS).logits, np.float32) for m in (half, exact))
    read = exact(IDS, decoder_input_ids=IDS, output_hidden_states=True).encoder_hidden_states[-2]
    assert float(np.abs(read).max()) > 65504
    np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(wanted).max())


@pytest.mark.oracle
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 15), (64, 256), (16, 20), (320, 800)])
def test_buckets_are_the_oracle_s(buckets: int, distance: int) -> None:
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    keys = np.arange(0, 3 * distance)
    queries = np.arange(0, 3 * distance, 7)
    for bidirectional in (True, False):
        relative = torch.tensor(keys[None] - queries[:, None])
        wanted = T5Attention._relative_position_bucket(relative, bidirectional, buckets, distance).numpy()
        given = {"bidirectional": bidirectional, "buckets": buckets, "max_distance": distance}
        np.testing.assert_array_equal(relative_buckets(queries[None], keys[None], **given)[0], wanted)
    assert distance_buckets(buckets, distance)[-1] == buckets - 1


@pytest.mark.parametrize(
    ("model_type", "values", "message"),
    [
        ("t5", {"feed_forward_proj": "double-gelu"}, "feed_forward_proj='double-gelu'"),
        ("t5", {"feed_forward_proj": "gated-nothing"}, "'nothing'"),
        ("t5", {"relative_attention_max_distance": 16}, "relative_attention_max_distance=16"),
        ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder"),
        ("bart", {"decoder_attention_heads": 7}, "d_model=1024 is not a multiple of decoder_attention_heads=7"),
        ("bart", {"is_decoder": True}, "is_decoder"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
        ("marian", {"decoder_vocab_size": 9}, "decoder_vocab_size=9"),
    ],
)
def test_refused(model_type: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoConfig.for_model(model_type, **values)


def test_flan_s_config_is_read_in_both_dialects() -> None:
    old = AutoConfig.for_model("t5", feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    assert (old.dense_act_fn, old.is_gated_act, old.scale_decoder_outputs) == ("gelu_new", True, False)
    new = AutoConfig.for_model("t5", feed_forward_proj="gated-gelu", scale_decoder_outputs=False)
    assert new.tie_word_embeddings and not new.scale_decoder_outputs
    assert AutoConfig.for_model("t5").scale_decoder_outputs
