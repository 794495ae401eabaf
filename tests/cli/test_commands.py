"""``jaxpipe generate``, ``chat`` and ``env``, and how commands fail."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import jaxpipe
from jaxpipe.cli import app
from jaxpipe.common.errors import CheckpointError

ROOT = Path(__file__).parents[2]


class Recorder:
    """A text-generation pipeline that notes its calls and answers with how many messages it saw."""

    tokenizer = SimpleNamespace()

    def __init__(self) -> None:
        self.made: dict = {}
        self.calls: list[dict] = []
        self.fail_with: BaseException | None = None

    def make(self, task, **arguments):
        self.made = {"task": task, **arguments}
        return self

    def __call__(self, inputs, **arguments):
        self.calls.append({"inputs": inputs, **arguments})
        if self.fail_with:
            error, self.fail_with = self.fail_with, None
            raise error
        if isinstance(inputs, str):
            return [{"generated_text": f"after {inputs}"}]
        return [{"generated_text": [*inputs, {"role": "assistant", "content": f"saw {len(inputs)}"}]}]


@pytest.fixture
def pipe(monkeypatch) -> Recorder:
    pipe = Recorder()
    monkeypatch.setattr("jaxpipe.pipelines.pipeline", pipe.make)
    return pipe


def invoke(*arguments: str, code: int = 0, stdin: str | None = None):
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def said(call: dict) -> list[str]:
    return [message["content"] for message in call["inputs"]]


def test_version():
    assert invoke("--version").stdout == f"jaxpipe {jaxpipe.__version__}\n"


def test_python_dash_m_and_a_quick_start():
    """Showing the version loads neither JAX nor the configuration's libraries."""
    code = (
        "import sys; from jaxpipe.cli import app\n"
        "app(['--version'], standalone_mode=False)\n"
        "print([name for name in ('jax', 'flax', 'numpy', 'pydantic', 'yaml', 'tokenizers') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in (["-m", "jaxpipe", "--version"], ["-c", code]):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"jaxpipe {jaxpipe.__version__}\n")
    assert done.stdout.endswith("[]\n")


def test_generate_is_greedy_unless_told(pipe):
    assert invoke("generate", "Once", "--model", "m", "--max-new-tokens", "5").stdout == "after Once\n"
    assert pipe.made == {"task": "text-generation", "model": "m", "dtype": "auto"}
    assert pipe.calls == [{"inputs": "Once", "return_full_text": False, "max_new_tokens": 5, "do_sample": False}]


def test_generate_samples_by_its_options(pipe):
    invoke("generate", "x", "--temperature", "0.5", "--top-k", "3", "--seed", "7", "--device-map", "auto")
    assert pipe.made == {"task": "text-generation", "model": None, "dtype": "auto", "device_map": "auto"}
    wanted = {"do_sample": True, "temperature": 0.5, "top_k": 3, "seed": 7}
    assert wanted.items() <= pipe.calls[0].items()
    invoke("generate", "x", "--sample")
    assert pipe.calls[1]["do_sample"] is True and "temperature" not in pipe.calls[1]


def test_a_device_map_may_be_an_ordinal_or_a_mesh(pipe):
    for text, value in (("0", 0), ("{tensor: 2, data: 4}", {"tensor": 2, "data": 4}), ("cpu:1", "cpu:1")):
        invoke("generate", "x", "--device-map", text)
        assert pipe.made["device_map"] == value
    assert "--device-map: is not valid YAML" in invoke("generate", "x", "--device-map", "{", code=1).stderr


def test_generate_reads_stdin_and_streams(pipe, monkeypatch):
    monkeypatch.setattr("jaxpipe.cli.chat._streamer", lambda pipe: "a streamer")
    assert invoke("generate", "-", "--stream", stdin="from a pipe").stdout == ""
    assert (pipe.calls[0]["inputs"], pipe.calls[0]["streamer"]) == ("from a pipe", "a streamer")


def test_chat_keeps_the_conversation(pipe, monkeypatch):
    monkeypatch.setattr("jaxpipe.cli.chat._streamer", lambda pipe: None)
    invoke("chat", "--system", "Be brief", stdin="one\n\ntwo\n/clear\nthree\n/exit\nnever\n")
    assert [said(call) for call in pipe.calls] == [
        ["Be brief", "one"],
        ["Be brief", "one", "saw 2", "two"],
        ["Be brief", "three"],
    ]


@pytest.mark.parametrize("error", [ValueError("the prompt is too long."), KeyboardInterrupt()])
def test_a_turn_that_fails_leaves_the_conversation_as_it_was(pipe, monkeypatch, error):
    monkeypatch.setattr("jaxpipe.cli.chat._streamer", lambda pipe: None)
    pipe.fail_with = error
    result = invoke("chat", stdin="one\ntwo\n")
    assert [said(call) for call in pipe.calls] == [["one"], ["two"]]
    assert ("too long. /clear" if isinstance(error, ValueError) else "stopped") in result.stderr


def test_a_seeded_chat_draws_one_sequence(pipe, monkeypatch):
    from jaxpipe.common.random import next_seed

    monkeypatch.setattr("jaxpipe.cli.chat._streamer", lambda pipe: None)
    monkeypatch.setattr("jaxpipe.common.random._sequence", None)
    drawn = []
    for _ in range(2):
        invoke("chat", "--seed", "4", "--sample", stdin="one\n")
        drawn.append([next_seed(), next_seed()])
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[0][1]
    assert "seed" not in pipe.calls[0]


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("model.bin is truncated"),
        KeyError("model.bin is truncated"),
        ValueError("model.bin is truncated"),
    ],
)
def test_what_a_user_can_mend_is_one_line(pipe, error):
    pipe.fail_with = error
    result = invoke("generate", "x", code=1)
    assert result.stderr == "jaxpipe: error: model.bin is truncated\n"


def test_a_traceback_on_request_and_for_bugs(pipe, monkeypatch):
    pipe.fail_with = ZeroDivisionError()
    assert isinstance(CliRunner().invoke(app, ["generate", "x"]).exception, ZeroDivisionError)
    monkeypatch.setenv("JAXPIPE_TRACEBACK", "1")
    pipe.fail_with = CheckpointError("m")
    assert isinstance(CliRunner().invoke(app, ["generate", "x"]).exception, CheckpointError)


def test_verbose_shows_the_log(pipe, monkeypatch):
    original = pipe.make

    def make(*arguments, **keywords):
        logging.getLogger("jaxpipe").info("loading")
        return original(*arguments, **keywords)

    monkeypatch.setattr("jaxpipe.pipelines.pipeline", make)
    assert "loading" not in invoke("generate", "x").stderr
    assert "jaxpipe: loading" in invoke("-v", "generate", "x").stderr


def test_env_says_what_a_report_needs(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=somewhere")
    monkeypatch.setenv("HF_TOKEN", "secret")
    facts = json.loads(invoke("env", "--json").stdout)
    assert facts["jaxpipe"] == jaxpipe.__version__
    assert facts["packages"]["jax"]
    assert len(facts["devices"]) == 8 and facts["devices"][0]["platform"] == "cpu"
    assert facts["variables"]["XLA_FLAGS"] == "--xla_dump_to=somewhere"
    text = invoke("env").stdout
    assert "secret" not in text + json.dumps(facts)
    assert f"jaxpipe            {jaxpipe.__version__}" in text and "device 7" in text


def test_env_tells_of_devices_that_do_not_start(monkeypatch):
    import jax

    def fails():
        raise RuntimeError("no TPU here")

    monkeypatch.setattr(jax, "devices", fails)
    assert "none: no TPU here" in invoke("env").stdout
