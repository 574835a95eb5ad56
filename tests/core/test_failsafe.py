"""The dead-man between site and block, as the table of EEBUS LPC 1.0.0 has it; numbers are its transitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core import failsafe
from controller.core.model import Contact, FailsafeSettings, Link, Mode

HOLD = FailsafeSettings(limit_w=2400.0, heartbeat_timeout_s=5.0)
RELEASE = FailsafeSettings(limit_w=2400.0, heartbeat_timeout_s=5.0, release_after_s=60.0)
INIT, CONTROLLED, LIMITED = Mode.INIT, Mode.CONTROLLED, Mode.LIMITED
FAILSAFE, AUTONOMOUS = Mode.FAILSAFE, Mode.AUTONOMOUS

ENTERED_S = 100.0  # the mode began here
BEFORE = ENTERED_S - 20.0


def after(mode, now_s, heartbeats_s=(), plan_s=-1e12, *, limited=False, settings=HOLD):
    """The mode at `now_s` when the site was heard at these moments, seconds after the mode was entered."""
    link = Link(mode, ENTERED_S, first_heartbeat_at_s=BEFORE)
    contact = Contact(heartbeat_at_s=BEFORE)
    for moment_s in sorted({*heartbeats_s, plan_s, now_s}):
        if moment_s < 0.0:
            continue
        heard_s = [s for s in heartbeats_s if s <= moment_s]
        contact = Contact(
            heartbeat_at_s=ENTERED_S + heard_s[-1] if heard_s else BEFORE,
            plan_at_s=ENTERED_S + plan_s if plan_s <= moment_s else -1e12,
        )
        link = failsafe.step(settings, link, contact, ENTERED_S + moment_s, limited=limited)
        if link.mode is not mode:
            break
    return link.mode


@pytest.mark.parametrize(
    ("number", "mode", "situation", "expected"),
    [
        ("1", INIT, {"now_s": 2, "heartbeats_s": [1], "plan_s": 2}, CONTROLLED),
        ("2", INIT, {"now_s": 2, "heartbeats_s": [1], "plan_s": 2, "limited": True}, LIMITED),
        ("2", INIT, {"now_s": 1, "heartbeats_s": [1], "plan_s": 1, "limited": True}, LIMITED),
        ("3", INIT, {"now_s": 60, "settings": RELEASE}, AUTONOMOUS),
        ("3 only if asked for", INIT, {"now_s": 1e9}, INIT),
        ("4", CONTROLLED, {"now_s": 1, "heartbeats_s": [1], "limited": True}, LIMITED),
        ("5", CONTROLLED, {"now_s": 6.1, "heartbeats_s": [1]}, FAILSAFE),
        ("5 not yet", CONTROLLED, {"now_s": 5.9, "heartbeats_s": [1]}, CONTROLLED),
        ("6", LIMITED, {"now_s": 1, "heartbeats_s": [1]}, CONTROLLED),
        ("7", LIMITED, {"now_s": 6.1, "heartbeats_s": [1], "limited": True}, FAILSAFE),
        ("8", FAILSAFE, {"now_s": 2, "heartbeats_s": [1], "plan_s": 2}, CONTROLLED),
        ("9", FAILSAFE, {"now_s": 2, "heartbeats_s": [1], "plan_s": 2, "limited": True}, LIMITED),
        ("10a", FAILSAFE, {"now_s": 60, "settings": RELEASE}, AUTONOMOUS),
        ("10a not yet", FAILSAFE, {"now_s": 59, "settings": RELEASE}, FAILSAFE),
        ("10a only if asked for", FAILSAFE, {"now_s": 1e9}, FAILSAFE),
        ("10b", FAILSAFE, {"now_s": 60, "heartbeats_s": [1, 30, 59], "settings": RELEASE}, AUTONOMOUS),
        ("10b only if asked for", FAILSAFE, {"now_s": 60, "heartbeats_s": [1, 30, 59]}, FAILSAFE),
        ("11", AUTONOMOUS, {"now_s": 2, "heartbeats_s": [1], "plan_s": 2}, CONTROLLED),
        ("12", AUTONOMOUS, {"now_s": 2, "heartbeats_s": [1], "plan_s": 2, "limited": True}, LIMITED),
        ("autonomy knows no time-out", AUTONOMOUS, {"now_s": 1e6, "settings": RELEASE}, AUTONOMOUS),
    ],
)
def test_every_transition_of_the_standard(number, mode, situation, expected):
    assert after(mode, **situation) is expected, number


@pytest.mark.parametrize("mode", [INIT, FAILSAFE, AUTONOMOUS])
@pytest.mark.parametrize(
    ("what", "situation"),
    [
        ("a heartbeat alone", {"now_s": 2, "heartbeats_s": [1, 2]}),
        ("a statement alone", {"now_s": 2, "plan_s": 1}),
        ("a statement before the heartbeat", {"now_s": 2, "heartbeats_s": [2], "plan_s": 1}),
        ("a statement from before the mode", {"now_s": 2, "heartbeats_s": [2], "plan_s": -5}),
        ("a statement long after the last heartbeat", {"now_s": 9, "heartbeats_s": [1], "plan_s": 9}),
    ],
)
@pytest.mark.parametrize("limited", [True, False])
def test_only_a_heartbeat_and_then_a_statement_lead_back(mode, what, situation, limited):
    assert after(mode, **situation, limited=limited) is mode, what


def test_the_failsafe_limit_holds_in_the_two_blind_modes_and_names_why():
    limits = {mode: failsafe.limit(HOLD, Link(mode, ENTERED_S)) for mode in Mode}
    assert {mode for mode, limit in limits.items() if limit} == {INIT, FAILSAFE}
    assert all(limits[mode].power_w == 2400.0 for mode in (INIT, FAILSAFE))
    assert limits[INIT].source != limits[FAILSAFE].source


def test_back_in_failsafe_the_old_heartbeat_and_plan_do_not_count():
    """Entering failsafe starts the sequence anew."""
    link, now_s = Link(LIMITED, 0.0, 0.0), 10.0
    link = failsafe.step(HOLD, link, Contact(heartbeat_at_s=1.0, plan_at_s=2.0), now_s, limited=True)
    assert link.mode is FAILSAFE
    link = failsafe.step(HOLD, link, Contact(heartbeat_at_s=10.5, plan_at_s=2.0), 10.5, limited=True)
    assert link.mode is FAILSAFE
    link = failsafe.step(HOLD, link, Contact(heartbeat_at_s=11.5, plan_at_s=11.0), 11.5, limited=True)
    assert link.mode is LIMITED


def test_in_failsafe_a_statement_that_came_before_the_heartbeat_does_not_count():
    link = failsafe.step(HOLD, Link(LIMITED, 0.0, 0.0), Contact(1.0, 2.0), 10.0, limited=True)
    assert link.mode is FAILSAFE
    link = failsafe.step(HOLD, link, Contact(1.0, plan_at_s=10.5), 10.5, limited=True)
    link = failsafe.step(HOLD, link, Contact(11.0, plan_at_s=10.5), 11.0, limited=True)
    assert link.mode is FAILSAFE


@given(
    st.lists(st.tuples(st.sampled_from("hp."), st.floats(0.0, 4.0), st.booleans()), max_size=60),
    st.sampled_from(list(Mode)),
)
def test_a_silent_site_ends_in_a_blind_mode_whatever_came_before(history, mode):
    """Without a release time, nobody is ever out of control and out of failsafe for longer than the time-out."""
    link, contact, now_s = Link(mode if mode is not AUTONOMOUS else INIT, 0.0), Contact(), 0.0
    for what, elapsed_s, limited in history:
        now_s += elapsed_s
        if what == "h":
            contact = Contact(now_s, contact.plan_at_s)
        if what == "p":
            contact = Contact(contact.heartbeat_at_s, now_s)
        link = failsafe.step(HOLD, link, contact, now_s, limited=limited)
        blind = now_s - contact.heartbeat_at_s > HOLD.heartbeat_timeout_s
        assert (link.mode in failsafe.BLIND) or not blind
        assert link.mode is not AUTONOMOUS


def test_a_statement_made_while_the_site_was_dead_does_not_count_when_a_heartbeat_comes_back():
    """Heartbeat, silence, a stray statement, silence, a bare heartbeat: that is no site in control."""
    link = Link(Mode.FAILSAFE, 0.0)
    for heartbeat_s, plan_s, now_s in (
        (110.0, -1.0, 110.0),
        (110.0, -1.0, 150.0),
        (110.0, 210.0, 210.0),
        (4000.0, 210.0, 4000.0),
    ):
        link = failsafe.step(HOLD, link, Contact(heartbeat_s, plan_s), now_s, limited=False)
        assert link.mode is Mode.FAILSAFE
    assert failsafe.step(HOLD, link, Contact(4001.0, 4001.0), 4001.0, limited=False).mode is Mode.CONTROLLED
