"""A site to put devices on."""

import pytest

from controller.commissioning import scan, talk
from tests.controller.commissioning.devices_on_site import Site


@pytest.fixture
def site():
    with Site() as made:
        yield made


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    """Simulated devices need no rest, and answer at once or never."""
    monkeypatch.setattr(talk, "GAP_S", 0.002)
    monkeypatch.setattr(scan, "SILENT_WAIT_MAX_S", 0.4)
    monkeypatch.setattr(talk, "SILENT_WAIT_MAX_S", 0.4)
