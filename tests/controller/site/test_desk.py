"""The site's desk: what it sends, what is believed, and what is on disk before it is acted upon."""

import json
from functools import cached_property

import pytest

from controller.config import load_block
from controller.core import law
from controller.core.model import NEVER_S, Contact, Running
from controller.site import waiting
from controller.site.desk import FLOOD_SHOWN_S, SiteDesk
from controller.site.outlook import HORIZON_S
from controller.store import Store
from protocols.mqtt import PAYLOAD_MAX_BYTES
from tests.core.blocks import SETTINGS, snapshot

UTC_S = 1_790_000_000.0
NOW_S = 5_000.0  # monotonic; has nothing to do with UTC
HEARTBEAT, EVENTS = "site/heartbeat", "openadr/events"
TIMEOUT_S = 5.0


class Desk:
    """A desk, what it published, and short ways to send. Reading the clock costs `read_s`, as work would."""

    def __init__(self, path) -> None:
        config = load_block(path)
        self.published, self.caps = [], []
        self.at_s, self.read_s = 0.0, 0.0
        self.store = Store(config.state_dir)
        self.desk = SiteDesk(
            config,
            self.store,
            clock=(self.now_s, lambda: UTC_S + self.at_s),
            on_change=self.published.append,
            on_caps=self.caps.append,
        )

    def now_s(self):
        self.at_s += self.read_s
        return NOW_S + self.at_s

    @property
    def site(self):
        return self.desk.site

    @property
    def contact(self):
        return self.desk.sources["openadr"].contact

    @property
    def alarms(self):
        return dict(self.desk.alarms(NOW_S + self.at_s))

    def beat(self, at_s=None):
        self.at_s = self.at_s if at_s is None else at_s
        self.desk.before_beat(NOW_S + self.at_s)

    def whole_beat(self, at_s):
        """What the service does: before the law, and after it."""
        self.beat(at_s)
        self.desk.after_beat(self.snapshot(), self.decision)

    def snapshot(self):
        return snapshot(NOW_S + self.at_s)._replace(now_utc_s=UTC_S + self.at_s)

    @cached_property
    def decision(self):
        return law.tick(SETTINGS, law.start(SETTINGS, NOW_S), self.snapshot())

    def refresh(self, running, ended, utc_s):
        self.desk.refresh(running, ended, utc_s)

    def send(self, topic, said, at_s=0.0, *, retained=False):
        self.at_s = at_s
        payload = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.desk.on_message(topic, payload, retained)
        return self.desk.signals[-1] if self.desk.signals else None

    def heartbeat(self, at_s, *, sent_s=None, retained=False, **fields):
        sent_s = at_s if sent_s is None else sent_s
        self.send(HEARTBEAT, {"sent_at": rfc_3339(sent_s)} | fields, at_s, retained=retained)

    def event(self, at_s=0.0, *, retained=False, operation="CREATE", **fields):
        said = {"objectType": "EVENT", "operation": operation, "object": event(**fields)}
        return self.send(EVENTS, said, at_s, retained=retained)

    @property
    def heard_s(self):
        return self.contact.heartbeat_at_s - NOW_S

    def close(self):
        self.desk.close()
        self.store.close()


def rfc_3339(at_s) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(UTC_S + at_s, UTC).isoformat()


def event(event_id="dr-1", limit_kw=9.5, starts_s=10.0, duration="PT10M", modified_s=0.0, **fields):
    return {
        "id": event_id,
        "modificationDateTime": rfc_3339(modified_s),
        "programID": "44",
        "intervalPeriod": {"start": rfc_3339(starts_s), "duration": duration},
        "payloadDescriptors": [{"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "KW"}],
        "intervals": [{"id": 0, "payloads": [{"type": "IMPORT_CAPACITY_LIMIT", "values": [limit_kw]}]}],
    } | fields


@pytest.fixture
def desk(block_with):
    it = Desk(block_with())
    yield it
    it.close()


def test_a_fresh_heartbeat_is_a_sign_of_life(desk):
    desk.heartbeat(0.0)
    assert desk.heard_s == 0.0
    assert desk.contact.plan_at_s == NEVER_S, "a bare heartbeat states no plan"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"retained": True}, "a broker's memory is no sign of life"),
        ({"sent_s": 0.0}, "repeated"),
        ({"sent_s": -10.0}, "late"),
    ],
)
def test_what_is_no_sign_of_life_is_refused_with_a_reason(desk, said, reason):
    desk.heartbeat(0.0)
    desk.heartbeat(1.0, **said)
    assert desk.heard_s == 0.0
    assert reason in desk.desk.signals[-1].reason


def test_the_two_wall_clocks_need_not_agree(desk):
    for at_s in (0.0, 1.0, 2.0):
        desk.heartbeat(at_s, sent_s=at_s - 3600.0)
    assert desk.heard_s == 2.0


def test_a_gush_from_a_thawed_broker_does_not_revive_a_dead_site(desk):
    """Heartbeats of the last half minute arrive at once: none of those older than the time-out counts."""
    desk.heartbeat(0.0)
    for sent_s in range(1, 30):
        desk.heartbeat(60.0, sent_s=float(sent_s))
    assert desk.heard_s == 0.0


def test_a_gush_is_no_stepped_clock_however_long_it_is(desk):
    """Thousands of old heartbeats, trickling in for some seconds."""
    desk.heartbeat(0.0)
    for number in range(2000):
        desk.heartbeat(5000.0 + 0.005 * number, sent_s=float(number + 1))
    assert desk.heard_s == 0.0


def test_after_a_gush_the_first_fresh_heartbeat_counts(desk):
    desk.heartbeat(0.0)
    for sent_s in range(1, 60):
        desk.heartbeat(60.0, sent_s=float(sent_s))
    desk.heartbeat(61.0)
    assert desk.heard_s == 61.0


def test_two_gushes_with_a_pause_between_are_no_stepped_clock(desk):
    desk.heartbeat(0.0)
    desk.heartbeat(60.0, sent_s=1.0)
    desk.heartbeat(100.0, sent_s=2.0)
    assert desk.heard_s == 0.0


@pytest.mark.parametrize("step_s", [-100.0, 100.0])
def test_a_stepped_clock_is_the_new_normal_after_a_while(desk, step_s):
    for at_s in range(5):
        desk.heartbeat(float(at_s))
    for at_s in range(5, 60):
        desk.heartbeat(float(at_s), sent_s=at_s + step_s)
    assert desk.heard_s == 59.0


def test_clocks_that_drift_apart_are_followed(desk):
    """Two seconds an hour, for a day; the heartbeats stay in time."""
    for minute in range(1440):
        desk.heartbeat(60.0 * minute, sent_s=60.0 * minute * (1.0 - 2.0 / 3600.0))
    assert desk.heard_s == 60.0 * 1439


def test_a_queue_that_grows_is_not_believed_without_bound(desk):
    """A bridge hands over four of five heartbeats a second; the site dies, its queue goes on."""
    for sent_s in range(600):
        desk.heartbeat(sent_s / 0.8, sent_s=float(sent_s))
    assert desk.heard_s < 60.0
    assert desk.heard_s - 0.8 * desk.heard_s <= TIMEOUT_S + 0.1


def test_late_heartbeats_among_timely_ones_are_no_stepped_clock(desk):
    for at_s in range(60):
        desk.heartbeat(float(at_s))
        desk.heartbeat(at_s + 0.5, sent_s=at_s - 29.5)
    desk.heartbeat(61.0, sent_s=31.01)
    assert desk.heard_s == 59.0


def test_a_message_that_breaks_the_program_is_refused_like_any_other(desk, monkeypatch):
    def broken(_payload):
        raise ZeroDivisionError

    monkeypatch.setattr("protocols.openadr.parse", broken)
    assert "a fault of this program" in desk.send(EVENTS, b"{}").reason
    assert desk.desk.counts["refused"] == 1


def test_a_heartbeat_with_a_known_plan_states_it(desk):
    desk.event()
    desk.heartbeat(3.0, event_ids=["dr-1"])
    assert desk.contact.plan_at_s == NOW_S + 3.0


def test_a_heartbeat_that_names_an_event_we_never_got_states_nothing_and_says_so(desk):
    desk.event()
    desk.heartbeat(3.0, event_ids=["dr-1", "dr-2"])
    assert desk.contact.plan_at_s == NOW_S
    assert "dr-2" in desk.alarms["plan openadr"]


def test_an_accepted_event_is_a_setpoint_and_a_statement(desk):
    signal = desk.event()
    (wish,) = desk.site.setpoints
    assert (wish.source, wish.id, wish.kind, wish.limit_w) == ("openadr", "dr-1/0", "limit", 9_500.0)
    assert (wish.starts_utc_s, wish.ends_utc_s) == (UTC_S + 10.0, UTC_S + 610.0)
    assert desk.contact.plan_at_s == NOW_S
    assert (signal.accepted, signal.sender) == (True, EVENTS)


def test_what_asks_for_no_power_is_kept_and_named_and_known_to_the_heartbeat_but_no_setpoint(desk):
    alert = {"id": 0, "payloads": [{"type": "ALERT_GRID_EMERGENCY", "values": ["be quick"]}]}
    assert desk.event(intervals=[alert]).reason == "accepted; it asks for no power: ALERT_GRID_EMERGENCY"
    assert desk.site.setpoints == ()
    desk.heartbeat(3.0, event_ids=["dr-1"])
    assert "plan openadr" not in desk.alarms


def test_a_retained_event_is_a_wish_and_no_sign_of_life(desk):
    desk.event(retained=True)
    assert len(desk.site.setpoints) == 1
    assert desk.contact.plan_at_s == NEVER_S


def test_a_refused_event_leaves_everything_as_it_was(desk):
    desk.event()
    before = desk.site
    signal = desk.event(1.0, limit_kw=-1, modified_s=1.0)
    assert not signal.accepted
    assert "is not a power" in signal.reason
    assert desk.site is before


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"\xff", b'{"objectType":"REPORT"}'])
def test_noise_is_refused_and_counted(desk, payload):
    assert not desk.send(EVENTS, payload).accepted
    assert not desk.send(HEARTBEAT, payload).accepted
    assert desk.desk.counts["refused"] == 2


def test_a_deleted_event_is_gone_and_that_is_a_statement(desk):
    desk.event()
    desk.event(5.0, operation="DELETE", modified_s=5.0)
    assert desk.site.setpoints == ()
    assert desk.contact.plan_at_s == NOW_S + 5.0


def test_what_is_accepted_is_on_disk_before_the_beat_that_acts_on_it(desk):
    desk.event()
    desk.beat(0.01)
    assert "dr-1" in desk.store.book_path.read_text()


def test_many_signals_between_two_beats_are_written_once(desk, monkeypatch):
    written = []
    monkeypatch.setattr(desk.store, "keep_book", written.append)
    for number in range(5):
        desk.event(event_id=f"dr-{number}")
    desk.beat(0.05)
    desk.beat(0.1)
    assert len(written) == 1


def test_after_a_kill_the_plan_is_still_there_and_the_site_is_not(desk, block_with):
    desk.event()
    desk.heartbeat(1.0)
    desk.beat()
    desk.store.close()
    again = Desk(block_with())
    again.refresh((), frozenset(), UTC_S + 2.0)
    assert again.site.setpoints == desk.site.setpoints
    assert again.contact == Contact()


def test_a_kept_book_that_cannot_be_read_does_not_stop_the_start(block_with):
    state_dir = load_block(block_with()).state_dir
    store = Store(state_dir)
    store.keep_book({"openadr": {"v": 9}})
    store.close()
    again = Desk(block_with())
    again.refresh((), frozenset(), UTC_S)
    assert again.site.setpoints == ()
    assert (state_dir / "book.json.unreadable").exists()


def test_a_window_is_over_when_the_law_says_so_and_not_before(desk):
    """The wall clock may be wrong about the end; the law's own clock is not."""
    desk.event()
    (wish,) = desk.site.setpoints
    running = (Running(wish, NOW_S + 600.0),)
    for step_s in (1e6, -7200.0):
        desk.refresh(running, frozenset(), UTC_S + step_s)
        assert desk.site.setpoints == (wish,)
    desk.refresh((), frozenset({wish}), UTC_S + 20.0)
    assert desk.site.setpoints == ()
    desk.refresh((), frozenset(), UTC_S + 20.0)
    assert desk.site.setpoints == (), "over is over"


def test_another_signal_drops_no_open_window_though_the_clock_was_set_back(desk):
    desk.event()
    (wish,) = desk.site.setpoints
    desk.refresh((Running(wish, NOW_S + 600.0),), frozenset(), UTC_S + 20.0)
    desk.event(-7200.0, event_id="dr-2", starts_s=-7000.0)
    assert wish in desk.site.setpoints
    desk.event(-7200.0, limit_kw=8.0, modified_s=1.0)
    assert {s.limit_w for s in desk.site.setpoints if s.id == "dr-1/0"} == {8_000.0}


def test_a_window_that_the_clock_calls_over_comes_back_when_the_clock_does(desk):
    """After a reboot the clock may be a day ahead until it is set."""
    desk.event()
    desk.refresh((), frozenset(), UTC_S + 86_400.0)
    assert desk.site.setpoints == ()
    desk.refresh((), frozenset(), UTC_S + 30.0)
    assert len(desk.site.setpoints) == 1


def test_far_windows_wait_in_the_book_until_they_come_within_reach(desk):
    desk.event(starts_s=HORIZON_S + 100.0)
    assert desk.site.setpoints == ()
    desk.refresh((), frozenset(), UTC_S + 200.0)
    assert len(desk.site.setpoints) == 1


def test_nothing_new_wakes_nobody(desk):
    desk.event()
    told = len(desk.published)
    desk.refresh((), frozenset(), UTC_S + 1.0)
    desk.send(EVENTS, b"{")
    assert len(desk.published) == told


def test_the_status_says_of_every_open_setpoint_whether_it_binds_and_what_it_yields_to(desk):
    from controller.core import law
    from controller.core.model import Setpoint, Site
    from tests.core.blocks import SETTINGS, UTC_0, good, snapshot

    def wish(name, limit_w, kind="limit", **fields):
        return Setpoint("openadr", name, kind, limit_w, UTC_0, UTC_0 + 60.0, **fields)

    wishes = (
        wish("a/0", 2000.0, priority=1),
        wish("b/0", 1500.0, priority=5),
        wish("c/0", 2200.0, "target"),
        Setpoint("openadr", "d/0", "limit", 1.0, UTC_0 + 50.0, UTC_0 + 60.0),
    )
    desk.desk.site = Site((Contact(1.0, 1.0),), wishes)
    seen = snapshot(1.0, meter=good(1500.0, 1.0), site=desk.desk.site)
    decision = law.tick(SETTINGS, law.start(SETTINGS, 0.9), seen)
    stands = {one["id"]: one["stands"] for one in desk.desk.told(1.0, decision)["setpoints"]}
    assert stands == {
        "a/0": "binds",
        "b/0": "yields to a/0, which has priority",
        "c/0": "above openadr a/0",
        "d/0": "",
    }


FLOOD = 10_000
LOOK_S = 0.0005  # what looking at one signal costs


@pytest.fixture
def flooded(desk):
    """Ten thousand versions of one event within a second, beats and heartbeats among them."""
    desk.heartbeat(0.0)
    desk.overruns = 0
    source = desk.desk.sources["openadr"]

    def overrun():
        desk.overruns += 1

    source.overrun = overrun
    desk.read_s = LOOK_S
    for number in range(FLOOD):
        at_s = number / FLOOD
        if number % 500 == 0:
            desk.whole_beat(at_s)
        if number % 1000 == 999:
            desk.heartbeat(at_s)
        desk.event(at_s, limit_kw=5.0 + number * 1e-4, modified_s=number * 1e-4)
    return desk


def settle(desk, at_s=1.0):
    """Beats until nothing waits."""
    for number in range(40):
        desk.whole_beat(at_s + 0.05 * number)


def test_of_a_flood_most_is_refused_unread_and_said_so(flooded):
    counts = flooded.desk.counts
    assert counts["refused"] > 0.9 * FLOOD
    assert counts["accepted"] * LOOK_S < 0.25, "no more than a share of the time"
    assert counts["accepted"] > 100, "and no less than it may"
    said = [one.reason for one in flooded.desk.signals if not one.accepted]
    assert all("flood: " in reason for reason in said)


def test_of_a_flood_the_newest_holds_in_the_end(flooded):
    settle(flooded)
    (wish,) = flooded.site.setpoints
    assert wish.limit_w == pytest.approx(5_000.0 + 0.1 * (FLOOD - 1))
    flooded.beat()
    assert str(wish.limit_w) in flooded.store.book_path.read_text()


def test_heartbeats_are_heard_through_a_flood(flooded):
    """Each within a beat of its arrival: whoever floods us lives."""
    heard_s = flooded.heard_s
    assert heard_s > 0.9
    flooded.whole_beat(1.0)
    assert flooded.heard_s == pytest.approx(0.9999, abs=0.01)
    assert flooded.site.contacts[0].heartbeat_at_s >= NOW_S + 0.9 - 0.1


def test_a_flood_is_told_to_its_source_and_is_an_alarm_until_it_is_over(flooded):
    assert flooded.overruns == 9113, "with each that was dropped: a round may have ended in between"
    flooded.at_s = 1.0
    assert "openadr: more signals than may be looked at" in flooded.alarms["flood"]
    flooded.at_s = 1.1 + FLOOD_SHOWN_S
    assert "flood" not in flooded.alarms


def test_a_flood_of_heartbeats_costs_one_look_a_beat(desk):
    looked = []
    source = desk.desk.sources["openadr"]
    take = source.take
    source.take = lambda arrival: (looked.append(arrival), take(arrival))[1]
    desk.read_s = LOOK_S
    for number in range(FLOOD):
        if number % 500 == 0:
            desk.whole_beat(number / FLOOD)
        desk.heartbeat(number / FLOOD)
    desk.whole_beat(1.0)
    assert len(looked) * LOOK_S < 0.25
    assert desk.heard_s == pytest.approx(1.0, abs=0.01)


def test_a_flood_from_one_source_pushes_out_nothing_of_another(block_with):
    sources = [
        {"kind": "openadr_mqtt", "name": "loud", "topics": ["loud"], "heartbeat_topic": HEARTBEAT},
        {"kind": "openadr_mqtt", "name": "openadr", "topics": [EVENTS], "heartbeat_topic": HEARTBEAT},
    ]
    it = Desk(block_with({"site.sources": sources}))
    it.read_s = LOOK_S
    for number in range(1000):
        it.send("loud", b"{", number * 1e-5)
    it.event(0.01)
    for number in range(1000):
        it.send("loud", b"{", 0.02 + number * 1e-5)
    it.whole_beat(0.05)
    it.close()
    assert [wish.id for wish in it.site.setpoints] == ["dr-1/0"]


def test_a_whole_plan_that_comes_at_once_is_no_flood(desk):
    """After a reconnect a broker hands over all that it has retained."""
    desk.read_s = LOOK_S
    for number in range(waiting.SIGNALS_MAX // 2):
        desk.event(0.0, event_id=f"dr-{number}")
    settle(desk, 0.05)
    assert len(desk.site.setpoints) == waiting.SIGNALS_MAX // 2
    assert "flood" not in desk.alarms


def test_what_waits_is_bounded_in_bytes_as_well(desk):
    desk.read_s = LOOK_S
    large = b" " * (PAYLOAD_MAX_BYTES - 1)
    for _ in range(200):
        desk.send(EVENTS, large)
    assert desk.desk.counts["refused"] > 200 - waiting.BYTES_MAX // len(large) - 5
    assert "flood" in desk.alarms


def test_a_message_of_a_megabyte_is_refused_with_its_size(desk):
    desk.desk.on_oversized(EVENTS, 1024 * 1024)
    assert desk.desk.counts["refused"] == 1
    assert "1048576 bytes, 262144 at most; not read" in desk.desk.signals[-1].reason
    desk.desk.on_oversized("somebody/elses", 1024 * 1024)
    assert desk.desk.counts["refused"] == 1


def test_a_message_of_a_megabyte_is_no_signal_even_if_it_is_handed_over(desk):
    signal = desk.send(EVENTS, b"x" * 1024 * 1024)
    assert not signal.accepted
    assert "1048576 bytes; send 262144 at most" in signal.reason


def test_a_gush_of_signals_is_no_more_than_some_lines_in_the_log(desk, caplog):
    import structlog

    with structlog.testing.capture_logs() as lines:
        for number in range(200):
            desk.send(EVENTS, b"{", 0.001 * number)
    assert len(lines) == 20
    assert desk.desk.counts["refused"] == 200


@pytest.mark.parametrize(("operation", "states"), [("CREATE", True), ("DELETE", False)])
def test_only_what_is_about_an_event_of_ours_states_the_plan(desk, operation, states):
    desk.event(operation=operation)
    assert (desk.contact.plan_at_s == NOW_S) is states


def test_nothing_states_the_plan_while_an_event_is_known_to_be_missing(desk):
    desk.heartbeat(0.0, event_ids=["missing"])
    desk.event(1.0)
    assert desk.contact.plan_at_s == NEVER_S
    desk.event(2.0, event_id="missing")
    desk.heartbeat(3.0, event_ids=["missing", "dr-1"])
    assert desk.contact.plan_at_s == NOW_S + 3.0


def test_a_reason_as_long_as_its_message_is_cut(desk):
    signal = desk.send(EVENTS, json.dumps({"objectType": "x" * 50_000}).encode())
    assert len(signal.reason) < 400
    assert all(len(text) < 500 for text in desk.alarms.values())
