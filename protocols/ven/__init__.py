"""An OpenADR 3.1 VEN: asks a VTN what it wants of this site, and hears of changes at once.

OpenADR 3.1 has two wires. HTTPS holds the truth: programmes, events, who we are. MQTT, whose broker and
topics the VTN names, tells of changes: without sequence number, heartbeat or promise of delivery. So:
* one *round* over HTTPS does it all and is all there is: enrol, read programmes, ask for broker and topics,
  read events. A round comes every `poll_s`, after every connect of the broker (what happened meanwhile was
  missed), when the token wants renewal, when asked for, and, after a fault, with jitter and back-off;
* between rounds, notifications pass through as they come. The receiver orders by modificationDateTime and
  drops duplicates: a round and a notification may tell the same thing, in either order. Of a programme a
  notification only asks for a round: programmes are read there, bounded;
* an event that is no longer listed is asked for by its id before it is reported as deleted: pages shift
  while they are read, and nobody may be released from a limit by a page boundary.
A VTN is somebody else's computer: every wait, body, page and list has a bound, and every fault of it is a
sentence in `status`. `run` ends only by cancellation or by a fault of the program.

    ven        the rounds, and the account of all this: `Ven`, `VenStatus`
    register   what is known of us, programmes and events; decides what is news and for whom (pure)
    notifier   the broker that the VTN names, one connection at a time
    outbox     reports on their way to the VTN
    client     HTTP: token, pages, bounds
    reading    what a VTN says, made ours (pure)
    faults     what goes wrong with it, in sentences (pure)
    settings   who we are, whom we ask

Sources: OpenADR 3.1.0 openapi and Definition.
"""

from protocols.ven.settings import VenConfigError, VenSettings
from protocols.ven.ven import Ven, VenStatus

__all__ = ["Ven", "VenConfigError", "VenSettings", "VenStatus"]
