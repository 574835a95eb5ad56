"""OPC UA, the client's side: one `OpcUaDevice` for each server in the field.

client      the device: connect, beat, judge, report, start over
watch       its subscription
session     what one connection found: namespaces, nodes, limits
command     writes and method calls: permission, turns, and what keeps a command alive
nodes       one node written, read back, called
values      DataValue to value, number to Variant
security    policies, our certificates, users
trust       whose certificate is let in
fence       the library, with every wait bounded and every error named
"""

from protocols.opcua.client import OpcUaDevice
from protocols.opcua.security import UNSECURED, Security
from protocols.opcua.trust import TrustFolder
from protocols.opcua.watch import Sampling

__all__ = ["UNSECURED", "OpcUaDevice", "Sampling", "Security", "TrustFolder"]
