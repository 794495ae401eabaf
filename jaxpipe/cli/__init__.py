"""The ``jaxpipe`` command: run, generate, chat and env."""

from jaxpipe.cli.app import app, main

__all__ = ["app", "main"]
