"""SunSpec: devices that say themselves what they are, and where.

`discover` makes a profile out of a device's own model chain, so that a meter, an inverter or a battery needs
no hand-written file; `profile: sunspec` in a configuration means this. `definitions` lays the Alliance's
published models out, `names` turns their words into the house's, `control` finds timers, heartbeats and the
switch between local and remote.
"""

from protocols.sunspec.chain import Model, Read, discover
from protocols.sunspec.definitions import definition, lay_out
from protocols.sunspec.points import points_of

__all__ = ["Model", "Read", "definition", "discover", "lay_out", "points_of"]
