"""Files of torch.save: both formats, what their tensors are, and what is wrong with damaged or hostile ones."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxpipe.checkpoint import torch_pickle
from jaxpipe.checkpoint.resolve import resolve
from jaxpipe.checkpoint.safetensors import write_safetensors
from jaxpipe.checkpoint.torch_file import TorchFile
from jaxpipe.common.errors import CheckpointError
from tests.checkpoint import torch_files as files
from tests.checkpoint.model_files import ARRAYS, check_weights
from tests.checkpoint.torch_files import dict_of, name, number, storage, tensor, text, tuple_of

FORMS = ["zip", "stream"]
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
FLOATS = storage("FloatStorage", "0", 24)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


def opened(path: Path, form: str, value: bytes, array: np.ndarray = BASE) -> TorchFile:
    files.write(path / "w.bin", form, value, {"0": array})
    return TorchFile(path / "w.bin")


def test_a_state_dict(tmp_path: Path, form: str) -> None:
    arrays = {
        "f": BASE, "h": BASE.astype(np.float16)[0], "b": BASE.astype(ml_dtypes.bfloat16), "i": np.arange(3),
        "t": np.array([[True], [False]]), "scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float32),
    }  # fmt: skip
    files.save(tmp_path / "w.bin", form, arrays)
    source = TorchFile(tmp_path / "w.bin")
    assert list(source.infos) == list(arrays)
    for key, array in arrays.items():
        info, read = source.infos[key], source.read(key)
        assert (info.name, info.shape, info.dtype, info.file) == (key, array.shape, array.dtype, tmp_path / "w.bin")
        assert read.dtype == array.dtype and read.shape == array.shape and np.array_equal(read, array)
    index = (slice(1, 4, 2), slice(5, None))
    assert np.array_equal(source.read("f", index), BASE[index])
    assert np.array_equal(source.read("f", (slice(1, 2),)), BASE[1:2])
    assert np.array_equal(source.read("empty", (slice(0, 0), slice(0, 2))), np.zeros((0, 2)))
    with pytest.raises(KeyError, match=r"no tensor 'ff'. Did you mean 'f'"):
        source.read("ff")
    view = source.read("i")
    source.close()
    assert view.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="was closed"):
        source.read("i")


def test_views_of_one_storage(tmp_path: Path, form: str) -> None:
    value = dict_of(
        {
            "whole": tensor(FLOATS, 0, (4, 6), (6, 1)),
            "transposed": tensor(FLOATS, 0, (6, 4), (1, 6)),
            "part": tensor(FLOATS, 8, (2, 3), (6, 1)),
            "every other": tensor(FLOATS, 1, (12,), (2,)),
            "expanded": tensor(FLOATS, 3, (5, 2), (0, 1)),
            "number": number(3),
        }
    )
    source = opened(tmp_path, form, value)
    expected = {"whole": BASE, "transposed": BASE.T, "part": BASE[1:3, 2:5], "every other": BASE.ravel()[1::2]}
    expected["expanded"] = np.broadcast_to(BASE[0, 3:5], (5, 2))
    assert {key: source.read(key).tolist() for key in source.infos} == {k: v.tolist() for k, v in expected.items()}
    assert source.read("transposed", (slice(2, 4), slice(1, 3))).tolist() == BASE.T[2:4, 1:3].tolist()


def test_storage_that_is_a_view_of_another(tmp_path: Path) -> None:
    part = storage("FloatStorage", "0", 24, tuple_of(text("v"), number(6), number(12)))
    value = dict_of({"w": tensor(part, 1, (2, 5), (6, 1)), "all": tensor(FLOATS, 0, (24,), (1,))})
    source = opened(tmp_path, "stream", value)
    assert source.read("w").tolist() == BASE[1:3, 1:].tolist()
    beyond = storage("FloatStorage", "0", 24, tuple_of(text("v"), number(13), number(12)))
    with pytest.raises(CheckpointError, match="elements 13 to 25 of storage '0', which has 24"):
        opened(tmp_path, "stream", dict_of({"w": tensor(beyond, 0, (1,), (1,))}))


def test_other_functions_that_make_tensors(tmp_path: Path, form: str) -> None:
    plain = tensor(FLOATS, 0, (24,), (1,))
    old = tuple_of(FLOATS, number(0), tuple_of(number(24)), tuple_of(number(1)))
    sizes = [tuple_of(number(6)), tuple_of(number(4))]
    untyped = b"(" + text("storage") + name("torch.storage", "UntypedStorage") + text("0") + text("cpu") + number(96)
    # As in the older stream, where five items are followed by None.
    newest = tuple_of(untyped + b"NtQ", number(1), *sizes, b"\x89", b"}", name("torch", "int32"))
    arguments = tuple_of(FLOATS, number(0), tuple_of(number(2)), tuple_of(number(1)), b"\x89", b"}")
    kind = name("torch.nn.parameter", "Parameter")
    typed = tuple_of(name("torch._utils", "_rebuild_tensor_v2"), kind, arguments, b"}")
    value = {
        "p": name("torch._utils", "_rebuild_parameter") + tuple_of(plain, b"\x88", files.ORDERED_DICT) + b"R",
        "s": name("torch._utils", "_rebuild_parameter_with_state") + tuple_of(plain, b"\x88", b"}", b"}") + b"R",
        "o": name("torch._utils", "_rebuild_tensor") + old + b"R",
        "y": name("torch._tensor", "_rebuild_from_type_v2") + typed + b"R",
    }
    source = opened(tmp_path, form, dict_of(value))
    assert {key: source.infos[key].shape for key in value} == {"p": (24,), "s": (24,), "o": (24,), "y": (2,)}
    assert all(source.read(key).tolist() == BASE.ravel()[: source.infos[key].shape[0]].tolist() for key in value)
    source = opened(
        tmp_path,
        form,
        dict_of({"n": name("torch._utils", "_rebuild_tensor_v3") + newest + b"R"}),
        np.frombuffer(np.arange(24, dtype=np.int32).tobytes(), np.uint8),
    )
    assert source.read("n").dtype == np.int32 and source.read("n").tolist() == [1, 5, 9, 13, 17, 21]


@pytest.mark.parametrize("wrappers", [["state_dict"], ["model"], ["model", "model_state_dict"]])
def test_state_dicts_inside_a_training_state(tmp_path: Path, form: str, wrappers: list[str]) -> None:
    value = dict_of({"w": tensor(FLOATS, 0, (24,), (1,))})
    for wrapper in reversed(wrappers):
        value = dict_of({"epoch": number(3), wrapper: value, "args": dict_of({})})
    assert opened(tmp_path, form, value).read("w").tolist() == BASE.ravel().tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64", "complex64", "uint8"])
def test_big_endian(tmp_path: Path, dtype: str) -> None:
    array = np.arange(-6, 6).reshape(3, 4).astype(dtype)
    parts = {"complex64": "u4", "bfloat16": "u2"}.get(dtype)
    swapped = (array.view(parts) if parts else array).byteswap()
    path = tmp_path / "w.bin"
    files.write_zip(path, dict_of({"w": files.whole("0", array)}), {"0": swapped.tobytes()}, order=b"big")
    source = TorchFile(path)
    assert source.read("w").dtype == array.dtype and np.array_equal(source.read("w"), array)
    assert np.array_equal(source.read("w", (slice(1, 3), slice(3, 4))), array[1:3, 3:4])
    files.write_zip(path, dict_of({"w": files.whole("0", array)}), {"0": b""}, order=b"middle")
    with pytest.raises(CheckpointError, match=r"byte order is b'middle', neither"):
        TorchFile(path)


@pytest.mark.parametrize("prefix", ["", "pytorch_model/", "a/b c/"])
def test_names_of_the_archive(tmp_path: Path, prefix: str) -> None:
    value = dict_of({"w": files.whole("0", BASE)})
    files.write_zip(tmp_path / "w.bin", value, {"0": BASE.tobytes()}, prefix=prefix, order=None)
    assert np.array_equal(TorchFile(tmp_path / "w.bin").read("w"), BASE)


def test_any_byte_is_a_boolean(tmp_path: Path) -> None:
    value = dict_of({"w": tensor(storage("BoolStorage", "0", 3), 0, (3,), (1,))})
    files.write_zip(tmp_path / "w.bin", value, {"0": b"\x00\x02\xff"})
    assert TorchFile(tmp_path / "w.bin").read("w").view(np.uint8).tolist() == [0, 1, 1]


# Hostile files


class Hostile:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trap),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_hostile_pickle_is_not_run(tmp_path: Path, form: str, protocol: int) -> None:
    trap = tmp_path / "trap"
    pickled = pickle.dumps({"w": Hostile(trap)}, protocol)
    value = pickled[2:-1] if protocol >= 2 else pickled[:-1]
    with pytest.raises(CheckpointError, match=r"w\.bin: refused: .*nothing of it was run") as caught:
        opened(tmp_path, form, value)
    assert not trap.exists()
    # Protocol 0 spells the dict in an opcode that torch does not use, before the name is reached.
    assert protocol < 2 or "'posix.mkdir'" in str(caught.value) or "'nt.mkdir'" in str(caught.value)
    pickle.loads(pickled)
    assert trap.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_bare_hostile_pickle_is_not_run(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "w.bin").write_bytes(pickle.dumps(Hostile(tmp_path / "trap"), protocol))
    with pytest.raises(CheckpointError, match=r"w\.bin: begins neither .*the name '\w+\.mkdir'"):
        TorchFile(tmp_path / "w.bin")
    assert not (tmp_path / "trap").exists()


CALL = tuple_of(text("echo"))
PLAIN = tensor(FLOATS, 0, (1,), (1,))
REFUSED = {
    "the name 'os.system'": name("os", "system") + CALL + b"R",
    "the name 'builtins.eval'": text("builtins") + text("eval") + b"\x93" + CALL + b"R",
    "the name 'torch.load'": name("torch", "load"),
    "the name 'torch._utils.FloatStorage'": name("torch._utils", "FloatStorage"),
    "the name 'torch.nn.modules.linear.Linear'": name("torch.nn.modules.linear", "Linear") + b")\x81",
    "the opcode INST 'os system'": b"(" + text("echo") + b"ios\nsystem\n",
    "the opcode OBJ": b"(" + name("torch", "Size") + b"o",
    "the opcode NEWOBJ": name("torch", "Size") + b")\x81",
    "the opcode NEWOBJ_EX": name("torch", "Size") + b")}\x92",
    "the opcode EXT1 7": b"\x82\x07",
    "the opcode EXT2 7": b"\x83\x07\x00",
    "the opcode EXT4 7": b"\x84\x07\x00\x00\x00",
    "the opcode PERSID 'x'": b"Px\n",
    "the opcode STRING": b"S'x'\n",
    "the opcode BYTEARRAY8": b"\x96" + bytes(8),
    "the opcode FROZENSET": b"(\x91",
    "a call of 'torch.float32'": name("torch", "float32") + b")R",
    "a call of OrderedItems": files.ORDERED_DICT + b")R",
    "a call of str": text("os.system") + CALL + b"R",
    "a call of 'torch._utils._rebuild_tensor_v2' with 1 arguments": (
        name("torch._utils", "_rebuild_tensor_v2") + tuple_of(FLOATS) + b"R"
    ),
    r"attributes \(BUILD\) for a dict": b"}}b",
    r"attributes \(BUILD\) for a StoredTensor": PLAIN + b"}b",
    r"attributes \(BUILD\) for a OrderedItems": files.ORDERED_DICT + b")b",
    "a persistent id that is not of a storage": tuple_of(text("module"), b"N", b"N", b"N", b"N") + b"Q",
    "a storage of type 'torch.Size'": (
        tuple_of(text("storage"), name("torch", "Size"), text("0"), text("cpu"), number(1)) + b"Q"
    ),
    "a storage without a key": storage("FloatStorage", "0", -1),
    "a view of storage '0' without": storage("FloatStorage", "0", 24, tuple_of(text("v"), number(-1), number(1))),
    "a tensor over str": tensor(text("x"), 0, (1,), (1,)),
    "a tensor that is to be conjugated": tensor(FLOATS, 0, (1,), (1,), b"\x89", b"}", dict_of({"conj": b"\x88"})),
    "a parameter of str": name("torch._utils", "_rebuild_parameter") + tuple_of(text("x"), b"\x88", b"}") + b"R",
    "a tensor of type 'torch.Size' made by 'torch.device'": (
        name("torch._tensor", "_rebuild_from_type_v2")
        + tuple_of(name("torch", "device"), name("torch", "Size"), b")", b"}") + b"R"
    ),
    "a torch.Size of something else": name("torch", "Size") + tuple_of(tuple_of(text("x"))) + b"R",
    "an OrderedDict of something else than pairs": name("collections", "OrderedDict") + tuple_of(b"](]]e") + b"R",
    "a dict with a key that is tuple": b"})" + b"Ns",
    "an integer of more than 127 bits": number(2**127),
    "items for a dict": b"}Na",
    "pairs for a list": b"]NNs",
    "more than 1000 marks": b"(" * 1001,
    "a tensor of size": tensor(FLOATS, 0, (2**40,), (0,)),
    r"a tensor of size \(0, 4611686018427387904\)": tensor(FLOATS, 0, (0, 2**62), (1, 1)),
    "a tensor of 65 dimensions": tensor(FLOATS, 0, (1,) * 65, (1,) * 65),
    "element 24 of a storage of 24": tensor(FLOATS, 1, (4, 6), (6, 1)),
    "element 92 of a storage of 24": tensor(FLOATS, 0, (24,), (4,)),
    "as many non-negative integers": tensor(FLOATS, 0, (2,), (-1,)),
    r"whose offset, size and stride are not": tensor(FLOATS, 0, (2, 2), (1,)),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(tmp_path: Path, form: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"w\.bin: refused: the pickle in it holds .*{message}"):
        opened(tmp_path, form, dict_of({"w": PLAIN, "x": REFUSED[message]}))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "a value is missing|values are left over"),
        (b"NN", "values are left over"),
        (b"(N", "values are left over"),
        (b"(t0", "is no opcode|refused"),
        (b"h\x05", "damaged: 5"),
        (b"t", "damaged"),
        (b"N(R", "a value is missing"),
        (b"(a", "a value is missing"),
        (b"X\xff\x00\x00\x00x", "damaged"),
        (b"X\x01\x00\x00\x00\xff", "damaged"),
        (b"\xff", "is no opcode"),
        (b"cos\n", "damaged"),
    ],
)
def test_damaged_pickles(tmp_path: Path, form: str, value: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, form, value)


def test_bombs_of_memory_stay_small(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Lists of ten of the list before: 10^100 items where they were counted one by one.
    lists = [b"]q\0", *(b"](%seq%c" % (b"h%c" % (i - 1) * 10, i) for i in range(1, 100))]
    bomb = tuple_of(*lists)
    itself = b"}q\xc8" + text("model") + b"h\xc8s"
    source = opened(tmp_path, form, dict_of({"w": PLAIN, "bomb": bomb, "itself": itself}), BASE)
    assert list(source.infos) == ["w"]
    with pytest.raises(CheckpointError, match=r"holds no state dict.*it is a dict of 'model'"):
        files.write(tmp_path / "w.bin", form, itself, {})
        TorchFile(tmp_path / "w.bin")
    monkeypatch.setattr(torch_pickle, "MAX_OPCODES", 10)
    with pytest.raises(CheckpointError, match="more than 10 opcodes"):
        opened(tmp_path, form, dict_of({"w": PLAIN}))


def test_pickles_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_pickle, "MAX_BYTES", 200)
    value = dict_of({"w": PLAIN, "x": text("x" * 200)})
    with pytest.raises(CheckpointError, match=r"refused: a pickle of \d+ bytes"):
        opened(tmp_path, "zip", value)
    monkeypatch.setattr(torch_pickle.load, "__defaults__", (200,))
    with pytest.raises(CheckpointError, match="larger than is accepted"):
        opened(tmp_path, "stream", value)


# Containers


def test_zip_entries_that_torch_does_not_write(tmp_path: Path) -> None:
    path, value = tmp_path / "w.bin", dict_of({"w": files.whole("0", BASE)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", files.finished(value))
        archive.writestr("a/data/0", BASE.tobytes())
    with pytest.raises(CheckpointError, match=r"refused: 'a/data.pkl' is compressed"):
        TorchFile(path)
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a/data.pkl", files.finished(value))
        archive.writestr("a/data.pkl", files.finished(value))
    with pytest.raises(CheckpointError, match=r"refused: the zip file holds 'a/data.pkl' twice"):
        TorchFile(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/weights.txt", b"")
    with pytest.raises(CheckpointError, match=r"without 'data.pkl'"):
        TorchFile(path)
    files.write_zip(path, value, {})
    with pytest.raises(CheckpointError, match=r"tensor 'w': the file lacks its storage '0'"):
        TorchFile(path)
    files.write_zip(path, value, {"0": BASE.tobytes()[4:]})
    with pytest.raises(CheckpointError, match=r"storage '0' has 92 bytes, but should have 96 \(24 elements of float32"):
        TorchFile(path)


def test_streams_that_torch_does_not_write(tmp_path: Path) -> None:
    path, value = tmp_path / "w.bin", dict_of({"w": files.whole("0", BASE)})
    for records, keys, message in (
        ({"0": (24, BASE.tobytes()[:-1])}, None, "should end at byte .* truncated"),
        ({"0": (2**62, BASE.tobytes())}, None, "truncated"),
        ({"0": (-1, BASE.tobytes())}, None, "of -1 elements"),
        ({"0": (23, BASE.tobytes())}, None, "has 92 bytes, but should have 96"),
        ({}, [], "lacks its storage '0'"),
        ({"0": (24, BASE.tobytes())}, ["0", "0"], "not a list of different keys"),
        ({"0": (24, BASE.tobytes())}, "0", "not a list of different keys"),
        ({"0": (24, BASE.tobytes())}, [0], "not a list of different keys"),
        ({"0": (24, BASE.tobytes()), "1": (1, b"x")}, None, "'1' belongs to no tensor"),
    ):
        files.write_stream(path, value, records, keys)
        with pytest.raises(CheckpointError, match=message):
            TorchFile(path)
    for start, message in ((files.MAGIC, "its version 3 is not"), (5, "its magic number 5 is not")):
        path.write_bytes(pickle.dumps(start, 2) + pickle.dumps(3, 2))
        with pytest.raises(CheckpointError, match=message):
            TorchFile(path)


@pytest.mark.parametrize(
    ("value", "found"),
    [(number(3), "a int"), (b"]", "a list"), (b"}", "a dict of nothing"), (dict_of({"a": b"N"}), "a dict of 'a'")],
)
def test_no_state_dict(tmp_path: Path, form: str, value: bytes, found: str) -> None:
    with pytest.raises(CheckpointError, match=rf"holds no state dict.*; it is {found}"):
        files.write(tmp_path / "w.bin", form, value, {})
        TorchFile(tmp_path / "w.bin")


def test_names_that_are_not_text(tmp_path: Path, form: str) -> None:
    with pytest.raises(CheckpointError, match="a tensor's name is 3, not text"):
        opened(tmp_path, form, b"}" + number(3) + PLAIN + b"s")


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04", b"\x80\x02", b"<html>not found</html>"])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.bin"):
        TorchFile(tmp_path / "w.bin")
    with pytest.raises(CheckpointError, match=r"none\.bin: cannot be read"):
        TorchFile(tmp_path / "none.bin")


def test_truncated_at_every_byte(tmp_path: Path, form: str) -> None:
    files.save(tmp_path / "whole.bin", form, ARRAYS)
    data = (tmp_path / "whole.bin").read_bytes()
    for length in range(len(data)):
        (tmp_path / "w.bin").write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"w\.bin"):
            TorchFile(tmp_path / "w.bin")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 2**16), st.integers(0, 255), st.sampled_from("=+-")), min_size=1, max_size=6
    )
)
def test_damage_anywhere_gives_an_error_or_arrays_as_declared(tmp_path: Path, form: str, edits: list) -> None:
    path = tmp_path / "w.bin"
    if not (tmp_path / "whole.bin").exists():
        files.save(tmp_path / "whole.bin", form, {**ARRAYS, "c": np.ones((3, 2), bool)})
    data = bytearray((tmp_path / "whole.bin").read_bytes())
    for place, byte, how in edits:
        place %= len(data)
        data[place : place + (how != "+")] = b"" if how == "-" else bytes([byte])
    path.write_bytes(data)
    try:
        source = TorchFile(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return
    for key, info in source.infos.items():
        array = source.read(key)
        assert (array.shape, array.dtype) == (info.shape, info.dtype)
        array.sum() if array.dtype != bool else array.any()
        assert source.read(key, (slice(0, 1),) * len(info.shape)).ndim == len(info.shape)


# Checkpoints


def test_a_checkpoint_of_one_file_and_of_shards(tmp_path: Path, form: str) -> None:
    files.save(tmp_path / "pytorch_model.bin", form, ARRAYS)
    check_weights(resolve(tmp_path))
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "pytorch_model.fp16.bin")
    check_weights(resolve(tmp_path, variant="fp16"))
    with pytest.raises(CheckpointError, match=r"other names \(subfolder=, variant=\): pytorch_model\.fp16\.bin"):
        resolve(tmp_path).weights()
    (tmp_path / "pytorch_model.fp16.bin").unlink()
    mapping = {}
    for number_, (key, array) in enumerate(ARRAYS.items(), 1):
        mapping[key] = f"pytorch_model-0000{number_}-of-00002.bin"
        files.save(tmp_path / mapping[key], form, {key: array})
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": mapping}))
    check_weights(resolve(tmp_path))
    index.write_text(json.dumps({"weight_map": {**mapping, "a": "model.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"refused: tensor 'a' lies in 'model.safetensors', which is no \.bin"):
        resolve(tmp_path).weights()
    index.write_text(json.dumps({"weight_map": {**mapping, "a": "../x.bin"}}))
    with pytest.raises(CheckpointError, match=r"leads out of the checkpoint's folder"):
        resolve(tmp_path).weights()


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", ARRAYS.items())
    (tmp_path / "pytorch_model.bin").write_bytes(b"unread")
    check_weights(resolve(tmp_path))
