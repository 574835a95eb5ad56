"""The dead-man between one source of setpoints and the block: a pure table of modes.

Shape of EEBUS LPC 1.0.0 (Limitation of Power Consumption), in seconds instead of minutes. From the first
instruction on the block holds its failsafe limit (INIT). A heartbeat *followed by* a statement of the site
leads into its control: LIMITED while a limit is in force, CONTROLLED while none is. When heartbeats stop,
FAILSAFE holds the failsafe limit until a heartbeat *and then* a fresh statement arrive. A heartbeat alone
changes nothing, and a lost connection is no event at all: only the heartbeat's age counts.

Two deliberate differences from LPC. Setpoints whose window is still open stay in force in FAILSAFE:
forgetting them could only raise power. And release by time-out (AUTONOMOUS) happens only where the
settings ask for it: a block that opens up while its site is blind is the hazard.

Every watched source has a machine of its own. Each blind one holds its failsafe limit, whatever the others
say.
"""

from collections.abc import Iterable
from enum import Enum, auto

from controller.core.model import Contact, FailsafeSettings, Limit, Link, Mode


class Event(Enum):
    LIMITED = auto()  # the site lives, and a limit is in force
    UNLIMITED = auto()  # the site lives, and wants none
    LOST = auto()  # no heartbeat for too long
    RELEASED = auto()  # failsafe held for as long as the settings ask
    NOTHING = auto()


TRANSITIONS = {
    (Mode.INIT, Event.UNLIMITED): Mode.CONTROLLED,
    (Mode.INIT, Event.LIMITED): Mode.LIMITED,
    (Mode.INIT, Event.RELEASED): Mode.AUTONOMOUS,
    (Mode.CONTROLLED, Event.LIMITED): Mode.LIMITED,
    (Mode.CONTROLLED, Event.LOST): Mode.FAILSAFE,
    (Mode.LIMITED, Event.UNLIMITED): Mode.CONTROLLED,
    (Mode.LIMITED, Event.LOST): Mode.FAILSAFE,
    (Mode.FAILSAFE, Event.UNLIMITED): Mode.CONTROLLED,
    (Mode.FAILSAFE, Event.LIMITED): Mode.LIMITED,
    (Mode.FAILSAFE, Event.RELEASED): Mode.AUTONOMOUS,
    (Mode.AUTONOMOUS, Event.UNLIMITED): Mode.CONTROLLED,
    (Mode.AUTONOMOUS, Event.LIMITED): Mode.LIMITED,
}
"""Anything not named here leaves the mode as it is."""

UNDER_CONTROL = (Mode.CONTROLLED, Mode.LIMITED)
BLIND = (Mode.INIT, Mode.FAILSAFE)
WORST_FIRST = (Mode.FAILSAFE, Mode.INIT, Mode.LIMITED, Mode.AUTONOMOUS, Mode.CONTROLLED)


def step(settings: FailsafeSettings, link: Link, contact: Contact, now_s: float, *, limited: bool) -> Link:
    """The machine's next state; `limited`: a setpoint of the source is in force at this moment."""
    alive = now_s - contact.heartbeat_at_s <= settings.heartbeat_timeout_s
    link = _heard(link, contact, alive=alive)
    event = _event(settings, link, contact, now_s, alive=alive, limited=limited)
    mode = TRANSITIONS.get((link.mode, event), link.mode)
    return link if mode is link.mode else Link(mode, entered_at_s=now_s)


def _heard(link: Link, contact: Contact, *, alive: bool) -> Link:
    """Remember the first heartbeat of an unbroken row in this mode: only what follows it counts."""
    known = link.entered_at_s <= link.first_heartbeat_at_s
    if link.mode in UNDER_CONTROL or alive == known:
        return link
    if alive and contact.heartbeat_at_s >= link.entered_at_s:
        return Link(link.mode, link.entered_at_s, contact.heartbeat_at_s)
    return Link(link.mode, link.entered_at_s)


def _event(
    settings: FailsafeSettings, link: Link, contact: Contact, now_s: float, *, alive: bool, limited: bool
) -> Event:
    wish = Event.LIMITED if limited else Event.UNLIMITED
    if link.mode in UNDER_CONTROL:
        return wish if alive else Event.LOST
    if link.entered_at_s <= link.first_heartbeat_at_s <= contact.plan_at_s:
        return wish
    held_s = now_s - link.entered_at_s
    if settings.release_after_s is not None and held_s >= settings.release_after_s:
        return Event.RELEASED
    return Event.NOTHING


def limit(settings: FailsafeSettings, link: Link) -> Limit | None:
    if link.mode not in BLIND:
        return None
    why = "not heard yet" if link.mode is Mode.INIT else "heartbeat lost"
    return Limit(settings.limit_w, f"failsafe: {settings.source} {why}")


def worst(links: Iterable[Link]) -> Mode:
    """The block's mode; without a watched source nobody ever was in control."""
    return min((link.mode for link in links), key=WORST_FIRST.index, default=Mode.INIT)
