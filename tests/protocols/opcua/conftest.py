"""What all tests of OPC UA need: quiet logs, and the packages of the independent peer."""

import logging

import pytest

from tests.node_peers import node_modules

__all__ = ["node_modules"]


@pytest.fixture(autouse=True)
def _quiet():
    """Dead peers are the subject here; the library's tracebacks about them are not."""
    logging.getLogger("asyncua").setLevel(logging.CRITICAL + 1)
    yield
    logging.getLogger("asyncua").setLevel(logging.NOTSET)
