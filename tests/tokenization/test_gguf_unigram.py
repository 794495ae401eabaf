"""The unigrams of T5's GGUF files: as the SentencePiece model that they were converted from."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from jaxpipe.common.errors import CheckpointError
from jaxpipe.tokenization import AutoTokenizer, Tokenizer
from jaxpipe.tokenization.converters import gguf as converter
from jaxpipe.tokenization.converters.sentencepiece_model import SentencePieceModel, read_model
from tests.tokenization import sentencepiece_files as files
from tests.tokenization.conftest import CORPUS

UNUSED = 5
# Tokens for blanks, and as many again that only pad the embedding.
PADDED = 128


@pytest.fixture(scope="module")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the model alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sentencepiece

    folder = tmp_path_factory.mktemp("t5")
    given = {"vocab_size": 400, "hard_vocab_limit": False, "minloglevel": 2, **files.MODELS["t5"]}
    sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
        sentence_iterator=iter(CORPUS), model_prefix=str(folder / "spiece"), **given
    )
    (folder / "config.json").write_text('{"model_type": "t5"}')
    return folder


def metadata(model: SentencePieceModel, **more: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes of a model."""
    count = len(model.pieces)
    return {
        "model": "t5",
        "pre": "default",
        "tokens": [piece.text for piece in model.pieces] + [f"[PAD{i}]" for i in range(count, count + PADDED)],
        "scores": [score for _, score in model.scored] + [-10000.0] * PADDED,
        "token_type": [piece.kind for piece in model.pieces] + [UNUSED] * PADDED,
        "add_space_prefix": True,
        "remove_extra_whitespaces": True,
        "precompiled_charsmap": list(model.charsmap),
        "eos_token_id": 1,
        "unknown_token_id": 2,
        "padding_token_id": 0,
        **more,
    }


def load(values: dict[str, Any]) -> Tokenizer:
    converted = converter.convert(values, Path("model.gguf"))
    return Tokenizer(converted.backend, converted.settings, family=converted.family)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_as_transformers_reads_the_model(spiece: Path):
    """Transformers' reader of GGUF files leaves the normalisation of characters out; that of the model has it."""
    from transformers import T5Tokenizer

    model = read_model(spiece / "spiece.model")
    assert model.charsmap
    ours, theirs = load(metadata(model)), T5Tokenizer.from_pretrained(spiece)
    assert ours.special_tokens_map["eos_token"] == theirs.eos_token == "</s>"
    assert (ours.pad_token_id, ours.unk_token_id) == (0, 2)
    assert ours.convert_tokens_to_ids("<extra_id_0>") == theirs.convert_tokens_to_ids("<extra_id_0>")
    for text in files.texts():
        ids = theirs(text)["input_ids"]
        assert ours(text)["input_ids"] == ids, text
        assert ours(text, "b c")["input_ids"] == theirs(text, "b c")["input_ids"]
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip), text


def test_from_a_file(spiece: Path, tmp_path: Path):
    import gguf

    model = read_model(spiece / "spiece.model")
    values = metadata(model)
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "t5")
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(values["tokens"])
    writer.add_token_scores(values["scores"])
    writer.add_token_types(values["token_type"])
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_precompiled_charsmap(model.charsmap)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_pad_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    ours, same = AutoTokenizer.from_pretrained(tmp_path / "model.gguf"), AutoTokenizer.from_pretrained(spiece)
    assert len(ours) == len(model.pieces) + PADDED
    for text in files.texts():
        assert ours(text)["input_ids"] == same(text)["input_ids"], text
    ours.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again(files.texts())["input_ids"] == ours(files.texts())["input_ids"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scores": [0.0]}, "scores has 1 values"),
        ({"unknown_token_id": 10**6}, "unknown_token_id is 1000000"),
        ({"precompiled_charsmap": [255, 255, 255, 255, 1]}, "no tokenizer can be made"),
    ],
)
def test_damaged(spiece: Path, change: dict[str, Any], words: str):
    with pytest.raises(CheckpointError, match=words) as caught:
        load(metadata(read_model(spiece / "spiece.model"), **change))
    assert "model.gguf" in str(caught.value)
