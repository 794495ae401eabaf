"""The persistent compile cache: on by default, private, and the user's own where one is set."""

import functools
import os
from pathlib import Path

import jax

from jaxpipe.common.logging import logger

# "0", "off" or "false" here leaves the cache off; any other value is the directory.
VARIABLE = "JAXPIPE_COMPILE_CACHE"


def default_directory() -> Path:
    """Returns ``$XDG_CACHE_HOME/jaxpipe/xla``, or ``~/.cache/jaxpipe/xla``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxpipe" / "xla"


@functools.cache
def use_compile_cache() -> str | None:
    """Sets JAX's compilation cache unless the user did; returns the directory, or None where it is off.

    What is cached is code, so the directory is ours alone: made with mode 0700, and not used
    where it belongs to somebody else or others may write to it.
    """
    configured = jax.config.values.get("jax_compilation_cache_dir")  # of JAX_COMPILATION_CACHE_DIR, too
    if configured:
        return configured
    asked = os.environ.get(VARIABLE, "")
    if asked.lower() in ("0", "off", "false", "no"):
        return None
    directory = Path(asked) if asked else default_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = directory.stat()
    except OSError as error:
        logger.warning("The compile cache is off: %s", error)
        return None
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        logger.warning("The compile cache is off: others can write to %s; make it private (chmod 700).", directory)
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    return str(directory)
