import contextlib
import json
import os
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpipe.checkpoint.safetensors import DTYPES, LazyArray, SafetensorsFile, write_safetensors
from jaxpipe.checkpoint.source import JoinedSource
from jaxpipe.common.errors import CheckpointError


def raw_file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """Writes a file whose header is as given, true or not."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)
    return path


def entry(dtype: str, shape: list, begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def example(dtype: np.dtype, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Returns an array whose bytes run through many patterns, as far as the dtype allows them."""
    generator = np.random.default_rng(seed)
    if dtype == np.bool_:
        return generator.integers(0, 2, shape).astype(np.bool_)
    if dtype == DTYPES["F4"]:
        return generator.integers(0, 16, shape).astype(np.uint8).view(dtype)
    return generator.integers(0, 256, (*shape, dtype.itemsize)).astype(np.uint8).view(dtype).reshape(shape)


def equal_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_round_trips_through_the_reference_implementation(tmp_path: Path, name: str) -> None:
    arrays = {"b": example(DTYPES[name], (3, 4, 6)), "a": example(DTYPES[name], (8,), 1)}
    path = tmp_path / "x.safetensors"
    write_safetensors(path, arrays.items())
    theirs = dict(safetensors.deserialize(path.read_bytes()))
    assert {key: value["dtype"] for key, value in theirs.items()} == {"a": name, "b": name}
    with contextlib.closing(SafetensorsFile(path)) as ours:
        for key, array in arrays.items():
            assert equal_bytes(ours.read(key), array)
            assert ours.infos[key].shape == array.shape == tuple(theirs[key]["shape"])
            assert ours.infos[key].dtype == array.dtype
            if name != "F4":
                assert bytes(theirs[key]["data"]) == array.tobytes()


def test_reads_what_the_reference_implementation_writes(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.arange(5, dtype=np.int8),
        "c": np.arange(4).astype(ml_dtypes.bfloat16),
        "scalar": np.array(3.5),
        "empty": np.zeros((0, 7), np.float16),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "np"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "np"}
    assert set(file.infos) == set(arrays)
    for name, array in arrays.items():
        assert equal_bytes(file.read(name), array)


@pytest.mark.oracle
def test_float8_and_bfloat16_values_equal_torch(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    types = [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float8_e4m3fnuz]
    tensors = {str(kind): torch.linspace(-3, 3, 24).reshape(4, 6).to(kind) for kind in types}
    save_file(tensors, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(file.read(name).astype(np.float32), tensor.float().numpy())


def test_four_bit_floats_have_the_first_value_in_the_low_half(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "x.safetensors", {"a": entry("F4", [2, 4], 0, 4)}, bytes([0x21, 0x43, 0x65, 0xF7]))
    values = SafetensorsFile(path).read("a").astype(np.float32)
    np.testing.assert_array_equal(values, [[0.5, 1.0, 1.5, 2.0], [3.0, 4.0, 6.0, -6.0]])


INDICES = [
    (),
    (slice(1, 3),),
    (slice(None), slice(2, 5)),
    (slice(0, 4, 2), slice(None), slice(1, 5)),
    (slice(2, 2),),
    (slice(None), slice(None), slice(3, 4)),
]


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("name", ["F32", "BF16", "F8_E5M2", "BOOL", "F4"])
def test_slices_equal_numpy(tmp_path: Path, name: str, index: tuple[slice, ...]) -> None:
    arrays = {"even": example(DTYPES[name], (4, 5, 6)), "odd": example(DTYPES[name], (4, 6, 5))}
    write_safetensors(tmp_path / "x.safetensors", arrays.items())
    file = SafetensorsFile(tmp_path / "x.safetensors")
    for key, array in arrays.items():
        assert equal_bytes(file.read(key, index), array[index])


def test_reads_are_views_of_the_map_and_outlive_close(tmp_path: Path) -> None:
    array = example(np.dtype(np.float32), (64, 64))
    write_safetensors(tmp_path / "x.safetensors", [("a", array)])
    file = SafetensorsFile(tmp_path / "x.safetensors")
    view = file.read("a", (slice(3, 5),))
    assert not view.flags.owndata and not view.flags.writeable
    file.close()
    assert equal_bytes(view, array[3:5])
    with pytest.raises(ValueError, match="closed"):
        file.read("a")


@pytest.mark.parametrize("name", ["F32", "BF16", "C64", "F64"])
def test_unaligned_data_is_read_right(tmp_path: Path, name: str) -> None:
    array = example(DTYPES[name], (3, 4))
    header = {"pad": entry("U8", [3], 0, 3), "a": entry(name, [3, 4], 3, 3 + array.nbytes)}
    text = json.dumps(header).encode()
    path = raw_file(tmp_path / "x.safetensors", text, b"xyz" + array.tobytes())
    part = SafetensorsFile(path).read("a", (slice(1, 3), slice(1, 4)))
    assert part.flags.aligned
    assert equal_bytes(part, array[1:3, 1:4])


def test_booleans_are_normalised(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "x.safetensors", {"a": entry("BOOL", [3], 0, 3)}, bytes([0, 1, 7]))
    assert SafetensorsFile(path).read("a").view(np.uint8).tolist() == [0, 1, 1]


GOOD = entry("F32", [2], 0, 8)
DEEP = b"[" * 100_000

BAD = {
    "unknown dtype": ({"w": entry("F7", [2], 0, 8)}, 8, "'w'.*unknown dtype 'F7'"),
    "6-bit": ({"w": entry("F6_E2M3", [4], 0, 3)}, 3, "'w'.*F6_E2M3.*not supported"),
    "dtype no string": ({"w": {**GOOD, "dtype": ["F32"]}}, 8, "unknown dtype"),
    "negative shape": ({"w": entry("F32", [-2], 0, 8)}, 8, "'w'.*shape"),
    "boolean shape": ({"w": entry("F32", [True, 2], 0, 8)}, 8, "'w'.*shape"),
    "float shape": ({"w": entry("F32", [2.0], 0, 8)}, 8, "'w'.*shape"),
    "shape of text": ({"w": {**GOOD, "shape": "2"}}, 8, "'w'.*shape"),
    "too many dimensions": ({"w": entry("F32", [1] * 65, 0, 4)}, 4, "'w'.*at most 64"),
    "huge shape": ({"w": entry("F32", [2**40, 2**40], 0, 8)}, 8, "'w'.*larger than any array"),
    "huge shape with a zero": ({"w": entry("F32", [2**62, 2**62, 0], 0, 0)}, 0, "'w'.*larger than any array"),
    "huge number": ({"w": entry("F32", [10**30], 0, 8)}, 8, "'w'.*shape"),
    "size too small": ({"w": entry("F32", [3], 0, 8)}, 8, r"'w'.*\[3\] of F32 needs 12 bytes, but 8"),
    "size too large": ({"w": entry("F32", [1], 0, 8)}, 8, "'w'.*needs 4 bytes, but 8"),
    "odd half bytes": ({"w": entry("F4", [3], 0, 2)}, 2, "'w'.*needs 1.5 bytes"),
    "beyond the file": ({"w": entry("F32", [4], 0, 16)}, 8, "'w'.*truncated"),
    "offsets fall": ({"w": {**GOOD, "data_offsets": [8, 0]}}, 8, "'w'.*data_offsets"),
    "one offset": ({"w": {**GOOD, "data_offsets": [8]}}, 8, "'w'.*data_offsets"),
    "negative offsets": ({"w": {**GOOD, "data_offsets": [-8, 0]}}, 8, "'w'.*data_offsets"),
    "overlap": ({"v": GOOD, "w": entry("F32", [2], 4, 12)}, 12, "'w' overlaps tensor 'v'"),
    "same bytes twice": ({"v": GOOD, "w": GOOD}, 8, "overlaps"),
    "hole": ({"v": GOOD, "w": entry("F32", [2], 12, 20)}, 20, "'w' leaves unused bytes after tensor 'v'"),
    "hole at the start": ({"w": entry("F32", [2], 4, 12)}, 12, "'w' leaves unused bytes after the header"),
    "bytes at the end": ({"w": GOOD}, 12, "4 bytes after tensor 'w'"),
    "missing fields": ({"w": {}}, 0, "'w'.*unknown dtype None"),
    "no object for a tensor": ({"w": 3}, 0, "'w'.*object"),
    "metadata not text": ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
    "not an object": ([1, 2], 0, "JSON object"),
    "not JSON": (b"{]", 0, "not JSON"),
    "not UTF-8": (b'{"\xff": 1}', 0, "not JSON"),
    "nested too deep": (DEEP, 0, "not JSON"),
    "digits without end": (b'{"a":' + b"1" * 10_000 + b"}", 0, "JSON|object"),
    "twice": (b'{"w":1,"w":2}', 0, "'w' twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_lying_headers_are_refused_by_name(tmp_path: Path, case: str) -> None:
    header, size, message = BAD[case]
    path = raw_file(tmp_path / "bad.safetensors", header, bytes(size))
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    assert "bad.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("length", [2**64 - 1, 2**40, 100])
def test_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    path = raw_file(tmp_path / "bad.safetensors", {}, length=length)
    with pytest.raises(CheckpointError, match=f"{length} bytes, but the file has"):
        SafetensorsFile(path)


def test_header_over_the_limit(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "bad.safetensors", {}, length=100_000_001)
    os.truncate(path, 100_000_100)  # sparse
    with pytest.raises(CheckpointError, match="over the format's limit"):
        SafetensorsFile(path)


@pytest.mark.parametrize("content", [b"", b"\x02\0\0", b"\x02" + bytes(7) + b"{"])
def test_short_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated"):
        SafetensorsFile(path)


def test_missing_file_and_unknown_tensor(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        SafetensorsFile(tmp_path / "none.safetensors")
    write_safetensors(tmp_path / "x.safetensors", [("weight", np.zeros(2))])
    with pytest.raises(KeyError, match=r"no tensor 'weigth'.*Did you mean 'weight'"):
        SafetensorsFile(tmp_path / "x.safetensors").read("weigth")


VALID = safetensors.numpy.save(
    {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4, dtype=np.int8), "c": np.zeros((0, 2))},
    metadata={"format": "np"},
)


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """Draws a valid file with some bytes replaced, removed or added, more often in the header."""
    data = bytearray(VALID)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)) if draw(st.booleans()) else st.integers(8, 140))
        kind = draw(st.sampled_from(["replace", "delete", "insert", "digit"]))
        if kind == "delete":
            del data[place : place + draw(st.integers(1, 20))]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "digit" and (digits := [i for i in range(8, len(data)) if chr(data[i]).isdigit()]):
            data[draw(st.sampled_from(digits))] = draw(st.sampled_from(b"0123456789"))
        else:
            data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
    return bytes(data)


@settings(max_examples=300, deadline=None)
@given(data=mutations())
def test_damaged_files_are_refused_or_read_as_declared(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(data)
    try:
        file = SafetensorsFile(path)
    except CheckpointError as error:
        assert "fuzz.safetensors" in str(error)
        return
    for name, info in file.infos.items():
        array = file.read(name)
        assert array.shape == info.shape and array.dtype == info.dtype
        assert array.nbytes <= 2 * len(data)
    file.close()
    # What is taken here, the reference implementation takes as well.
    assert {name for name, _ in safetensors.deserialize(data)} == set(file.infos)


def test_written_bytes_are_aligned_and_keep_the_order_given(tmp_path: Path) -> None:
    arrays = {"flag": np.array([True]), "z": np.ones(3, np.float32), "a": np.ones((2, 2), np.float32)}
    path = tmp_path / "x.safetensors"
    write_safetensors(path, arrays.items(), {"format": "pt", "other": "ü"})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert list(header) == ["__metadata__", "z", "a", "flag"]
    assert header["__metadata__"] == {"format": "pt", "other": "ü"}
    assert equal_bytes(safetensors.numpy.load_file(path)["a"], arrays["a"])


def test_default_metadata_is_that_of_transformers(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", [])
    assert SafetensorsFile(tmp_path / "x.safetensors").metadata == {"format": "pt"}


def test_awkward_arrays_are_written_right(tmp_path: Path) -> None:
    arrays = {
        "transposed": np.arange(12, dtype=np.float32).reshape(3, 4).T,
        "strided": np.arange(20, dtype=np.int32)[::3],
        "big-endian": np.arange(4, dtype=">f4"),
        "scalar": np.array(2, np.int64),
        "empty": np.zeros((3, 0), np.float32),
        "ümläut\n": np.ones(1, np.uint8),
    }
    write_safetensors(tmp_path / "x.safetensors", arrays.items())
    file = SafetensorsFile(tmp_path / "x.safetensors")
    theirs = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.read(name), array)
        np.testing.assert_array_equal(theirs[name], array)


def test_jax_arrays_are_written(tmp_path: Path) -> None:
    import jax.numpy as jnp

    array = jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)
    write_safetensors(tmp_path / "x.safetensors", [("a", array)])
    assert equal_bytes(SafetensorsFile(tmp_path / "x.safetensors").read("a"), np.asarray(array))


def test_lazy_arrays_are_made_one_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []
    most = 0

    class Tracked(np.ndarray):
        def __del__(self) -> None:
            alive.pop()

    def make() -> np.ndarray:
        nonlocal most
        alive.append(1)
        most = max(most, len(alive))
        return np.ones(1000, np.float32).view(Tracked)

    lazy = [(f"w{i}", LazyArray((1000,), np.dtype(np.float32), make)) for i in range(5)]
    write_safetensors(tmp_path / "x.safetensors", lazy)
    assert most == 1
    assert len(SafetensorsFile(tmp_path / "x.safetensors").infos) == 5


def test_interrupted_write_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, [("a", np.arange(3))])
    before = path.read_bytes()

    def interrupt() -> np.ndarray:
        raise KeyboardInterrupt

    lazy = LazyArray((3,), np.dtype(np.int64), interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(path, [("b", np.ones(100)), ("a", lazy)])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", np.ones(1)), ("a", np.ones(1))], "'a'.*taken"),
        ([("__metadata__", np.ones(1))], "taken"),
        ([("a", np.ones(2, ml_dtypes.int4))], "'a'.*no dtype int4"),
        ([("a", np.array(["text"]))], "'a'.*no dtype"),
        ([("a", np.ones(3, ml_dtypes.float4_e2m1fn))], "'a'.*odd number"),
        ([("a", LazyArray((2,), np.dtype(np.float32), lambda: np.ones(3, np.float32)))], "'a' was announced"),
        ([("a", LazyArray((3,), np.dtype(np.float32), lambda: np.ones(3, np.float16)))], "'a' was announced"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, tensors: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path / "x.safetensors", tensors)
    assert os.listdir(tmp_path) == []


def test_joined_source(tmp_path: Path) -> None:
    for name in "ab":
        write_safetensors(tmp_path / f"{name}.safetensors", [(name, np.full(2, ord(name)))])
    files = [SafetensorsFile(tmp_path / f"{name}.safetensors") for name in "ab"]
    joined = JoinedSource(files)
    assert list(joined.infos) == ["a", "b"] and joined.metadata == {"format": "pt"}
    assert joined.read("b", (slice(1),)).tolist() == [98]
    with pytest.raises(KeyError, match="no tensor 'c'"):
        joined.read("c")
    joined.close()
    with pytest.raises(ValueError, match="closed"):
        joined.read("a")
    with pytest.raises(CheckpointError, match=r"'a' also lies in a\.safetensors"):
        JoinedSource([files[0], files[0]])
