"""Modbus, both sides: the client that polls and commands devices, and the server that others read.

The client from the outside in: `link` decides what is asked when, `station` remembers what is known of a
unit, `orders` and `commands` what is written, `reads` the plan of what to ask, `transport` and `wire` the way
there, `frames` and `questions` the bytes. `identification` asks a device what it is. `replay` runs all of it
without a socket.
"""

from protocols.modbus.identification import read_identification
from protocols.modbus.link import ModbusLink
from protocols.modbus.reads import Span, plan_reads
from protocols.modbus.replay import Replay
from protocols.modbus.station import ModbusUnit
from protocols.modbus.transport import (
    RtuOverTcp,
    Serial,
    Tcp,
    Tls,
    Transport,
    address_complaints,
    transport_of,
)

__all__ = [
    "ModbusLink",
    "ModbusUnit",
    "Replay",
    "RtuOverTcp",
    "Serial",
    "Span",
    "Tcp",
    "Tls",
    "Transport",
    "address_complaints",
    "plan_reads",
    "read_identification",
    "transport_of",
]
