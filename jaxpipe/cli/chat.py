"""``jaxpipe generate`` and ``jaxpipe chat``: one prompt, or a conversation, in the terminal."""

import contextlib
import sys
from typing import Any

import typer

from jaxpipe.cli.display import answer_text
from jaxpipe.cli.reporting import message_of

HELP = "/clear forgets the conversation, /exit ends it (so does Ctrl-D); Ctrl-C stops an answer."


def make_pipeline(model: str | None, dtype: str, device_map: str | None, revision: str | None) -> Any:
    """The text-generation pipeline of a model; None is the default model. ``device_map`` is YAML."""
    from jaxpipe.cli.config import parse_value
    from jaxpipe.pipelines import pipeline

    placed = None if device_map is None else parse_value(device_map, "--device-map")
    given = {"device_map": placed, "revision": revision}
    return pipeline(
        "text-generation", model=model, dtype=dtype, **{key: value for key, value in given.items() if value is not None}
    )


def sampling(
    sample: bool, temperature: float | None, top_k: int | None, top_p: float | None, seed: int | None
) -> dict[str, Any]:
    """Call parameters of the sampling options; giving any of them but the seed turns sampling on."""
    chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    call: dict[str, Any] = {"do_sample": sample or bool(chosen), **chosen}
    return call if seed is None else {**call, "seed": seed}


def generate(pipe: Any, prompt: str, stream: bool, call: dict[str, Any]) -> None:
    """Prints what the model writes after a prompt, as it comes or at the end."""
    if not stream:
        typer.echo(answer_text(pipe(prompt, return_full_text=False, **call)))
        return
    pipe(prompt, streamer=_streamer(pipe), **call)


def converse(pipe: Any, system: str | None, call: dict[str, Any]) -> None:
    """Reads messages from stdin until it ends, and streams the answers; prompts appear only where a person types."""
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    person = sys.stdin.isatty()
    if person:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() line editing and a history)
        typer.echo(HELP, err=True)
    while True:
        try:
            said = input("> " if person else "").strip()
        except (EOFError, KeyboardInterrupt):
            if person:
                typer.echo("", err=True)
            return
        if said == "/exit":
            return
        if said == "/clear":
            messages = list(opening)
        elif said == "/help":
            typer.echo(HELP, err=True)
        elif said:
            messages = _turn(pipe, messages, said, call)


def _turn(pipe: Any, messages: list[dict[str, Any]], said: str, call: dict[str, Any]) -> list[dict[str, Any]]:
    """One message and its answer; returns the conversation, as it was where the answer failed or was stopped."""
    asked = [*messages, {"role": "user", "content": said}]
    try:
        output = pipe(asked, streamer=_streamer(pipe), **call)
    except KeyboardInterrupt:
        typer.echo("\n(stopped; the question is forgotten)", err=True)
        return messages
    except ValueError as error:
        typer.echo(f"jaxpipe: {message_of(error)} /clear starts anew.", err=True)
        return messages
    return [*asked, {"role": "assistant", "content": answer_text(output)}]


def _streamer(pipe: Any) -> Any:
    from jaxpipe.generation.streamers import TextStreamer

    return TextStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
