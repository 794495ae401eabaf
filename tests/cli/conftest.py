import logging

import pytest

from tests.cli.fake import Factory


@pytest.fixture(autouse=True)
def _log_as_before():
    """The command sends the package's log to its own stderr; other tests read it elsewhere."""
    log = logging.getLogger("jaxpipe")
    handlers, level, propagate = list(log.handlers), log.level, log.propagate
    yield
    log.handlers[:] = handlers
    log.setLevel(level)
    log.propagate = propagate


@pytest.fixture
def factory(monkeypatch) -> Factory:
    """Runs make their pipelines here."""
    factory = Factory()
    monkeypatch.setattr("jaxpipe.pipelines.pipeline", factory)
    return factory
