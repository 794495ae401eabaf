"""SentencePiece models without tokenizer.json: every class against Transformers, languages, and damaged files."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxpipe.common.errors import CheckpointError
from jaxpipe.tokenization import AutoTokenizer, languages
from jaxpipe.tokenization.converters.paired import _read_splitter
from jaxpipe.tokenization.converters.sentencepiece_model import BPE, UNIGRAM, read_model
from tests.tokenization import sentencepiece_files as files

FORMS = [
    "t5", "t5_few", "mt5", "xlm_roberta", "xlm_roberta_bare", "camembert", "llama", "llama_legacy", "llama_new",
    "mistral", "gemma", "albert", "albert_cased", "deberta", "deberta_lower", "pegasus", "mbart", "mbart50", "m2m100",
    "marian", "marian_apart",
]  # fmt: skip
# Transformers splits text by SentencePiece itself for these, and knows no offsets.
SLOW = ("m2m100", "marian", "marian_apart")
NAMES = (
    "padding_side", "model_input_names", "vocab_size", "special_tokens_map", "all_special_tokens", "all_special_ids",
    "model_max_length",
)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return files.train(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> dict[str, Path]:
    return files.directories(tmp_path_factory.mktemp("directories"), models)


def oracle(path: Path) -> Any:
    from transformers import AutoTokenizer as Oracle

    return Oracle.from_pretrained(path)


def compare(ours: Any, theirs: Any, texts: list[str]) -> None:
    for name in NAMES:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs) and ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    if ours.pad_token is None:
        ours.pad_token = theirs.pad_token = ours.eos_token
    for text in texts:
        for special in (True, False):
            arguments = {"add_special_tokens": special, "return_offsets_mapping": theirs.is_fast}
            assert dict(ours(text, **arguments)) == dict(theirs(text, **arguments)), text
        ids = ours(text)["input_ids"]
        assert ours.tokenize(text) == theirs.tokenize(text)
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
        assert ours(text, "b c")["input_ids"] == theirs(text, "b c")["input_ids"]
        assert ours(text_target=text)["input_ids"] == theirs(text_target=text)["input_ids"]
        for skip in (True, False):
            decoded = ours.decode(ids, skip_special_tokens=skip)
            assert decoded == theirs.decode(ids, skip_special_tokens=skip), text
    batch = {"padding": True, "truncation": True, "max_length": 9}
    assert dict(ours(texts, **batch)) == dict(theirs(texts, **batch))
    assert ours(texts[0], text_target=texts[1])["labels"] == theirs(texts[0], text_target=texts[1])["labels"]


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_as_transformers(directories: dict[str, Path], form: str) -> None:
    texts = files.texts()
    if form == "marian_apart":
        # A code that the vocabulary lacks is one unknown token there, pieces here.
        texts.remove(">>fr<< Hello world")
    ours, theirs = AutoTokenizer.from_pretrained(directories[form]), oracle(directories[form])
    assert theirs.is_fast == (form not in SLOW)
    compare(ours, theirs, texts)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["t5", "mbart50", "nllb", "marian", "m2m100"])
def test_saved_ones_are_the_same_here_and_in_transformers(
    tmp_path: Path, directories: dict[str, Path], form: str
) -> None:
    ours = AutoTokenizer.from_pretrained(directories[form])
    ours.add_tokens(["newtoken"])
    written = ours.save_pretrained(tmp_path)
    assert all(Path(name).is_file() for name in written)
    (tmp_path / "config.json").write_text((directories[form] / "config.json").read_text())
    again, theirs = AutoTokenizer.from_pretrained(tmp_path), oracle(tmp_path)
    for text in [*files.texts(), "a newtoken b"]:
        ids = ours(text)["input_ids"]
        assert again(text)["input_ids"] == ids == theirs(text)["input_ids"], text
        assert again.decode(ids) == ours.decode(ids)
    assert type(again) is type(ours) and again.get_vocab() == ours.get_vocab()
    assert getattr(again, "src_lang", None) == getattr(ours, "src_lang", None)


# NLLB's language codes, which Transformers 5 loses without a tokenizer.json


def test_ids_of_nllb_are_those_of_its_dictionary(directories: dict[str, Path], models: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directories["nllb"])
    count = len(files.pieces(models["bpe"])) + 1
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert tokenizer.convert_ids_to_tokens(4) == files.pieces(models["bpe"])[3]
    # In facebook/nllb-200-distilled-600M, of 256001 such ids: eng_Latn is 256047, fra_Latn 256057, <mask> 256203.
    ids = tokenizer.convert_tokens_to_ids(["eng_Latn", "fra_Latn", "<mask>"])
    assert ids == [count + 46, count + 56, count + 202] and len(tokenizer) == count + 203
    assert tokenizer("x")["input_ids"][0] == count + 46 and tokenizer("x")["input_ids"][-1] == 2
    legacy = AutoTokenizer.from_pretrained(directories["nllb"], src_lang="fra_Latn")
    assert legacy("x")["input_ids"][0] == count + 56
    assert tokenizer.decode(tokenizer("Hello x")["input_ids"], skip_special_tokens=True) == "Hello x"


# Languages


@pytest.mark.parametrize(
    ("form", "source", "target", "codes"),
    [
        ("mbart", "en_XX", "fr_XX", languages.MBART),
        ("mbart50", "en_XX", "sl_SI", languages.MBART50),
        ("nllb", "fra_Latn", "zho_Hans", languages.NLLB),
        ("m2m100", "en", "zu", languages.M2M100),
    ],
)
def test_languages(directories: dict[str, Path], form: str, source: str, target: str, codes: list[str]) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(directories[form])
    tokenizer.src_lang = source
    tokenizer.tgt_lang = target
    source_id, target_id = tokenizer.get_lang_id(source), tokenizer.get_lang_id(target)
    place = -1 if form == "mbart" else 0
    both = tokenizer("one", text_target="two")
    assert both["input_ids"][place] == source_id and both["labels"][place] == target_id
    assert tokenizer("one")["input_ids"][place] == source_id
    inputs = tokenizer.build_translation_inputs("one", src_lang=target, tgt_lang=source, return_tensors="np")
    assert inputs["forced_bos_token_id"] == source_id and inputs["input_ids"][0, place] == target_id
    assert tokenizer.src_lang == target and inputs["input_ids"].shape == inputs["attention_mask"].shape
    assert {tokenizer.get_lang_id(code) for code in codes} <= set(tokenizer.lang_code_to_id.values())
    with pytest.raises(ValueError, match=r"'en_XY' is no language of this tokenizer"):
        tokenizer.src_lang = "en_XY"
    assert tokenizer("one")["input_ids"][place] == target_id
    with pytest.raises(ValueError, match="needs src_lang= and tgt_lang="):
        tokenizer.build_translation_inputs("one", src_lang=None, tgt_lang=target)
    with pytest.raises(ValueError, match="is no language"):
        AutoTokenizer.from_pretrained(directories[form], src_lang="xx_yy")


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("form", "source", "target"), [("mbart", "ro_RO", "de_DE"), ("mbart50", "ro_RO", "xh_ZA"), ("m2m100", "en", "ro")]
)
def test_translation_inputs_are_those_of_transformers(
    directories: dict[str, Path], form: str, source: str, target: str
) -> None:
    ours: Any = AutoTokenizer.from_pretrained(directories[form])
    theirs = oracle(directories[form])
    wanted = theirs._build_translation_inputs(["a b", "c"], src_lang=source, tgt_lang=target, return_tensors=None)
    found = ours.build_translation_inputs(["a b", "c"], src_lang=source, tgt_lang=target)
    assert dict(found) == dict(wanted)


def test_marian_marks_target_languages(directories: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directories["marian"])
    vocab = json.loads((directories["marian"] / "vocab.json").read_text())
    assert tokenizer(">>de<< x")["input_ids"][0] == vocab[">>de<<"] and tokenizer.model_max_length == 512
    assert tokenizer.tokenize(">>de<< x")[0] == ">>de<<"
    # Every piece of the source that the vocabulary lacks is unknown, none gets another token's id.
    lost = [piece for piece in files.pieces(directories["marian"] / "source.spm") if piece not in vocab]
    assert lost and all(tokenizer.convert_tokens_to_ids(piece) == vocab["<unk>"] for piece in lost)


# The models themselves


@pytest.mark.parametrize("name", ["t5", "fairseq", "bpe", "llama", "source"])
def test_text_is_split_as_sentencepiece_splits_it(models: dict[str, Path], name: str) -> None:
    splitter, model = _read_splitter(models[name]), files.processor(models[name])
    for text in files.texts():
        text = text.replace("</s>", "").replace("<pad>", "").replace("<unk>", "")
        assert splitter.encode(text).ids == model.encode(text), text


@pytest.mark.parametrize(("name", "kind"), [("t5", UNIGRAM), ("llama", BPE), ("gemma", BPE), ("albert", UNIGRAM)])
def test_what_a_model_file_says(models: dict[str, Path], name: str, kind: int) -> None:
    model, reader = read_model(models[name]), files.processor(models[name])
    assert [piece.text for piece in model.pieces] == files.pieces(models[name])
    assert [piece.score for piece in model.pieces] == [reader.get_score(index) for index in range(len(model.pieces))]
    assert model.kind == kind and (model.charsmap is None) == (kind == BPE)
    options = files.MODELS[name]
    assert {key: model.special[key][0] for key in ("unk", "bos", "eos", "pad")} == {
        "unk": reader.unk_id(), "bos": reader.bos_id(), "eos": reader.eos_id(), "pad": reader.pad_id(),
    }  # fmt: skip
    assert model.adds_space == options.get("add_dummy_prefix", True)
    assert model.collapses_spaces == options.get("remove_extra_whitespaces", True)
    assert model.byte_fallback == options.get("byte_fallback", False)


@pytest.mark.parametrize(
    ("form", "file", "content", "message"),
    [
        ("t5", "spiece.model", b"", r"spiece\.model: not a SentencePiece model: it has no vocabulary"),
        ("t5", "spiece.model", b"IQ== 0\nIg== 1\n", r"spiece\.model: not a SentencePiece model"),
        ("t5", "spiece.model", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", r"not a SentencePiece model"),
        (
            "t5",
            "spiece.model",
            b"\x0a\x03\x0a\x01a\x12\x02\x18\x04",
            r"of type 4; unigram \(1\) and BPE \(2\) are read",
        ),
        ("t5", "spiece.model", b"\x0a\x03\x0a\x01a", r"spiece\.model: the token '</s>', which encoding adds"),
        ("mt5", "spiece.model", b"\x0a\x03\x0a\x01a", r"spiece\.model: no tokenizer can be made of it as T5Tokenizer"),
        ("albert", "spiece.model", b"\x0a\x03\x0a\x01a\x0a\x03\x0a\x01b", r"the token '\[CLS\]', which encoding adds"),
        ("marian", "vocab.json", b'{"<unk>": "x"}', r"vocab\.json: the id of '<unk>' is 'x', not an id"),
        ("marian", "vocab.json", b"{}", r"vocab\.json lacks the unknown token '<unk>'"),
        ("marian", "target.spm", None, r"needs source\.spm, target\.spm, vocab\.json; target\.spm is missing"),
        ("m2m100", "vocab.json", None, r"needs sentencepiece\.bpe\.model and vocab\.json; vocab\.json is missing"),
    ],
)
def test_damaged_files(
    tmp_path: Path, directories: dict[str, Path], form: str, file: str, content: bytes | None, message: str
) -> None:
    for path in directories[form].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        AutoTokenizer.from_pretrained(tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 2**16), st.integers(0, 255), st.sampled_from("=+-")), min_size=1, max_size=4
    ),
    form=st.sampled_from(["t5", "llama_legacy", "marian"]),
)
def test_damage_anywhere_gives_an_error_or_a_tokenizer(
    tmp_path: Path, directories: dict[str, Path], edits: list, form: str
) -> None:
    target = tmp_path / form
    target.mkdir(exist_ok=True)
    for path in directories[form].iterdir():
        data = bytearray(path.read_bytes())
        if path.suffix in (".model", ".spm"):
            for place, byte, how in edits:
                place %= len(data)
                data[place : place + (how != "+")] = b"" if how == "-" else bytes([byte])
        (target / path.name).write_bytes(data)
    try:
        tokenizer = AutoTokenizer.from_pretrained(target)
    except CheckpointError as error:
        assert str(target) in str(error)
        return
    assert all(isinstance(index, int) for index in tokenizer("hello 日本 x")["input_ids"])
