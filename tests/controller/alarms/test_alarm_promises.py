"""What no sequence of conditions, orders, pauses and restarts may break."""

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.alarms.book import CHATTER_COUNT, CHATTER_S, FORGOTTEN, KIND_MAX
from controller.alarms.model import CAUGHT, UNSEEN
from controller.alarms.orders import ALL, Verb
from tests.controller.alarms.alarm_play import SHELVE_MAX_S, Play, entry

OWN = (
    entry("l", latching=True, group="g"),
    entry("d", on_delay_s=3.0, off_delay_s=3.0, group="g"),
    entry("m", latching=True, on_delay_s=2.0, off_delay_s=5.0, group="g"),
    entry("x", suppressible=False),
)
NAMES = ("a", "l", "d", "m", "x")
STEPS = st.tuples(
    st.just("step"), st.frozensets(st.sampled_from(NAMES)), st.sampled_from([0.25, 1.0, 7.0, 70.0])
)
ORDERS = st.tuples(
    st.just("order"),
    st.sampled_from(Verb),
    st.sampled_from((*NAMES, ALL)),
    st.sampled_from([1.0, 30.0, 600.0]),
)
RESTARTS = st.tuples(st.just("restart"), st.sampled_from([-1e6, 0.0, 20.0, 1e6]))
LIVES = st.lists(st.one_of(STEPS, STEPS, ORDERS, ORDERS, RESTARTS), min_size=8, max_size=40)


def do(play, deed):
    """One deed; what was told of it."""
    known = len(play.told)
    match deed:
        case ("step", keys, after_s):
            play.step(*sorted(keys), after_s=after_s)
        case ("order", verb, key, for_s):
            play.order(verb, key, for_s=for_s)
        case ("restart", off_s):
            play.restart(off_s=off_s)
    return play.told[known:]


def records(play, states):
    return {key for key, one in play.book.records.items() if one.state in states}


@given(LIVES)
@settings(deadline=None)
def test_only_a_person_makes_an_alarm_one_that_was_seen(life):
    play = Play(*OWN)
    for deed in life:
        before = records(play, UNSEEN)
        told = do(play, deed)
        lost = before - records(play, UNSEEN)
        assert lost <= {one.key for one in told if one.what == "acknowledge" and one.by}, deed


@given(LIVES)
@settings(deadline=None)
def test_a_latched_alarm_goes_by_a_reset_alone(life):
    play = Play(*OWN)
    for deed in life:
        before = records(play, CAUGHT)
        told = do(play, deed)
        gone = before - records(play, CAUGHT)
        assert gone <= {one.key for one in told if one.what in {"reset", "raised"}}, deed


@given(LIVES)
@settings(deadline=None)
def test_a_latching_alarm_that_was_up_is_never_normal_without_a_reset(life):
    play, up = Play(*OWN), set()
    for deed in life:
        told = do(play, deed)
        for one in told:
            if one.key in {"l", "m"} and one.what == "raised":
                up.add(one.key)
            if one.what == "reset":
                up.discard(one.key)
        assert not {key for key in up if play.book.records[key].state == "normal"}, deed


@given(LIVES, st.sampled_from(NAMES))
@settings(deadline=None)
def test_shelving_always_ends_and_nothing_active_hides_behind_it(life, key):
    play = Play(*OWN)
    for deed in life:
        do(play, deed)
    play.step(*NAMES, after_s=SHELVE_MAX_S)
    one = play.book.records[key]
    assert one.hidden is None or one.hidden.until_s is None, "only out of service has no end"
    play.step(*NAMES, after_s=10.0)
    assert play.book.records[key].is_active


@given(LIVES)
@settings(deadline=None)
def test_what_lasts_is_shown_as_active_whatever_was_done_to_it_before(life):
    play = Play(*OWN)
    for deed in life:
        do(play, deed)
    play.step(*NAMES).step(*NAMES, after_s=3.0)
    assert {key for key in NAMES if play.book.records[key].is_active} == set(NAMES)


@given(LIVES)
@settings(deadline=None)
def test_what_could_cost_equipment_is_never_hidden(life):
    play = Play(*OWN)
    for deed in life:
        do(play, deed)
        assert play.book.records.get("x") is None or play.book.records["x"].hidden is None


@given(LIVES)
@settings(deadline=None)
def test_every_change_of_state_is_told_with_its_old_and_its_new_one(life):
    play, states = Play(*OWN), {}
    for deed in life:
        for one in do(play, deed):
            assert one.was == states.get(one.key, "normal") or one.key == "all"
            states[one.key] = one.now
        if deed[0] != "restart":
            assert all(play.state(key) == states.get(key, "normal") for key in play.book.records)


@given(LIVES)
@settings(deadline=None)
def test_whoever_is_named_as_first_was_up_no_later_than_its_followers(life):
    play = Play(*OWN)
    for deed in life:
        do(play, deed)
        if deed[0] == "restart":
            continue
        for one in play.book.records.values():
            first = play.book.records.get(one.first_out)
            assert first is None or first.count > 0


@given(st.lists(st.booleans(), max_size=200))
@settings(deadline=None)
def test_no_alarm_rises_more_often_than_chatter_may(signal):
    play = Play()
    for holds in signal:
        play.step(*(("a",) if holds else ()), after_s=2.0)
    raised = [one.at_utc_s for one in play.told if one.what == "raised"]
    pairs = zip(raised, raised[CHATTER_COUNT:], strict=False)
    assert all(fourth - first >= CHATTER_S for first, fourth in pairs)


@given(st.lists(st.frozensets(st.integers(0, 3 * KIND_MAX), max_size=2 * KIND_MAX), max_size=8))
@settings(deadline=None, max_examples=50)
def test_a_flood_leaves_a_bounded_book_in_which_nothing_active_is_lost(floods):
    play = Play()
    for names in floods:
        before = {key for key, one in play.book.records.items() if one.is_active}
        known = len(play.told)
        play.step(*(f"report n{name}" for name in sorted(names)), after_s=3.0)
        assert len(play.book.records) <= KIND_MAX + 1
        assert before <= set(play.book.records)
        forgotten = [one for one in play.told[known:] if one.what == FORGOTTEN]
        assert all(one.was == "returned" for one in forgotten)
        listed = sum(f"report n{name}" in play.book.records for name in names)
        if listed < len(names):
            assert play.book.records["alarms report"].text.startswith(f"{len(names) - listed} more")
