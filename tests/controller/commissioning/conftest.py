"""A site to put devices on."""

import pytest

from tests.controller.commissioning.devices_on_site import Site


@pytest.fixture
def site():
    with Site() as made:
        yield made
