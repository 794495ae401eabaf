"""The ``jaxpipe`` logger, and messages that are given once a process."""

import functools
import logging

logger = logging.getLogger("jaxpipe")


@functools.lru_cache(maxsize=4096)
def info_once(message: str) -> None:
    """Logs a message at INFO, the first time that it is given."""
    logger.info(message)


@functools.lru_cache(maxsize=4096)
def warn_once(message: str) -> None:
    """Logs a message at WARNING, the first time that it is given."""
    logger.warning(message)
