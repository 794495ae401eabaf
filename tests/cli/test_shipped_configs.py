"""The shipped configurations show what their first line says, with their real models (`make test` installs them)."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jaxpipe.cli import app
from jaxpipe.cli.config import load_config
from jaxpipe.cli.run import make_pipeline
from jaxpipe.pipelines import SUPPORTED_TASKS, check_task

CONFIGS = Path(__file__).parents[2] / "configs"
# Of the 8 devices of a test process, as on a machine with one: what compiles for 8 is tested in tests/multidevice.
ONE_DEVICE = "device_map=0"


def run(name: str, *overrides: str) -> str:
    result = CliRunner().invoke(app, ["run", str(CONFIGS / name), ONE_DEVICE, *overrides])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture(scope="module")
def sampling_pipe():
    call = "call={do_sample: true, max_new_tokens: 6}"
    return make_pipeline(load_config(CONFIGS / "quickstart.yaml", [ONE_DEVICE, call]))


def test_quickstart():
    assert run("quickstart.yaml") == "The capital of France is Paris.\n"


def test_embeddings():
    first, second = run("embeddings.yaml").splitlines()
    assert first.startswith("array of shape (384,): ")
    assert second.startswith("array of shape (384,): ")


def test_sentence_similarity():
    values = json.loads(run("sentence_similarity.yaml"))
    assert max(values) == values[1] == pytest.approx(0.60, abs=0.005)


def test_every_task_has_a_configuration():
    tasks = {check_task(load_config(path).task)[0] for path in CONFIGS.glob("*.yaml")}
    assert tasks == set(SUPPORTED_TASKS)


def test_a_resumed_row_is_sampled_as_in_one_go(sampling_pipe, monkeypatch, tmp_path):
    """Batch sizes differ and the cut falls inside a batch: only the row's number and the run's seed count."""
    monkeypatch.setattr("jaxpipe.cli.run.make_pipeline", lambda config: sampling_pipe)
    out = tmp_path / "out.jsonl"
    common = ["inputs={texts: [The sea, The sea, The sea]}", "seed=11", f"output.path={out}"]
    run("quickstart.yaml", *common, "batch_size=3")
    whole = out.read_bytes()
    texts = [line.split(b'"output"')[1] for line in whole.splitlines()]
    assert len(set(texts)) > 1, "rows with one prompt are drawn apart"
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:1]) + b'{"index": 1')
    run("quickstart.yaml", *common, "batch_size=2")
    assert out.read_bytes() == whole
