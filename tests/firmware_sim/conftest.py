"""What the simulated grid leaves behind is cleaned up where it was made.

Its speakers are plain aiomqtt clients that are ended in the middle of handshakes. paho then leaves the TLS socket
to the collector, which closes it with a warning, in whichever test runs by then. The product's own link closes its
sockets, and is tested for it in tests/protocols.
"""

import gc
import warnings
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_to_the_collector():
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
