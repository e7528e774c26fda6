"""The log of runs in this process."""

import logging

import pytest


@pytest.fixture
def package_log(caplog):
    """Capture the package's log, which a run does not propagate to the root logger."""
    logger = logging.getLogger("convit_jax")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
