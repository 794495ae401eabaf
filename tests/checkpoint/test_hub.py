import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from jaxpipe.checkpoint.index import INDEX, write_sharded
from jaxpipe.checkpoint.resolve import resolve
from jaxpipe.common.errors import CheckpointError
from tests.checkpoint.model_files import ARRAYS, check_weights

FIRST, SECOND = "1" * 40, "2" * 40


# The Hub, as a server on this machine


class Hub:
    """A Hub of one repository, ``user/repo``, whose branches can be moved."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.requests: list[tuple[str, str]] = []
        self.error: tuple[int, str] | None = None
        self.file_error: tuple[int, str] | None = None

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        path = path.partition("?")[0]
        self.requests.append((method, path))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.info("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        if parts[:3] != ["user", "repo", "resolve"]:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if self.file_error:
            return self.file_error[0], {"X-Error-Code": self.file_error[1]}, b""
        commit, name = parts[3], "/".join(parts[4:])
        if name not in self.commits.get(commit, {}):
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        etag = f"{commit}-{name.replace('/', '-')}"
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, self.commits[commit][name]

    def info(self, repo: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        if self.error:
            return self.error[0], {"X-Error-Code": self.error[1]}, b""
        if repo != "user/repo":
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        commit = self.branches.get(revision, revision)
        if commit not in self.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        siblings = [{"rfilename": name} for name in self.commits[commit]]
        return 200, {}, json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode()

    def downloads(self) -> list[str]:
        return [path.rpartition("/")[2] for method, path in self.requests if method == "GET" and "/resolve/" in path]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub
    from huggingface_hub import constants

    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            status, headers, body = state.answer(self.command, self.path)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD = reply

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.chdir(tmp_path)
    try:
        yield state
    finally:
        if close := getattr(huggingface_hub, "close_session", None):
            close()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def filled(hub: Hub, model: Path, tmp_path: Path) -> Hub:
    files = {name: (model / name).read_bytes() for name in ("config.json", "model.safetensors")}
    write_sharded(tmp_path / "shards", ARRAYS.items(), max_shard_size=30)
    files |= {f"sub/{path.name}": path.read_bytes() for path in (tmp_path / "shards").iterdir()}
    hub.commits[FIRST] = {**files, "huge.bin": b"not asked for"}
    hub.commits[SECOND] = {**files, "config.json": b'{"model_type": "gpt2"}'}
    hub.branches = {"main": FIRST, "v2": SECOND, "refs/pr/1": SECOND}
    return hub


def test_hub_files_come_from_one_commit_and_only_when_asked_for(filled: Hub) -> None:
    checkpoint = resolve("user/repo")
    assert checkpoint.revision == FIRST
    assert filled.downloads() == []
    filled.branches["main"] = SECOND  # the branch moves on
    assert checkpoint.read_json("config.json") == {"model_type": "llama"}
    check_weights(checkpoint)
    assert filled.downloads() == ["config.json", "model.safetensors"]
    assert checkpoint.file("tokenizer.json") is None
    assert not [path for _, path in filled.requests if "tokenizer.json" in path]
    assert all("/main/" not in path for _, path in filled.requests)
    later = resolve("user/repo")
    assert later.revision == SECOND and later.read_json("config.json") == {"model_type": "gpt2"}


def test_hub_revision_and_subfolder(filled: Hub) -> None:
    assert resolve("user/repo", revision="v2").revision == SECOND
    assert resolve("user/repo", revision=SECOND).revision == SECOND
    check_weights(resolve("user/repo", subfolder="sub"))
    assert sorted(filled.downloads()) == sorted([INDEX, *(f"model-0000{i}-of-00002.safetensors" for i in (1, 2))])


def test_hub_cache_serves_local_files_only(filled: Hub) -> None:
    check_weights(resolve("user/repo"))
    before = len(filled.requests)
    checkpoint = resolve("user/repo", local_files_only=True)
    assert checkpoint.revision == FIRST
    check_weights(checkpoint)
    assert checkpoint.file("config.json") is None  # was never asked for
    assert len(filled.requests) == before


def test_hub_cached_files_are_not_downloaded_again(filled: Hub) -> None:
    check_weights(resolve("user/repo"))
    check_weights(resolve("user/repo"))
    assert filled.downloads() == ["model.safetensors"]
    check_weights(resolve("user/repo", force_download=True))
    assert filled.downloads() == ["model.safetensors"] * 2


def test_hub_formats_that_are_not_read_are_not_downloaded(filled: Hub) -> None:
    filled.commits[FIRST] = {"config.json": b"{}", "tf_model.h5": b"x"}
    with pytest.raises(
        CheckpointError,
        match=r"'user/repo' has neither 'model.safetensors' nor 'pytorch_model.bin', only tf_model.h5: refused",
    ):
        resolve("user/repo").weights()
    assert filled.downloads() == []


def test_hub_index_that_leads_out(filled: Hub) -> None:
    filled.commits[FIRST] = {INDEX: json.dumps({"weight_map": {"w": "../../other/repo/model.safetensors"}}).encode()}
    with pytest.raises(CheckpointError, match="refused: tensor 'w'"):
        resolve("user/repo").weights()
    assert filled.downloads() == [INDEX]


def test_hub_missing_shard(filled: Hub) -> None:
    del filled.commits[FIRST]["sub/model-00002-of-00002.safetensors"]
    with pytest.raises(CheckpointError, match=r"'model-00002-of-00002.safetensors' is missing; .* 1 weights: "):
        resolve("user/repo", subfolder="sub").weights()


def test_hub_unknown_repository_says_both(filled: Hub) -> None:
    with pytest.raises(CheckpointError, match="'user/other' was found neither as a local path nor as a Hub repository"):
        resolve("user/other")


def test_hub_unknown_revision(filled: Hub) -> None:
    with pytest.raises(CheckpointError, match="no branch, tag or commit 'v9'"):
        resolve("user/repo", revision="v9")


@pytest.mark.parametrize("revision", ["../main", "", "a/../b"])
def test_hub_revision_that_leads_out(filled: Hub, revision: str) -> None:
    with pytest.raises(CheckpointError, match="is not the name of a branch"):
        resolve("user/repo", revision=revision)


def test_hub_gated_repository(filled: Hub) -> None:
    filled.error = (403, "GatedRepo")
    with pytest.raises(CheckpointError, match=r"gated: accept its terms.*token="):
        resolve("user/repo")


def test_hub_gated_files(filled: Hub) -> None:
    checkpoint = resolve("user/repo")
    filled.file_error = (403, "GatedRepo")
    with pytest.raises(CheckpointError, match=r"gated: accept its terms.*token="):
        checkpoint.file("config.json")


def test_hub_names_that_are_no_ids(filled: Hub) -> None:
    with pytest.raises(CheckpointError, match="neither an existing local path nor a valid Hub id"):
        resolve("user/re--po")


def test_no_network(filled: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"(?s)'user/repo'.*could not be reached.*local_files_only=True.*path"):
        resolve("user/repo", revision="v2")


def test_no_network_falls_back_on_the_cache_and_says_so(
    filled: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants

    check_weights(resolve("user/repo"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    checkpoint = resolve("user/repo")
    assert checkpoint.revision == FIRST
    assert "cannot be reached" in caplog.text and FIRST in caplog.text
    check_weights(checkpoint)
    with pytest.raises(CheckpointError, match="could not be reached"):
        resolve("user/repo", force_download=True)


def test_network_lost_between_two_files(filled: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    def lost(*_: object, **__: object) -> str:
        raise ConnectionError("lost")

    checkpoint = resolve("user/repo")
    monkeypatch.setattr(HfApi, "hf_hub_download", lost)
    with pytest.raises(
        CheckpointError, match=r"(?s)could not be reached for file 'model.safetensors'.*local_files_only"
    ):
        checkpoint.weights()


# The Hub's cache, made by hand


@pytest.fixture
def cache(tmp_path: Path, model: Path) -> Path:
    repo = tmp_path / "cache" / "models--user--repo"
    (repo / "refs" / "refs" / "pr").mkdir(parents=True)
    (repo / "refs" / "main").write_text(FIRST)
    (repo / "refs" / "refs" / "pr" / "1").write_text(FIRST)
    (repo / "refs" / "gone").write_text(SECOND)
    (repo / "blobs").mkdir()
    snapshot = repo / "snapshots" / FIRST
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (model / name).rename(repo / "blobs" / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    return tmp_path / "cache"


@pytest.mark.parametrize("revision", [None, "main", "refs/pr/1", FIRST])
def test_cached_repository(cache: Path, revision: str | None) -> None:
    checkpoint = resolve("user/repo", cache_dir=cache, local_files_only=True, revision=revision)
    assert checkpoint.revision == FIRST
    assert checkpoint.read_json("config.json") == {"model_type": "llama"}
    check_weights(checkpoint)


@pytest.mark.parametrize(("name", "revision"), [("user/other", None), ("user/repo", "gone"), ("user/repo", SECOND)])
def test_not_in_the_cache(cache: Path, name: str, revision: str | None) -> None:
    with pytest.raises(CheckpointError, match=f"'{name}' is no local path.*not in the cache.*path of a directory"):
        resolve(name, cache_dir=cache, local_files_only=True, revision=revision)


def test_offline_environment_uses_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_weights(resolve("user/repo", cache_dir=str(cache)))
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE=1"):
        resolve("user/other", cache_dir=cache)


def test_contradicting_options(cache: Path) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        resolve("user/repo", cache_dir=cache, local_files_only=True, force_download=True)
