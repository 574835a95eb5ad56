"""Since when a node is silent: what the board has heard of it, and what the backstop does about that."""

import itertools
from random import Random

import pytest

from controller.backstop.phase import Guard, Heard, Phase, step
from controller.board import Board
from controller.clock import now_s
from controller.config import load_block
from controller.core.model import NEVER_S
from controller.service import Controller
from controller.silence import LIVES_MAX_S, UNKNOWN_MAX_S
from protocols import agent_link
from protocols.agent_link import Gpu, Report

OURS, THEIRS, NOBODY = 1000, 2000, 0
NODE = "node-a"
AFTER_S, RELEASE_AFTER_S = 10.0, 30.0
AHEAD_S = 5e5  # the other controller's clock, of another host
GPU = Gpu(power_w=300.0, limit_w=300.0, enforced_w=300.0, min_w=200.0, max_w=700.0)


def report(at_s: float, start: int = OURS, *, sent_at_s: float | None = None, **fields) -> Report:
    """Of an agent that obeys `start` and has heard its newest order just now."""
    echo_s = at_s + (AHEAD_S if start == THEIRS else 0.0) if sent_at_s is None else sent_at_s
    said = {"mode": "leased", "echo_sent_at_s": echo_s, "echo_epoch": start, "epoch": start, "seq": 5}
    if start == NOBODY:
        said = {"mode": "waiting", "echo_sent_at_s": -1.0, "echo_epoch": 0, "epoch": 0, "seq": 0}
    return Report(
        **{"node": NODE, "boot": "b1", "at_s": at_s, "echo_age_s": 0.0, "gpus": (GPU,) * 8} | said | fields
    )


class Host:
    """One node as the controller hears it ten times a second, and the backstop's look at it, twice."""

    def __init__(self, settings, guard: Guard | None = None, look_after_s: float = 0.0) -> None:
        self.board, self.guard = Board(settings, OURS), guard or Guard()
        self.tenth, self.look_after_s = 0, look_after_s
        self.phases = [self.guard.phase]

    @property
    def now_s(self) -> float:
        return self.tenth / 10

    @property
    def silent_s(self) -> float:
        return self.now_s - max(self.board.heard(NODE)[0], 0.0)

    def lives(self, for_s: float, say=None) -> "Host":
        """`say(now_s)`: its report; None: nothing comes."""
        for _ in range(round(for_s * 10)):
            self.tenth += 1
            if say is not None and (said := say(self.now_s)) is not None:
                assert self.board.put_report(said, self.now_s) == ""
            if (self.tenth - round(self.look_after_s * 10)) % 5 == 0:
                self._look()
        return self

    def _look(self) -> None:
        """As the controller tells its backstop, but for orders that are not confirmed: there are none."""
        does = self.board.heard(NODE)[2] or self.board.is_led_by_another(NODE, self.now_s)
        self.guard = step(
            self.guard,
            Heard(self.silent_s, does),
            self.now_s,
            after_s=AFTER_S,
            release_after_s=RELEASE_AFTER_S,
            restored=True,
        )
        if self.guard.phase is not self.phases[-1]:
            self.phases.append(self.guard.phase)


@pytest.fixture(params=[0.0, 0.1, 0.2, 0.3, 0.4], ids="looked at {}".format)
def host(request, settings):
    return Host(settings, look_after_s=request.param)


def restarted(now_s: float) -> Report:
    return report(now_s, NOBODY, boot="b2")


def theirs(now_s: float) -> Report:
    return report(now_s, THEIRS)


def test_an_agent_that_is_restarted_was_silent_for_as_long_as_it_was(host):
    """Its first reports echo nothing: their age is unknown, and that it lives is not."""
    host.lives(60.0, report).lives(1.5)
    assert host.silent_s == pytest.approx(1.5)
    host.lives(0.4, restarted)
    assert host.silent_s == 0.0
    host.lives(20.0, lambda now_s: report(now_s, boot="b2"))
    assert host.phases == [Phase.WATCHING]


def test_one_report_that_echoes_nothing_makes_nobody_silent(host):
    host.lives(60.0, report)
    host.lives(0.1, lambda now_s: report(now_s, sent_at_s=-1.0))
    assert host.silent_s == 0.0
    host.lives(0.1, lambda now_s: report(now_s, sent_at_s=now_s - 3.0, boot="b2"))
    assert host.silent_s == pytest.approx(0.1), "an older moment takes nothing back"


def test_a_controller_that_another_has_taken_over_from_holds_none_of_its_hosts(host):
    """Nor when the other is ended in its turn: agents fall back, then obey this one again."""
    host.lives(60.0, report).lives(600.0, theirs)
    died_s = host.now_s
    host.lives(3.0, lambda now_s: report(now_s, THEIRS, sent_at_s=died_s + AHEAD_S))
    host.lives(7.0, lambda now_s: report(now_s, THEIRS, sent_at_s=died_s + AHEAD_S, mode="fallback"))
    host.lives(60.0, report)
    assert host.phases == [Phase.WATCHING]


def test_a_host_that_dies_is_held_whoever_led_it(host):
    host.lives(60.0, report).lives(60.0, theirs).lives(AFTER_S + 0.5)
    assert host.guard.phase is Phase.HOLDING
    assert host.silent_s >= AFTER_S


def test_a_host_that_obeys_another_controller_that_lives_is_not_kept_held(settings):
    host = Host(settings, Guard(Phase.HOLDING))
    host.lives(RELEASE_AFTER_S - 1.0, theirs)
    assert host.phases == [Phase.HOLDING]
    host.lives(3.0, theirs)
    assert host.phases == [Phase.HOLDING, Phase.RELEASING, Phase.WATCHING]


def test_a_controller_that_has_died_leads_nobody(settings):
    """Its lease may run on, and what its agent says may be told again: no new order is in it."""
    host = Host(settings).lives(20.0, theirs)
    died_s = host.now_s + AHEAD_S
    assert host.board.is_led_by_another(NODE, host.now_s)
    host.lives(LIVES_MAX_S + 0.2, lambda now_s: report(now_s, THEIRS, sent_at_s=died_s))
    assert not host.board.is_led_by_another(NODE, host.now_s)
    host.lives(0.1, theirs)
    assert host.board.is_led_by_another(NODE, host.now_s)
    host.lives(0.1, lambda now_s: report(now_s, THEIRS, mode="fallback"))
    assert not host.board.is_led_by_another(NODE, host.now_s), "nobody leads it"


def test_who_obeys_us_is_led_by_nobody_else(settings):
    host = Host(settings).lives(5.0, report)
    assert not host.board.is_led_by_another(NODE, host.now_s)
    host.lives(0.1, theirs)
    assert not host.board.is_led_by_another(NODE, host.now_s), "one order may be of a controller that is gone"
    host.lives(0.1, theirs)
    assert host.board.is_led_by_another(NODE, host.now_s)


def test_reports_that_lay_in_a_broker_do_not_make_a_dead_host_live_longer(settings):
    """Those that echo us tell how old they are: ten minutes' worth comes, a minute late."""
    host = Host(settings).lives(60.0, report).lives(60.0)
    for tenth in range(601, 701):
        host.board.put_report(report(tenth / 10), host.now_s)
    assert host.board.heard(NODE)[0] == pytest.approx(70.0)
    assert host.silent_s == pytest.approx(50.0)


def test_reports_of_unknown_age_are_signs_of_life_for_a_while_and_no_longer(settings):
    """Of a process that the board does not know they may be of any age; a live agent hears us within a second."""
    host = Host(settings).lives(60.0, report)
    host.lives(UNKNOWN_MAX_S, restarted)
    assert host.silent_s == pytest.approx(0.0, abs=0.11)
    host.lives(AFTER_S - 1.0, restarted)
    assert host.phases == [Phase.WATCHING]
    host.lives(2.0, restarted)
    assert host.phases == [Phase.WATCHING, Phase.HOLDING]
    host.lives(0.1, lambda now_s: report(now_s, boot="b2"))
    assert host.silent_s == 0.0, "and heard at once when it hears us"


def test_the_moment_of_a_node_never_goes_back_nor_ahead(settings):
    rng = Random(7)
    sayings = [
        report,
        theirs,
        lambda now_s: report(now_s, NOBODY),
        lambda now_s: report(now_s, sent_at_s=now_s - rng.uniform(0.0, 30.0)),
        lambda now_s: report(now_s, sent_at_s=now_s + 9.0),
        lambda now_s: report(now_s, sent_at_s=now_s + 0.004),
        lambda now_s: report(now_s, THEIRS, sent_at_s=4.0),
        lambda _: None,
    ]
    host, seen = Host(settings), [(NEVER_S, NEVER_S)]
    for _ in range(300):
        say = rng.choice(sayings)
        for _ in range(rng.choice((1, 3, 40))):
            host.lives(0.1, say)
            seen.append((host.board.heard(NODE)[0], host.now_s))
    assert all(before <= after <= now_s for (before, _), (after, now_s) in itertools.pairwise(seen))


@pytest.fixture
def controller(block_with, tmp_path):
    (tmp_path / "password").write_text("x")
    backstop = {
        "limit_w": 300,
        "user": "u",
        "password_file": str(tmp_path / "password"),
        "url_template": "https://{node}-bmc",
        "fingerprint": "ab" * 32,
    }
    made = Controller(load_block(block_with({"backstop": backstop})))
    yield made
    made.close()


async def test_the_backstop_is_told_of_silence_alone_and_of_whoever_leads(controller):
    """By the road that reports take."""

    def told(start: int) -> Heard:
        said = report(now_s(), start)
        controller._on_message(agent_link.report_topic("hall-a", NODE), agent_link.encode(said), False)
        return controller._backstop._hear(NODE)

    began_s = now_s()
    ours = controller._epoch
    for start, obeys in ((ours, True), (NOBODY, False), (ours - 1, False), (ours - 1, True)):
        heard = told(start)
        assert heard.obeys is obeys
        assert 0.0 <= heard.silent_s <= now_s() - began_s
    silent_s = now_s() - began_s
    assert controller._backstop._hear("node-b").silent_s >= silent_s, "nothing came of this one"
