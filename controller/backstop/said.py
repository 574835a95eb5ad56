"""What the backstop says of itself, in one piece: for the law, for the alarms, for the status.

It goes from the process that talks to BMCs to the one that decides, and says nothing of hosts that are simply
watched. What is not proven is inf here and null on the way, because JSON has no infinity.
"""

import math
from collections.abc import Iterator
from typing import Any

import msgspec

from controller.backstop.phase import Proven


class NodeSaid(msgspec.Struct, frozen=True):
    """One host that is held, released, or in trouble.

    Attributes:
        node: its name.
        phase: of its guard.
        fault: why the last round did not do all it should; empty: it did.
        condition: what an operator should know; empty: nothing.
        proof: what its BMC has shown, of whatever age.
    """

    node: str
    phase: str
    fault: str
    condition: str
    proof: Proven | None


class Said(msgspec.Struct, frozen=True):
    """All of it. `faults`: alarms of no single host, or of one that is not configured any more."""

    nodes: tuple[NodeSaid, ...] = ()
    faults: tuple[tuple[str, str], ...] = ()

    def proven(self, now_s: float, age_max_s: float) -> tuple[Proven, ...]:
        """Upper bounds that BMCs have shown, none older than `age_max_s`.

        A node that is missing, and a GPU at inf, count at their maximum.
        """
        proofs = (one.proof for one in self.nodes)
        return tuple(one for one in proofs if one is not None and now_s - one.read_at_s <= age_max_s)

    def conditions(self) -> Iterator[tuple[str, str]]:
        """Alarms: key and text."""
        yield from self.faults
        for one in self.nodes:
            if one.condition:
                yield f"backstop {one.node}", one.condition

    def told(self, now_s: float) -> list[dict[str, Any]]:
        """For the status: every node that is not simply watched."""
        return [
            {
                "node": one.node,
                "phase": one.phase,
                "limit_w": None if one.proof is None else _sum_w(one.proof),
                "age_s": None if one.proof is None else round(now_s - one.proof.read_at_s, 1),
                "fault": one.fault,
            }
            for one in self.nodes
        ]


def _sum_w(proof: Proven) -> float | None:
    total_w = sum(proof.limit_w)
    return total_w if math.isfinite(total_w) else None


def encode(said: Said) -> bytes:
    """As a line."""
    return msgspec.json.encode(said) + b"\n"


def decode(line: bytes) -> Said:
    """Raises msgspec.DecodeError, of which ValidationError is one."""
    said = msgspec.json.decode(line, type=_SaidOnTheWay)
    return Said(tuple(one.believed() for one in said.nodes), said.faults)


class _ProofOnTheWay(msgspec.Struct, frozen=True, gc=False):
    node: str
    limit_w: tuple[float | None, ...]
    read_at_s: float


class _NodeOnTheWay(msgspec.Struct, frozen=True, gc=False):
    node: str
    phase: str
    fault: str
    condition: str
    proof: _ProofOnTheWay | None

    def believed(self) -> NodeSaid:
        proof = None
        if self.proof is not None:
            limits_w = tuple(math.inf if limit_w is None else limit_w for limit_w in self.proof.limit_w)
            proof = Proven(self.proof.node, limits_w, self.proof.read_at_s)
        return NodeSaid(self.node, self.phase, self.fault, self.condition, proof)


class _SaidOnTheWay(msgspec.Struct, frozen=True):
    nodes: tuple[_NodeOnTheWay, ...]
    faults: tuple[tuple[str, str], ...]
