import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from jaxpipe.checkpoint import index
from jaxpipe.checkpoint.index import INDEX, is_plain_relative, open_index, parse_size, write_sharded
from jaxpipe.checkpoint.safetensors import LazyArray, SafetensorsFile, write_safetensors
from jaxpipe.common.errors import CheckpointError

ARRAYS = {f"w{i}": np.full((i + 1, 10), i, np.float32) for i in range(5)}  # 40, 80, 120, 160, 200 bytes


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def opened(directory: Path) -> dict[str, np.ndarray]:
    def locate(name: str) -> Path | None:
        return directory / name if (directory / name).is_file() else None

    source = open_index(directory / INDEX, locate)
    return {name: source.read(name) for name in source.infos}


def test_one_file_when_all_fits(tmp_path: Path) -> None:
    written = write_sharded(tmp_path / "new" / "folder", ARRAYS.items())
    assert [path.name for path in written] == ["model.safetensors"]
    loaded = safetensors.numpy.load_file(written[0])
    assert all(np.array_equal(loaded[name], array) for name, array in ARRAYS.items())


def test_shards_and_index_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    written = write_sharded(tmp_path, ARRAYS.items(), max_shard_size=250)
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [path.name for path in written] == [*shards, INDEX]
    content = json.loads((tmp_path / INDEX).read_text())
    assert content["metadata"] == {"total_size": 600}
    assert content["weight_map"] == dict(zip(ARRAYS, [shards[0]] * 3 + [shards[1], shards[2]], strict=True))
    loaded = opened(tmp_path)
    assert all(np.array_equal(loaded[name], array) for name, array in ARRAYS.items())


@pytest.mark.parametrize("limit", [1, 40, 100, 130, 200, 599, 600])
def test_the_split_is_that_of_huggingface_hub(tmp_path: Path, limit: int) -> None:
    from huggingface_hub import split_state_dict_into_shards_factory

    theirs = split_state_dict_into_shards_factory(
        ARRAYS,
        get_storage_size=lambda array: array.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    write_sharded(tmp_path, ARRAYS.items(), max_shard_size=limit)
    files = [name for name in names(tmp_path) if name.endswith(".safetensors")]
    assert {name: set(SafetensorsFile(tmp_path / name).infos) for name in files} == {
        name: set(held) for name, held in theirs.filename_to_tensors.items()
    }


@pytest.mark.parametrize(
    ("size", "expected"),
    [("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("2GiB", 2**31), ("10kb", 10_000), (123, 123)],
)
def test_sizes(size: int | str, expected: int) -> None:
    assert parse_size(size) == expected


@pytest.mark.parametrize("size", ["", "5", "GB", "-1GB", "5 bananas", 0, -3])
def test_wrong_sizes(tmp_path: Path, size: int | str) -> None:
    with pytest.raises(ValueError, match="max_shard_size="):
        write_sharded(tmp_path / "x", ARRAYS.items(), max_shard_size=size)
    assert names(tmp_path) == []


def test_a_later_save_removes_what_an_earlier_one_left(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "other.safetensors").write_text("kept")
    write_sharded(tmp_path, ARRAYS.items(), max_shard_size=250)
    (tmp_path / ".model.safetensors.0123456789ab.partial").write_text("of a killed save")
    write_sharded(tmp_path, ARRAYS.items())
    assert names(tmp_path) == ["config.json", "model.safetensors", "other.safetensors"]
    write_sharded(tmp_path, ARRAYS.items(), max_shard_size=250)
    write_sharded(tmp_path, ARRAYS.items(), max_shard_size=40)
    assert sum(name.startswith("model-") for name in names(tmp_path)) == 5
    assert "model.safetensors" not in names(tmp_path)
    assert len(opened(tmp_path)) == 5


@pytest.mark.parametrize("earlier", [250, "1GB"])
@pytest.mark.parametrize("later", [250, "1GB"])
def test_an_interrupted_save_leaves_the_earlier_one(tmp_path: Path, earlier: int | str, later: int | str) -> None:
    write_sharded(tmp_path, ARRAYS.items(), max_shard_size=earlier)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}

    def interrupt() -> np.ndarray:
        raise KeyboardInterrupt

    tensors = [*ARRAYS.items(), ("last", LazyArray((300,), np.dtype(np.int8), interrupt))]
    with pytest.raises(KeyboardInterrupt):
        write_sharded(tmp_path, tensors, max_shard_size=later)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_renames_that_fail_lose_nothing_and_never_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sharded(tmp_path, ARRAYS.items(), max_shard_size=250)
    replace, done = os.replace, []

    def fail_at_the_second(source: Path, target: Path) -> None:
        if done:
            raise OSError("no more")
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(index.os, "replace", fail_at_the_second)
    with pytest.raises(OSError, match="no more"):
        write_sharded(tmp_path, [(name, array + 1) for name, array in ARRAYS.items()], max_shard_size=250)
    monkeypatch.undo()
    assert INDEX not in names(tmp_path)  # old and new shards lie side by side: nothing may join them
    new = {}
    for name in names(tmp_path):
        if name.endswith(".partial") and "index" not in name:
            new |= safetensors.numpy.load_file(tmp_path / name)
    new |= safetensors.numpy.load_file(done[0])
    assert all(np.array_equal(new[name], array + 1) for name, array in ARRAYS.items())
    write_sharded(tmp_path, ARRAYS.items(), max_shard_size=250)
    assert not any(name.endswith(".partial") for name in names(tmp_path))


def test_names_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'w0' come twice"):
        write_sharded(tmp_path / "x", [*ARRAYS.items(), ("w0", np.ones(1))])
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../b", "..", ".", "", "a//b", "a\\..\\b", "C:x", "a\0b", "./a", "a/"]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    assert not is_plain_relative(name)
    outside = tmp_path / "x"
    write_safetensors(outside, [("w", np.ones(1))])
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": name}}))

    def locate(file: str) -> Path:
        raise AssertionError(f"{file} was asked for")

    with pytest.raises(CheckpointError, match=r"index\.json: refused: tensor 'w'"):
        open_index(folder / INDEX, locate)


def test_plain_names() -> None:
    assert is_plain_relative("model-00001-of-00002.safetensors")
    assert is_plain_relative("folder/..model.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object, not list"),
        ("{}", "no 'weight_map'"),
        ('{"weight_map": {}}', "no 'weight_map'"),
        ('{"weight_map": ["a"]}', "no 'weight_map'"),
        ('{"weight_map": {"w": 3}}', "tensor 'w' must be a name"),
        ('{"weight_map": {"w": "pytorch_model.bin"}}', "refused: tensor 'w'.*no .safetensors file"),
        ("\x00\xff", "not valid JSON"),
    ],
)
def test_malformed_indices(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / INDEX).write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path)


def test_missing_shard_is_named_with_its_weights(tmp_path: Path) -> None:
    write_sharded(tmp_path, ARRAYS.items(), max_shard_size=250)
    (tmp_path / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"'model-00001-of-00003.safetensors' is missing.*3 weights: w0, w1, w2"):
        opened(tmp_path)


def test_listed_weight_that_the_shard_lacks(tmp_path: Path) -> None:
    write_sharded(tmp_path, ARRAYS.items(), max_shard_size=250)
    content = json.loads((tmp_path / INDEX).read_text())
    content["weight_map"]["ghost"] = "model-00002-of-00003.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"00002-of-00003.safetensors: 1 weights: ghost should lie here"):
        opened(tmp_path)


def test_weight_in_two_shards(tmp_path: Path) -> None:
    for file in "ab":
        write_safetensors(tmp_path / f"{file}.safetensors", [(file, np.ones(1)), ("both", np.ones(1))])
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"'both' also lies in a.safetensors"):
        opened(tmp_path)
