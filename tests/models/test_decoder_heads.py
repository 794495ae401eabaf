"""Classifying heads of decoders: which token is classified, meshes, and checkpoints of other heads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from jaxpipe.auto import AutoModelForTokenClassification as TokenClassifier
from jaxpipe.common.errors import WeightsError
from tests.parity.cases import SEQUENCE_CLASSIFICATION, Case
from tests.parity.harness import Made, check_close, make

LLAMA: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "id2label": {0: "bad", 1: "so so", 2: "good"},
}


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(Case("llama", SEQUENCE_CLASSIFICATION, "ranker", LLAMA), tmp_path_factory.mktemp("ranker"))


def rows() -> tuple[np.ndarray, np.ndarray]:
    """Texts padded to the right and to the left, one that ends in unmasked padding tokens, and one of them alone."""
    ids = np.random.default_rng(0).integers(3, 61, (4, 9))
    mask = np.ones_like(ids)
    mask[0, 6:] = mask[1, :4] = 0
    ids[mask == 0] = 0
    ids[2, 7:] = 0
    ids[3] = 0
    return ids, mask


@pytest.mark.oracle
def test_the_token_that_is_classified(ranker: Made):
    ids, mask = rows()
    wanted = ranker.oracle(input_ids=ids, attention_mask=mask).logits
    check_close(ranker.ours(ids, mask).logits, wanted)
    check_close(ranker.ours(ids).logits, ranker.oracle(input_ids=ids).logits)
    assert ranker.ours.config.id2label == LLAMA["id2label"]
    # What is masked is padding, whatever its ids.
    other = np.where(mask, ids, 17)
    check_close(ranker.ours(other, mask).logits, wanted)


@pytest.mark.oracle
def test_without_a_padding_token(ranker: Made, tmp_path: Path):
    ids, mask = rows()
    ids, mask = ids[:2], mask[:2]
    config = AutoConfig.from_pretrained(ranker.directory, pad_token_id=None)
    model = AutoModelForSequenceClassification.from_pretrained(ranker.directory, config=config)
    check_close(model(ids, mask).logits, ranker.oracle(input_ids=ids, attention_mask=mask).logits)
    check_close(model(ids[:1, :6]).logits, ranker.oracle(input_ids=ids[:1, :6]).logits)
    with pytest.raises(ValueError, match=r"2 rows.*attention_mask, or set pad_token_id"):
        model(ids)


@pytest.mark.oracle
@pytest.mark.parametrize("mesh", [{"tensor": 4, "data": 2}, pytest.param({"fsdp": 8}, marks=pytest.mark.full)])
def test_on_8_devices(ranker: Made, mesh: dict[str, int]):
    ids, mask = rows()
    model = ranker.load(device_map=mesh)
    assert model.mesh.size == 8
    check_close(model(ids, mask).logits, ranker.oracle(input_ids=ids, attention_mask=mask).logits)


@pytest.mark.oracle
def test_other_heads_of_the_checkpoint(ranker: Made, tmp_path: Path):
    with pytest.raises(WeightsError, match=r"missing: lm_head\.weight"):
        AutoModelForCausalLM.from_pretrained(ranker.directory)
    with pytest.raises(WeightsError, match=r"missing: score\.bias"):
        TokenClassifier.from_pretrained(ranker.directory)
    base, info = AutoModel.from_pretrained(ranker.directory, output_loading_info=True)
    assert info["unexpected_keys"] == {"score.weight"} and base.class_name == "LlamaModel"
    with pytest.raises(WeightsError, match=r"shape: score\.weight is \(3, 48\) in the checkpoint, \(5, 48\) here"):
        AutoModelForSequenceClassification.from_pretrained(ranker.directory, num_labels=5)
    generator = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA))
    generator.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"missing: score\.weight"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.oracle
def test_the_classes_are_those_of_the_oracle():
    """Every decoder has the heads that Transformers has for it, under the same names, and no others."""
    from transformers.models.auto import modeling_auto as theirs

    from jaxpipe.models import registry

    maps = {
        registry.SEQUENCE_CLASSIFICATION: theirs.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        registry.TOKEN_CLASSIFICATION: theirs.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        registry.QUESTION_ANSWERING: theirs.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        registry.MASKED_LM: theirs.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    }
    for model_type in registry.model_types():
        known = registry.architecture(model_type)
        if registry.SEQ2SEQ_LM in known.heads or model_type == "gemma3":  # which becomes a text model
            continue
        for head, names in maps.items():
            found = known.heads.get(head)
            assert (found and found.__name__) == names.get(model_type), (model_type, head)
