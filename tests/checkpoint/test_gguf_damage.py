import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpipe.checkpoint.gguf import GGUFFile
from jaxpipe.checkpoint.gguf_header import read_header
from jaxpipe.common.errors import CheckpointError
from tests.checkpoint.gguf_files import LLAMA, llama_keys, random, write


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
    "dimensions": (header(ARCHITECTURE, string("w") + struct.pack("<I", 99), keys=1, tensors=1), "'w' has 99 dim"),
    "tensor type": (header(ARCHITECTURE, tensor("w", (1,), 77, 0), keys=1, tensors=1), "'w'.*type 77; .*Q4_0"),
    "removed type": (header(ARCHITECTURE, tensor("w", (1,), 4, 0), keys=1, tensors=1), "'w'.*type 4; "),
    "huge": (header(ARCHITECTURE, tensor("w", (2**40, 2**40), 0, 0), keys=1, tensors=1), "'w' has the impossible"),
    "huge and zero": (
        header(ARCHITECTURE, tensor("w", (2**40, 2**40, 0), 0, 0), keys=1, tensors=1),
        "impossible shape",
    ),
    "half a block": (header(ARCHITECTURE, tensor("w", (33,), 8, 0), keys=1, tensors=1), "'w'.*whole blocks of 32"),
    "beyond the end": (header(ARCHITECTURE, tensor("w", (4,), 0, 0), keys=1, tensors=1), "'w' should end at byte"),
    "offset beyond": (header(ARCHITECTURE, tensor("w", (4,), 0, 2**63), keys=1, tensors=1), "'w' should end at byte"),
    "tensor twice": (
        header(ARCHITECTURE, tensor("w", (0,), 0, 0), tensor("w", (0,), 0, 0), bytes(64), keys=1, tensors=2),
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


@pytest.mark.parametrize("cut", [3, 33, 1000, 5000])
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
