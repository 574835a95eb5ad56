"""Grid frequency from a phasor measurement unit, or from whatever else measures it fast, as it comes.

    c37_118   frames of IEEE C37.118.2: bytes to frequency, checked
    reading   the same from a line of JSON
    moments   when a sample was measured, on our own clock, whatever clock its sender has
    udp, tcp  the wires; JSON over MQTT comes through a link that its owner has already

All of them end in a `Sample`, handed to a callback the moment it arrives. Nothing that comes from the wire
raises: what cannot be used is counted by its reason. Whoever can send here can make a block shed load: keep
these ports on a network of their own, and name the one address that is listened to.
"""

from protocols.phasor.c37_118 import Frames
from protocols.phasor.moments import Moments
from protocols.phasor.reading import JsonReadings, Refusals, Sample
from protocols.phasor.tcp import PhasorTcp
from protocols.phasor.udp import FrequencyUdp

__all__ = ["Frames", "FrequencyUdp", "JsonReadings", "Moments", "PhasorTcp", "Refusals", "Sample"]
