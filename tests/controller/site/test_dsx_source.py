"""DSX Flex as a source: who may steer the block, and what a command becomes."""

import json
import uuid

import pytest

from controller.clock import now_s, now_utc_s
from controller.core import law
from controller.core.model import Contact
from controller.service import Controller
from controller.yaml_config import ConfigError
from protocols.dsx_flex import signing, topics
from protocols.mqtt import PAYLOAD_MAX_BYTES
from tests.controller.site.dsx_site import HALL, ISV, KEYS, NOW_S, UTC_S, Site, target, time_text
from tests.core.blocks import SETTINGS, snapshot


@pytest.fixture
def site(block_with, tmp_path):
    return Site(block_with, tmp_path)


def test_a_genuine_target_is_a_setpoint_a_sign_of_life_and_a_statement(site):
    signal = site.send(target(9.5, ends=600.0))
    assert (signal.accepted, signal.sender) == (True, f"//grid/v1/isv/{ISV}")
    (setpoint,) = site.setpoints()
    assert (setpoint.source, setpoint.kind, setpoint.limit_w) == ("dsx", "feed main-a", 9_500.0)
    assert (setpoint.starts_utc_s, setpoint.ends_utc_s) == (UTC_S, UTC_S + 600.0)
    assert site.source.contact == Contact(NOW_S, NOW_S)


STRANGER_TOPIC = "grid/v1/isv/stranger/loadtarget/set"


@pytest.mark.parametrize(
    ("what", "said", "reason"),
    [
        ("the wrong key", {"signer": "stranger"}, "kid 'stranger.pub' is unknown"),
        ("no signature", {"signer": ""}, "not signed"),
        ("another's topic", {"sender": "stranger", "signer": "stranger"}, "publish under your own name"),
        ("a message from long ago", {"at_s": 0.0, "time_utc_s": UTC_S - 3600.0}, "3600 s ago, 30 s at most"),
        ("a clock that is ahead", {"time_utc_s": UTC_S + 60.0}, "60 s ahead of us"),
    ],
)
def test_what_is_not_genuine_is_refused_with_a_reason_and_is_no_sign_of_life(site, what, said, reason):
    signal = site.send(target(1.0), **said)
    assert not signal.accepted, what
    assert reason in signal.reason
    assert site.setpoints() == []
    assert site.source.contact == Contact()
    assert dict(site.source.alarms(NOW_S))["signal dsx"].startswith("refused: ")


def test_a_stranger_on_a_topic_of_its_own_may_not_steer(site):
    payload = site.message({"targets": [target(1.0)]}, sender="stranger")
    signal = site.deliver(payload, topic=STRANGER_TOPIC)
    assert "stranger may not tell this block; those who may: isv-1" in signal.reason


def test_a_signature_of_another_algorithm_is_refused(site):
    said = json.loads(site.message({"targets": [target(1.0)]}))
    _, payload, signature = said["data"].split(".")
    none = "eyJhbGciOiJub25lIiwia2lkIjoiaXN2LTEucHViIn0"
    said["data"] = f"{none}.{payload}.{signature}"
    signal = site.deliver(json.dumps(said).encode())
    assert "algorithm 'none' refused" in signal.reason


def test_an_expired_command_is_refused(site):
    payload = site.message({"targets": [target(1.0)], "exp": UTC_S - 1.0})
    assert "expired" in site.deliver(payload).reason


def test_a_retained_command_from_yesterday_is_refused_by_its_age(site):
    payload = site.message({"targets": [target(1.0)]}, at_s=-86_400.0)
    assert "86400 s ago" in site.deliver(payload, retained=True).reason


def test_the_same_message_twice_is_not_even_a_sign_of_life(site):
    payload = site.message({"targets": [target(9.0)]})
    site.deliver(payload)
    assert site.deliver(payload, at_s=3.0) is None
    assert site.source.contact == Contact(NOW_S, NOW_S)


def test_a_repeat_of_a_standing_wish_is_a_sign_of_life_and_changes_nothing(site):
    thread = "0b9f6f43-6a4e-4c0e-9f7a-1c1d6a1f5e11"
    site.send(target(9.0), correlation_id=thread)
    before, revision = site.setpoints(), site.source.revision
    for at_s in (1.0, 2.0, 3.0):
        assert site.send(target(9.0), at_s=at_s, correlation_id=thread) is None
    assert (site.setpoints(3.0), site.source.revision) == (before, revision)
    assert site.source.contact == Contact(NOW_S + 3.0, NOW_S + 3.0)


def test_what_a_broker_had_kept_is_a_wish_and_no_sign_of_life(site):
    site.send(target(9.0), retained=True)
    assert len(site.setpoints()) == 1
    assert site.source.contact == Contact()


def test_what_a_bridge_delayed_is_a_wish_and_no_sign_of_life(block_with, tmp_path):
    site = Site(block_with, tmp_path, heartbeat_timeout_s=5.0)
    site.send(target(9.0))
    site.deliver(site.message({"targets": [target(8.0)]}, at_s=1.0), at_s=21.0)
    assert [one.limit_w for one in site.setpoints(21.0)] == [8_000.0]
    assert site.source.contact == Contact(NOW_S, NOW_S)


def test_the_latest_target_wins_and_null_reverts_to_the_default(site):
    site.send(target(9.0))
    site.send(target(12.0), at_s=1.0)
    assert [one.limit_w for one in site.setpoints(1.0)] == [12_000.0]
    site.send(target(None), at_s=2.0)
    assert site.setpoints(2.0) == []


def test_a_target_for_the_feeds_of_others_is_a_sign_of_life_and_neither_plan_nor_alarm_nor_line(site):
    site.send(target(9.0))
    before = site.setpoints()
    for at_s in (1.0, 2.0, 3.0):
        assert site.send(target(1.0, feed_tags=["hall-9"]), at_s=at_s) is None
    assert site.source.contact == Contact(NOW_S + 3.0, NOW_S)
    assert (site.setpoints(), dict(site.source.alarms(NOW_S + 3.0))) == (before, {})


def test_a_target_for_our_feeds_and_those_of_others_counts_for_ours(site):
    signal = site.send(target(9.0, feed_tags=["hall-9", "main-a"]))
    assert signal.accepted
    assert "not our feeds: hall-9" in signal.reason


def test_a_unit_that_the_contract_does_not_know_is_refused_and_alarmed(site):
    signal = site.send(target(9.0) | {"load_constraint": {"value": 9, "unit": "MW"}})
    assert "unit" in signal.reason
    assert "signal dsx" in dict(site.source.alarms(NOW_S))
    site.send(target(9.0))
    assert dict(site.source.alarms(NOW_S)) == {}


def test_a_message_that_was_overtaken_is_refused(site):
    late = site.message({"targets": [target(None)]}, at_s=1.0)
    site.send(target(8.0), at_s=2.0)
    assert site.deliver(late, at_s=3.0).reason == "older than known"
    assert [one.limit_w for one in site.setpoints(3.0)] == [8_000.0]


def recorded(site, *targets, at_s=0.0):
    """The signed body of a message that was delivered, as anyone on the bus may have recorded it."""
    payload = site.message({"targets": list(targets)}, at_s=at_s)
    site.deliver(payload, at_s=at_s)
    return json.loads(payload)["data"]


MONTHS_S = 90 * 86_400.0


@pytest.mark.parametrize("later_s", [5.0, MONTHS_S])
@pytest.mark.parametrize("after_restart", [False, True])
def test_a_recorded_release_in_a_fresh_envelope_lifts_no_limit(
    site, block_with, tmp_path, later_s, after_restart
):
    body = recorded(site, target(None))
    site.send(target(8.0), at_s=later_s)
    if after_restart:
        site = Site(block_with, tmp_path, kept=json.loads(json.dumps(site.source.kept())))
    signal = site.deliver(site.message(body, signer="", at_s=later_s + 1.0), at_s=later_s + 1.0)
    assert (signal.accepted, "this body was sent before" in signal.reason) == (False, True)
    assert [one.limit_w for one in site.setpoints(later_s + 1.0)] == [8_000.0]
    assert site.send(target(None), at_s=later_s + 2.0).accepted


def test_a_release_that_came_too_late_to_count_is_not_made_young_by_a_fresh_envelope(site):
    site.send(target(8.0))
    late = site.message({"targets": [target(None)]}, at_s=1.0)
    assert "send it anew" in site.deliver(late, at_s=60.0).reason
    again = site.message(json.loads(late)["data"], signer="", at_s=61.0)
    assert "this body was sent before" in site.deliver(again, at_s=61.0).reason


def test_an_operator_that_repeats_one_signed_body_is_heard_as_long_as_it_loosens_nothing(site):
    body = recorded(site, target(8.0))
    thread = site.setpoints()[0].id
    for at_s in (10.0, 3600.0, 7200.0):
        payload = site.message(body, signer="", at_s=at_s, correlation_id=thread)
        assert site.deliver(payload, at_s=at_s) is None
        assert site.source.contact == Contact(NOW_S + at_s, NOW_S + at_s)


def test_heartbeat_and_operator_are_judged_by_their_own_clocks(block_with, tmp_path):
    site = Site(block_with, tmp_path, heartbeat_topic="site/heartbeat", heartbeat_timeout_s=5.0)
    for second in range(40):
        sent = time_text(second - 10.0)  # the host of the heartbeat is ten seconds behind the operator's
        payload = json.dumps({"sent_at": sent}).encode()
        assert site.deliver(payload, at_s=float(second), topic="site/heartbeat") is None
        assert site.source.contact.heartbeat_at_s == NOW_S + second
        if second == 20:
            assert site.send(target(9.0), at_s=20.5).accepted


def test_unsigned_commands_count_only_where_the_site_says_so(block_with, tmp_path):
    site = Site(
        block_with, tmp_path, accept_unsigned=True, publishers={ISV: None}, signing_key=None, signing_kid=None
    )
    assert site.send(target(9.0), signer="").accepted


def test_the_book_survives_a_restart(site, block_with, tmp_path):
    site.send(target(9.0, starts=100.0, ends=200.0))
    again = Site(block_with, tmp_path, kept=json.loads(json.dumps(site.source.kept())))
    assert [one.limit_w for one in again.setpoints(1.0)] == [9_000.0]
    assert again.source.contact == Contact()


def test_a_publishers_renewed_key_counts_without_a_restart(site, tmp_path):
    renewed = signing.Signer(f"{ISV}.pub", KEYS["stranger"][0])

    def sent():
        return site.deliver(site.message(renewed.sign({"targets": [target(9.0)]}), signer=""))

    assert "signature does not match" in sent().reason
    (tmp_path / f"{ISV}.pub.pem").write_bytes(KEYS["stranger"][1] + b"\n")
    assert sent().accepted


def test_a_key_file_that_was_spoiled_changes_nothing(site, tmp_path):
    (tmp_path / f"{ISV}.pub.pem").write_bytes(b"no key at all")
    assert site.send(target(9.0)).accepted


def test_a_key_file_that_is_not_there_at_the_start_is_a_sentence(block_with, tmp_path):
    with pytest.raises(ConfigError, match=r"dsx: publishers.isv-1: .*check path and permissions"):
        Site(block_with, tmp_path, publishers={ISV: str(tmp_path / "absent.pem")})


def test_noise_is_refused(site):
    for payload in (b"", b"{", b"[]", b"\xff" * 100, b'{"specversion":"1.0"}', b"x" * PAYLOAD_MAX_BYTES):
        assert not site.deliver(payload).accepted


# --- the infrastructure's part -----------------------------------------------------------------------------


@pytest.fixture
def infra(block_with, tmp_path):
    return Site(
        block_with, tmp_path, infra_id="block-1-infra", advisers={HALL: str(tmp_path / f"{HALL}.pub.pem")}
    )


BREACH = "5b9f6f43-6a4e-4c0e-9f7a-1c1d6a1f5e22"
POWER = {"value": 20_000, "unit": "watt"}


def alert(*hints, status="active"):
    return {
        "feed_tag": "main-a",
        "status": status,
        "severity": "critical",
        "breach": {"breach_id": BREACH, "detected_at": "2026-11-21T18:00:00Z"}
        | ({"resolved_at": "2026-11-21T18:05:00Z"} if status == "resolved" else {}),
        "target": {"correlation_id": BREACH, "load_constraint": POWER},
        "measured_load": POWER,
        "infrastructure_actions": [],
        "shed_hints": list(hints),
    }


def hint(resource, kind="node", action="power_cap", watts=2_400):
    power = {"target_power": {"value": watts, "unit": "watt"}} if watts else {}
    return {"resource_id": resource, "resource_type": kind, "action": action, "priority": 1} | power


def advise(site, *hints, status="active", at_s=0.0, sender=HALL):
    payload = site.message(
        alert(*hints, status=status), sender=sender, kind=topics.POWER_BREACH_ALERT, role="agent", at_s=at_s
    )
    return site.deliver(payload, at_s=at_s, topic=f"grid/v1/dsx-flex-agent/{sender}/powerbreach")


def test_hints_for_our_nodes_become_caps_and_an_answer(infra):
    signal = advise(infra, hint("node-a"), hint("node-b/3", "gpu", watts=400), hint("elsewhere"))
    assert "2 hints" in signal.reason
    cap_w = infra.source.cap_w
    assert cap_w[:8].tolist() == [300.0] * 8
    assert cap_w[8:].tolist() == [1e12] * 3 + [400.0] + [1e12] * 4
    (answer,) = infra.wire.data("powerbreach/enforcement")
    assert (answer["breach_id"], answer["action"], answer["code"]) == (BREACH, "applied", "success")
    assert [one["resource_id"] for one in answer["results"]] == ["node-a", "node-b/3"]
    (topic, said, qos) = infra.wire.sent[-1]
    assert (topic, qos) == ("grid/v1/infra/block-1-infra/powerbreach/enforcement", 2)
    assert said["source"] == "//grid/v1/infra/block-1-infra"
    assert said["traceparent"].split("-")[1] == bytes(range(1, 17)).hex(), "the trace of the alert goes on"


def test_a_restart_lifts_no_cap(infra, block_with, tmp_path):
    advise(infra, hint("node-a"))
    kept = json.loads(json.dumps(infra.source.kept()))
    again = Site(
        block_with,
        tmp_path,
        kept=kept,
        infra_id="block-1-infra",
        advisers={HALL: str(tmp_path / f"{HALL}.pub.pem")},
    )
    assert again.source.cap_w[:8].tolist() == [300.0] * 8
    advise(again, status="resolved", at_s=5.0)
    assert (again.source.cap_w == 1e12).all()


def test_a_resolved_breach_takes_its_caps_back(infra):
    advise(infra, hint("node-a"))
    advise(infra, status="resolved", at_s=5.0)
    assert (infra.source.cap_w == 1e12).all()
    assert infra.wire.data("enforcement")[-1]["action"] == "reverted"


def test_what_cannot_be_done_is_skipped_and_said(infra):
    advise(infra, hint("node-a", action="suspend", watts=None), hint("node-b", action="throttle", watts=None))
    (answer,) = infra.wire.data("enforcement")
    assert [(one["resource_id"], one["code"]) for one in answer["results"]] == [
        ("node-a", "skipped"),
        ("node-b", "applied"),
    ]
    assert answer["code"] == "partial"
    assert infra.source.cap_w[8:].tolist() == [200.0] * 8, "throttled: to the least"


def test_hints_of_somebody_else_move_nothing(infra):
    assert "may not tell this block" in advise(infra, hint("node-a"), sender="stranger").reason
    assert infra.source.cap_w is None


def test_an_adviser_that_died_does_not_hold_gpus_down_for_ever_and_that_is_said(infra):
    advise(infra, hint("node-a"))
    pass_time(infra, 3600.0)
    assert (infra.source.cap_w[:8] == 300.0).all()
    revision = infra.source.revision
    pass_time(infra, 3601.0)
    assert (infra.source.cap_w == 1e12).all()
    assert infra.source.revision > revision, "it is on disk with the next beat"
    assert infra.wire.data("enforcement")[-1]["action"] == "reverted"
    (signal,) = infra.source.pending
    assert (signal.about, signal.reason) == (f"breach {BREACH}", "reverted: nothing was heard of it any more")


def test_a_restart_does_not_begin_the_hour_of_a_silent_adviser_anew(infra, block_with, tmp_path):
    advise(infra, hint("node-a"))
    for at_s, capped in ((3000.0, True), (3601.0, False)):
        infra = restarted(infra, block_with, tmp_path)
        pass_time(infra, at_s)
        assert bool(infra.source.cap_w[0] == 300.0) is capped


@pytest.mark.parametrize("after_restart", [False, True])
def test_an_alert_that_comes_after_its_end_caps_no_more(infra, block_with, tmp_path, after_restart):
    advise(infra, hint("node-a"))
    advise(infra, status="resolved", at_s=5.0)
    if after_restart:
        infra = restarted(infra, block_with, tmp_path)
    signal = advise(infra, hint("node-a"), at_s=6.0)
    assert (signal.accepted, "was resolved before" in signal.reason) == (False, True)
    assert (infra.source.cap_w == 1e12).all()


def test_an_alert_delivered_twice_is_answered_once(infra):
    payload = infra.message(alert(hint("node-a")), sender=HALL, kind=topics.POWER_BREACH_ALERT, role="agent")
    topic = f"grid/v1/dsx-flex-agent/{HALL}/powerbreach"
    assert infra.deliver(payload, topic=topic).accepted
    assert infra.deliver(payload, topic=topic, at_s=1.0) is None
    assert len(infra.wire.data("enforcement")) == 1


def restarted(infra, block_with, folder):
    kept = json.loads(json.dumps(infra.source.kept()))
    advisers = {HALL: str(folder / f"{HALL}.pub.pem")}
    return Site(block_with, folder, kept=kept, infra_id="block-1-infra", advisers=advisers)


def pass_time(site, at_s):
    seen = snapshot(NOW_S + at_s, now_utc_s=UTC_S + at_s)
    site.source.tell(seen, law.tick(SETTINGS, law.start(SETTINGS, NOW_S + at_s), seen))


# --- a critical breach calls a level of shedding ------------------------------------------------------------

LEVELS = {"levels": [{"name": "gentle", "kw": 10.0}, {"name": "deep", "kw": 8.6}], "critical_breach": "deep"}


@pytest.fixture
def agreed(block_with, tmp_path):
    """`agreed(kept=None)`: a block that sheds on a critical breach, and hears the hall and itself."""

    def made(kept=None):
        def with_levels(changes):
            return block_with(changes | {"shed": LEVELS})

        advisers = {name: str(tmp_path / f"{name}.pub.pem") for name in (HALL, "block-1")}
        return Site(with_levels, tmp_path, kept=kept, infra_id="block-1-infra", advisers=advisers)

    return made


def test_a_critical_breach_without_any_hint_calls_the_level_and_answers_nothing(agreed):
    site = agreed()
    revision = site.source.revision
    signal = advise(site)
    assert (signal.accepted, signal.reason) == (True, "a level of shedding is called")
    assert [(one.source, one.level) for one in site.source.sheds] == [("dsx: critical breach of main-a", 1)]
    assert site.source.revision > revision, "it is on disk with the next beat, and wakes one"
    assert site.wire.data("powerbreach/enforcement") == []
    assert advise(site, at_s=1.0) is None, "a repeat is no news"
    assert advise(site, status="resolved", at_s=2.0).reason == "calls no level of shedding any more"
    assert site.source.sheds == ()


def test_a_breach_with_hints_is_answered_and_calls_beside_that(agreed):
    site = agreed()
    signal = advise(site, hint("node-a"))
    assert signal.reason == "applied: success of 1 hints; a level of shedding is called"
    assert (site.source.cap_w[:8] == 300.0).all()


def test_our_own_alert_does_not_make_us_shed_deeper_nor_does_its_echo(agreed, monkeypatch):
    site = agreed()
    assert advise(site, sender="block-1") is None
    assert site.source.sheds == ()
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(BREACH))
    site.source.told._breach_id()
    assert advise(site, sender=HALL, at_s=1.0) is None
    assert site.source.sheds == ()


def test_a_call_of_a_breach_survives_a_restart_and_the_silence_of_its_adviser_ends_it(agreed):
    site = agreed()
    advise(site)
    again = agreed(json.loads(json.dumps(site.source.kept())))
    assert len(again.source.sheds) == 1
    pass_time(again, 10.0)
    assert len(again.source.sheds) == 1
    pass_time(again, 3611.0)
    assert again.source.sheds == ()
    assert again.wire.data("powerbreach/enforcement") == []
    assert [signal.reason for signal in again.source.pending] == [
        "reverted: nothing was heard of it any more"
    ]


def test_a_call_that_was_kept_is_none_where_the_level_is_not_agreed_any_more(agreed, block_with, tmp_path):
    site = agreed()
    advise(site)
    again = restarted(site, block_with, tmp_path)
    assert again.source.sheds == ()


async def test_a_critical_breach_wakes_the_controller_and_binds_in_its_next_beat(agreed):
    site = agreed()
    controller = Controller(site.config)
    try:
        utc_s = now_utc_s()
        payload = site.message(
            alert(), sender=HALL, kind=topics.POWER_BREACH_ALERT, role="agent", at_s=utc_s - UTC_S
        )
        controller._on_message(f"grid/v1/dsx-flex-agent/{HALL}/powerbreach", payload, False)
        assert controller._wished
        controller._beat()
        assert "dsx: critical breach of main-a" in [one.source for one in controller._board.sheds]
        kept = json.loads((site.config.state_dir / "book.json").read_text())["dsx"]["alerts"]["sheds"]
        assert [one["calls"] for one in kept] == [True], "a restart goes on shedding"
        assert "shed deep (dsx: critical breach of main-a)" in [
            limit.source
            for limit in law.tick(
                controller._settings, controller._state, controller._board.snapshot(now_s(), utc_s)
            ).limits
        ]
    finally:
        controller.close()
