"""A VTN as a source: what a round of it proves."""

import json

import pytest

from controller.config import load_block, settings_of
from controller.core.model import NEVER_S, Contact
from controller.site.openadr import ROUND_DONE, OpenAdrVtn
from controller.site.policy import policy_of
from controller.site.source import Arrival
from tests.controller.site.test_desk import NOW_S, UTC_S, event

URL = "https://vtn.example/openadr3/3.1.0"


class Vtn:
    def __init__(self, block_with, folder, kept=None) -> None:
        (folder / "secret").write_text("s3cret")
        config = load_block(
            block_with(
                {
                    "site.sources": [
                        {
                            "kind": "openadr_vtn",
                            "name": "vtn",
                            "url": URL,
                            "client_id": "hall-a",
                            "client_secret_file": str(folder / "secret"),
                            "ven_name": "hall-a",
                        }
                    ]
                }
            )
        )
        (one,) = config.site.sources
        self.source = OpenAdrVtn(
            one, policy_of(config, one), settings_of(config), kept, lambda *_: None, lambda *_: None
        )

    def tell(self, at_s=0.0, operation="UPDATE", **fields):
        said = {"objectType": "EVENT", "operation": operation, "object": event(**fields)}
        return self._take(URL, json.dumps(said).encode(), at_s)

    def round_done(self, at_s):
        self._take(ROUND_DONE, b"", at_s)

    def _take(self, topic, payload, at_s):
        return self.source.take(Arrival(topic, payload, False, NOW_S + at_s, UTC_S + at_s))


@pytest.fixture
def vtn(block_with, tmp_path):
    return Vtn(block_with, tmp_path)


MEGAWATTS = {"payloadDescriptors": [{"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "MW"}]}


def test_a_whole_round_is_a_sign_of_life_and_a_statement(vtn):
    vtn.tell()
    vtn.round_done(1.0)
    assert vtn.source.contact == Contact(NOW_S + 1.0, NOW_S + 1.0)


def test_a_round_with_an_event_that_was_refused_states_no_plan(vtn):
    """Or a block would leave its failsafe limit for the full feed over a unit that it does not know."""
    assert "MW" in vtn.tell(**MEGAWATTS).reason
    vtn.round_done(1.0)
    assert vtn.source.contact == Contact(NOW_S + 1.0, NEVER_S)
    assert vtn.tell(2.0, modified_s=1.0).accepted
    vtn.round_done(3.0)
    assert vtn.source.contact.plan_at_s == NOW_S + 3.0


def test_events_whose_time_is_over_do_not_keep_a_round_from_stating_the_plan(vtn):
    assert "lapsed" in vtn.tell(starts_s=-9000.0).reason
    vtn.tell(event_id="dr-2", modified_s=5.0)
    assert "older than known" in vtn.tell(event_id="dr-2", modified_s=4.0).reason
    vtn.round_done(1.0)
    assert vtn.source.contact.plan_at_s == NOW_S + 1.0


def test_a_round_of_which_something_was_dropped_states_no_plan(vtn):
    vtn.tell()
    vtn.source.overrun()
    vtn.round_done(1.0)
    assert vtn.source.contact == Contact(NOW_S + 1.0, NEVER_S)
    vtn.round_done(2.0)
    assert vtn.source.contact.plan_at_s == NOW_S + 2.0


def test_what_every_round_tells_again_is_no_news(vtn):
    assert vtn.tell() is not None
    revision = vtn.source.revision
    assert vtn.tell(1.0) is None
    assert vtn.source.revision == revision, "nor is anything written for it"
    assert vtn.tell(event_id="mw", **MEGAWATTS) is not None
    assert vtn.tell(1.0, event_id="mw", **MEGAWATTS) is None, "the same refusal once"
    assert dict(vtn.source.alarms(NOW_S + 1.0)).keys() >= {"signal vtn"}


def test_events_and_reports_survive_a_restart(vtn, block_with, tmp_path):
    vtn.tell()
    again = Vtn(block_with, tmp_path, kept=json.loads(json.dumps(vtn.source.kept())))
    assert again.source.event_ids == {"dr-1"}
    assert again.source.contact == Contact()
