import logging

import pytest


@pytest.fixture(autouse=True)
def _log_as_before():
    """The command sends the package's log to its own stderr; other tests read it elsewhere."""
    log = logging.getLogger("jaxpipe")
    handlers, level, propagate = list(log.handlers), log.level, log.propagate
    yield
    log.handlers[:] = handlers
    log.setLevel(level)
    log.propagate = propagate
