"""How commands fail: one clear line on stderr and an exit code, a traceback only for what nobody foresaw."""

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from jaxpipe.common.errors import CheckpointError, ConfigError, PlacementError, WeightsError

WRONG_USAGE = 2
INTERRUPTED = 130


def fail(message: str, code: int = 1) -> NoReturn:
    """Ends the command with a message on stderr."""
    typer.echo(f"jaxpipe: error: {message}", err=True)
    raise typer.Exit(code)


def message_of(error: BaseException) -> str:
    """What an exception says; KeyError would print its message in quotes, and some say nothing but their type."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text.strip() or type(error).__name__


def reported(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a command so that what a user can mend is one line; with JAXPIPE_TRACEBACK=1 the traceback comes too."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except (CheckpointError, WeightsError, ConfigError, PlacementError, ValueError, KeyError, OSError) as error:
            if os.environ.get("JAXPIPE_TRACEBACK") == "1":
                raise
            fail(message_of(error))

    return wrapped


def log_to_stderr(verbose: bool) -> None:
    """Sends the package's log to stderr: warnings, and with ``verbose`` what it decided."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("jaxpipe: %(message)s"))
    log = logging.getLogger("jaxpipe")
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO if verbose else logging.WARNING)
    log.propagate = False
