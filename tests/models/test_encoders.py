"""Encoders: positions that derive from ids, shared weights, old dialects, and heads that a checkpoint lacks."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpipe.auto import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
)
from jaxpipe.checkpoint.safetensors import SafetensorsFile
from jaxpipe.common.errors import ConfigError, WeightsError
from jaxpipe.models.deberta_v2 import distance_rows
from jaxpipe.nn.bert import positions_from_ids

TINY: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
}
DEBERTA: dict[str, Any] = {
    **TINY,
    "max_position_embeddings": 20,
    "relative_attention": True,
    "position_buckets": 6,
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}
IDS = np.arange(3, 15).reshape(2, 6)


def test_positions_skip_the_padding_token():
    ids = jnp.asarray([[5, 1, 7, 8], [1, 1, 9, 1]])
    assert positions_from_ids(ids, 1).tolist() == [[2, 1, 3, 4], [1, 1, 2, 1]]


@pytest.mark.parametrize("model_type", ["roberta", "mpnet"])
def test_positions_after_the_padding_bound_the_length(model_type: str):
    config = AutoConfig.for_model(model_type, **TINY, max_position_embeddings=14)
    model = AutoModel.from_config(config)
    assert config.longest_input() == 12
    assert np.isfinite(model(np.full((1, 12), 5)).last_hidden_state).all()
    with pytest.raises(ValueError, match=r"13 tokens.*learned positions for 12.*truncat"):
        model(np.full((1, 13), 5))
    model(IDS, position_ids=np.tile(np.arange(6), (2, 1)) + 8)
    with pytest.raises(ValueError, match=r"position_ids\[0, 5\] is 14.*0 to 13"):
        model(IDS, position_ids=np.tile(np.arange(6), (2, 1)) + 9)


@pytest.mark.parametrize("pad", [None, -1])
def test_roberta_needs_a_padding_token(pad: int | None):
    with pytest.raises(ConfigError, match=f"pad_token_id={pad}.*'xlm-roberta'"):
        AutoConfig.for_model("xlm-roberta", pad_token_id=pad)


def test_the_layers_of_albert_share_their_weights():
    def made(**values: Any) -> Any:
        return AutoModel.from_config(AutoConfig.for_model("albert", **{**TINY, "embedding_size": 8, **values}))

    one, four = made(), made(num_hidden_layers=4)
    assert four.num_parameters() == one.num_parameters()
    assert not np.allclose(four(IDS).last_hidden_state, one(IDS).last_hidden_state)
    layer = made(num_hidden_layers=4, num_hidden_groups=2).num_parameters() - one.num_parameters()
    assert made(inner_group_num=3).num_parameters() == one.num_parameters() + 2 * layer


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_question_answering_has_two_labels(model_type: str):
    config = AutoConfig.for_model(model_type, **TINY, num_labels=5)
    with pytest.raises(ConfigError, match=r"2 labels.*found 5"):
        AutoModelForQuestionAnswering.from_config(config)
    out = AutoModelForQuestionAnswering.from_config(AutoConfig.for_model(model_type, **TINY))(IDS)
    assert out.keys() == ["start_logits", "end_logits"] and out.start_logits.shape == out.end_logits.shape == IDS.shape
    assert out[0] is out.start_logits and out[1] is out["end_logits"]


def test_a_checkpoint_of_another_head_is_refused(tmp_path):
    config = AutoConfig.for_model("distilbert", vocab_size=61, dim=24, n_heads=3, n_layers=1, hidden_dim=40)
    AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(WeightsError) as error:
        AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    assert "missing: qa_outputs.weight" in str(error.value) and "missing: qa_outputs.bias" in str(error.value)


def test_heads_that_do_not_exist_are_named():
    with pytest.raises(
        ConfigError, match="'nomic_bert' has no head for question answering; it has: base model, masked"
    ):
        AutoModelForQuestionAnswering.from_config(AutoConfig.for_model("nomic_bert", **TINY))


# DeBERTa


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("tokens", "buckets", "farthest"), [(700, 256, 512), (600, 256, 512), (40, 8, 16), (50, 0, 20), (90, 12, 40)]
)
def test_rows_of_distances_are_the_oracles(tokens: int, buckets: int, farthest: int):
    import torch
    from transformers.models.deberta_v2 import modeling_deberta_v2

    states = torch.zeros(1, tokens, 4)
    theirs = modeling_deberta_v2.build_relative_position(states, states, buckets or -1, farthest)[0].numpy()
    span = buckets or farthest
    ours = distance_rows(tokens, buckets, farthest)
    columns = np.arange(tokens)
    distance = columns[:, None] - columns[None]
    assert np.array_equal(ours[distance + tokens - 1], np.clip(theirs + span, 0, 2 * span - 1))


def test_deberta_passes_over_token_types_without_a_table():
    model = AutoModel.from_config(AutoConfig.for_model("deberta-v2", **DEBERTA))
    types = np.ones_like(IDS)
    assert np.array_equal(model(IDS, token_type_ids=types)[0], model(IDS)[0])
    with pytest.raises(ValueError, match=r"token_type_ids\[0, 0\] is 2"):
        model(IDS, token_type_ids=types + 1)
    # Distances have no end, so that longer inputs than it was trained on are served.
    assert model(np.full((1, 33), 5)).last_hidden_state.shape == (1, 33, 24)


def test_the_head_of_debertas_pre_training(tmp_path):
    config = AutoConfig.for_model("deberta-v2", **DEBERTA, legacy=False)
    model = AutoModelForMaskedLM.from_config(config, seed=1)
    model.save_pretrained(tmp_path)
    names = set(SafetensorsFile(tmp_path / "model.safetensors").infos)
    assert {"lm_predictions.lm_head.bias", "lm_predictions.lm_head.dense.weight"} <= names
    assert np.array_equal(AutoModelForMaskedLM.from_pretrained(tmp_path)(IDS).logits, model(IDS).logits)
    with pytest.raises(WeightsError, match=r"missing: cls\.predictions\.transform\.dense\.weight"):
        AutoModelForMaskedLM.from_pretrained(tmp_path, legacy=True)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"attention_head_size": 5}, "hidden_size=24.*num_attention_heads=3.*5"),
        ({"pooler_hidden_size": 12}, "pooler_hidden_size=12"),
        ({"conv_kernel_size": 4}, "conv_kernel_size=4"),
        ({"position_buckets": 60, "max_relative_positions": 20}, "position_buckets=60.*max_relative_positions=20"),
    ],
)
def test_configs_of_deberta_that_are_refused(values: dict[str, Any], named: str):
    with pytest.raises(ConfigError, match=named):
        AutoConfig.for_model("deberta-v2", **{**DEBERTA, **values})


# Dialects


def test_modernbert_as_it_lies_on_the_hub():
    hub = AutoConfig.for_model(
        "modernbert", num_hidden_layers=4, global_attn_every_n_layers=2, global_rope_theta=5e4, local_rope_theta=300.0
    )
    assert hub.layer_types == ["full_attention", "sliding_attention"] * 2
    assert hub.rope_parameters == {
        "full_attention": {"rope_type": "default", "rope_theta": 5e4},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    }
    again = AutoConfig.for_model(**hub.to_dict())
    assert again.to_dict() == hub.to_dict()
    with pytest.raises(ConfigError, match="layer_types names 1 layers, but num_hidden_layers is 2"):
        AutoConfig.for_model("modernbert", num_hidden_layers=2, layer_types=["full_attention"])
    with pytest.raises(ConfigError, match="classifier_pooling"):
        AutoConfig.for_model("modernbert", classifier_pooling="max")


def test_nomic_bert_as_its_own_code_wrote_it():
    own: dict[str, Any] = {"n_embd": 24, "n_head": 3, "n_layer": 2, "n_inner": 40, "n_positions": 90}
    own |= {"layer_norm_epsilon": 1e-5, "activation_function": "swiglu", "rotary_emb_base": 777.0}
    own |= {"prenorm": False, "qkv_proj_bias": False, "rotary_emb_fraction": 1.0, "rotary_scaling_factor": None}
    config = AutoConfig.for_model("nomic_bert", **own)
    native = AutoConfig.for_model(
        "nomic_bert",
        hidden_size=24,
        num_attention_heads=3,
        num_hidden_layers=2,
        intermediate_size=40,
        max_position_embeddings=90,
        layer_norm_eps=1e-5,
        rope_parameters={"rope_theta": 777.0},
    )
    assert {k: v for k, v in config.to_dict().items() if k not in own} == native.to_dict()
    for key, value in (("prenorm", True), ("moe_every_n_layers", 2), ("rotary_scaling_factor", 2.0)):
        with pytest.raises(ConfigError, match=key):
            AutoConfig.for_model("nomic_bert", **{**own, key: value})
    with pytest.raises(ConfigError, match=r"activation_function='gelu'.*swiglu"):
        AutoConfig.for_model("nomic_bert", activation_function="gelu")
