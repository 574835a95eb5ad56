"""The backstop: a host whose agent is silent is capped through its BMC, and counts as capped once it shows.

An agent that falls silent may be a cable, a dead process or a dead operating system with GPUs at full power.
Its own dead-man (the lease) covers the first; nothing on the host covers the others. So the law counts a
silent host at its maximum, and the block pays for that with power that others could use. The BMC is a second
road to the same GPUs: slow (seconds), but independent of everything that runs on the host.

    config  what an operator writes, and what is wrong with it
    phase   watching, holding, releasing: one table, pure
    found   what the limits were before, on disk before the first write
    node    one host: arm, hold, prove, release
    service all hosts, so many at a time
    said    what is known of them all, in one piece
    apart   all of that in a process of its own, lest the beat be late

    backstop = Backstop(config, {"n01": 8, ...}, hear, state_dir)
    await backstop.run()        one task of the daemon
    backstop.proven(now_s)      upper bounds for the law
    backstop.conditions()       alarms
"""

from controller.backstop.apart import Backstop
from controller.backstop.config import BackstopConfig, BmcEntry, backstop_errors
from controller.backstop.phase import Heard, Phase, Proven, obeys

__all__ = ["Backstop", "BackstopConfig", "BmcEntry", "Heard", "Phase", "Proven", "backstop_errors", "obeys"]
