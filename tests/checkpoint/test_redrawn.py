"""ignore_mismatched_sizes: what is drawn anew, what is kept, and what is said."""

import logging
from pathlib import Path

import numpy as np
import pytest

from jaxpipe import AutoConfig, AutoModelForSequenceClassification
from jaxpipe.checkpoint.redrawn import Draw
from jaxpipe.common.errors import WeightsError

SIZES = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    config = AutoConfig.for_model("bert", **SIZES, num_labels=3)
    AutoModelForSequenceClassification.from_config(config, seed=1).save_pretrained(folder)
    return folder


def weights(model) -> dict[str, np.ndarray]:
    built = model._built
    return {".".join(map(str, path)): np.asarray(leaf) for path, leaf in zip(built.paths, built.leaves, strict=True)}


def test_a_classifier_for_other_labels(classifier: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(WeightsError, match=r"shape: classifier.weight is \(3, 16\) in the checkpoint, \(5, 16\) here"):
        AutoModelForSequenceClassification.from_pretrained(classifier, num_labels=5)
    before = weights(AutoModelForSequenceClassification.from_pretrained(classifier, ignore_mismatched_sizes=True))
    with caplog.at_level(logging.WARNING, "jaxpipe"):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            classifier, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
        )
    assert "drawn at random, because the shapes differ" in caplog.text
    assert info["mismatched_keys"] == {
        ("classifier.weight", (3, 16), (5, 16)), ("classifier.bias", (3,), (5,)),
    }  # fmt: skip
    after = weights(model)
    changed = {name for name in after if after[name].shape != before[name].shape}
    assert len(changed) == 2 and all(name.startswith("classifier.") for name in changed)
    assert all(np.array_equal(after[name], before[name]) for name in after.keys() - changed)
    kernel = next(after[name] for name in changed if after[name].ndim == 2)
    bias = next(after[name] for name in changed if after[name].ndim == 1)
    assert kernel.shape in ((5, 16), (16, 5)) and 0.01 < kernel.std() < 0.04 and not bias.any()
    again = AutoModelForSequenceClassification.from_pretrained(
        classifier, num_labels=5, ignore_mismatched_sizes=True, device_map={"tensor": 4, "data": 2}
    )
    assert all(np.array_equal(array, after[name]) for name, array in weights(again).items())
    assert np.isfinite(model(input_ids=np.array([[1, 2, 3]])).logits).all()


def test_missing_weights_are_missing_still(classifier: Path, tmp_path: Path) -> None:
    from jaxpipe.checkpoint.resolve import resolve
    from jaxpipe.checkpoint.safetensors import write_safetensors

    source = resolve(classifier).weights()
    kept = [(name, source.read(name)) for name in source.infos if name != "classifier.weight"]
    write_safetensors(tmp_path / "model.safetensors", kept)
    (tmp_path / "config.json").write_text((classifier / "config.json").read_text())
    with pytest.raises(WeightsError, match=r"missing: classifier.weight") as caught:
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert "shape:" not in str(caught.value)


@pytest.mark.parametrize("shape", [(7, 4, 3), (7, 4), (7,), ()])
@pytest.mark.parametrize("initializer", ["normal", "zeros", "ones"])
def test_parts_of_a_drawn_tensor_agree(shape: tuple[int, ...], initializer: str) -> None:
    draw = Draw(shape, initializer, 0.5, 11)
    whole = draw.read(())
    assert whole.shape == shape and whole.dtype == np.float32
    for index in [(slice(2, 5),), (slice(1, 6, 2), slice(3, 4)), (slice(3, 3), slice(0, 2))]:
        index = index[: len(shape)]
        assert np.array_equal(draw.read(index), whole[index])
    expected = {"zeros": 0.0, "ones": 1.0}.get(initializer)
    assert expected is None or (whole == expected).all()
    if initializer == "normal" and len(shape) > 1:
        assert len(np.unique(whole)) == whole.size and 0.3 < whole.std() < 0.7
    assert np.isfinite(whole).all()
