"""Commands and options; what they do lies in the modules beside, imported when a command runs."""

import json
import sys
from typing import Annotated

import typer

from jaxpipe import __version__
from jaxpipe.cli.reporting import WRONG_USAGE, fail, log_to_stderr, reported

app = typer.Typer(
    name="jaxpipe",
    help="Run Hugging Face checkpoints on JAX.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Hub id, directory, .gguf file or package://NAME/path; default: a small one."),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
DeviceMap = Annotated[
    str | None, typer.Option(help="auto spreads the model over the devices; also 0, or '{tensor: 2, data: 4}'.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")]
Sample = Annotated[bool, typer.Option("--sample", help="Draw tokens at random; the options below turn it on too.")]
Temperature = Annotated[float | None, typer.Option(help="Above 1 more varied, below 1 less.")]
TopK = Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the likeliest tokens that make up this probability.")]
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed draws the same tokens.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jaxpipe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is decided and loaded.")] = False,
) -> None:
    log_to_stderr(verbose)


@app.command("run")
@reported
def run_command(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="E.g. call.max_new_tokens=8 batch_size=4.")
    ] = None,
) -> None:
    """Run a pipeline over the inputs of a configuration. Interrupted, the same command goes on where it stopped.

    inputs lists texts, messages or items, or names a file by its path:
    text, CSV with a header, JSONL or Parquet, by its suffix or inputs.format.
    inputs.column names the column that is the item;
    inputs.columns makes the item a mapping of several columns.

    output.path gets a JSON line a row: its index, from 0, and its output.
    output.errors gets the rows that fail, with their lines; remove one there to try its row again.
    A .run.json beside them tells which configuration and input they belong to.

    An output.path that ends in .parquet is written once all rows are tried.
    Until then, and after, the .rows.jsonl beside it has the JSON lines;
    an interrupted run goes on from there.
    """
    from jaxpipe.cli.config import load_config
    from jaxpipe.cli.run import run
    from jaxpipe.common.errors import ConfigError

    try:
        checked = load_config(config, overrides or ())
    except ConfigError as error:
        fail(str(error), WRONG_USAGE)
    raise typer.Exit(run(checked))


@app.command("generate")
@reported
def generate_command(
    prompt: Annotated[str, typer.Argument(help='Text to go on from; "-" reads it from stdin.')],
    model: Model = None,
    max_new_tokens: MaxNewTokens = 256,
    sample: Sample = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    revision: Revision = None,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Print tokens as they come; default: on a terminal.")
    ] = None,
) -> None:
    """Print what a model writes after a prompt."""
    from jaxpipe.cli.chat import generate, make_pipeline, sampling

    text = sys.stdin.read() if prompt == "-" else prompt
    call = {"max_new_tokens": max_new_tokens, **sampling(sample, temperature, top_k, top_p, seed)}
    pipe = make_pipeline(model, dtype, device_map, revision)
    generate(pipe, text, sys.stdout.isatty() if stream is None else stream, call)


@app.command("chat")
@reported
def chat_command(
    model: Model = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    sample: Sample = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    revision: Revision = None,
) -> None:
    """Talk with a model; answers are streamed. /clear forgets the conversation, /exit ends it."""
    from jaxpipe.cli.chat import converse, make_pipeline, sampling

    call = {"max_new_tokens": max_new_tokens, **sampling(sample, temperature, top_k, top_p, None)}
    if seed is not None:
        from jaxpipe.common.random import set_seed

        # A seed a conversation, not a turn: turns draw from one sequence.
        set_seed(seed)
    converse(make_pipeline(model, dtype, device_map, revision), system, call)


@app.command("models")
@reported
def models_command() -> None:
    """List the architectures that are supported, as a Markdown table."""
    from jaxpipe.models.table import architectures_table

    typer.echo(architectures_table())


@app.command("env")
@reported
def env_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show versions, devices and settings: what a bug report needs."""
    from jaxpipe.cli.environment import as_text, collect

    facts = collect()
    typer.echo(json.dumps(facts, indent=2) if as_json else as_text(facts))


def main() -> None:
    """The ``jaxpipe`` command."""
    app(prog_name="jaxpipe")
