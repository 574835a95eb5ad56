"""Reports on their way to the VTN: in order, a bounded number, none of which can block the others for ever.

What the VTN judges wrong stays wrong and is dropped at once; a fault of its own is tried again a few times;
a VTN that is not there costs no report at all, until newer ones need the room.
"""

import asyncio
from collections import deque
from typing import Final

from protocols.ven.client import VtnClient, retry_s
from protocols.ven.faults import Refusal, Unreachable, VtnFault

REPORTS_MAX: Final = 64  # waiting; the oldest makes room: of two reports the newer is worth more
REPORT_TRIES_MAX: Final = 5  # of one report that the VTN answers with a fault of its own
HAS_IT_ALREADY: Final = 409  # its first answer was lost on the way
MAY_PASS: Final = frozenset({401, 429})  # of the answers that blame us


class Outbox:
    """Reports that wait. `run` sends them.

    Attributes:
        fault: of the newest try, a sentence; empty: none.
        sent: taken by the VTN.
        lost: refused by the VTN, or displaced by newer ones.
    """

    def __init__(self, vtn: VtnClient) -> None:
        self.fault = ""
        self.sent = 0
        self.lost = 0
        self._vtn = vtn
        self._waiting: deque[bytes] = deque()
        self._wake = asyncio.Event()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def put(self, body: bytes) -> None:
        if len(self._waiting) >= REPORTS_MAX:
            self._waiting.popleft()
            self.lost += 1
        self._waiting.append(body)
        self._wake.set()

    async def run(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            while self._waiting:
                body = self._waiting[0]
                try:
                    await self._post(body)
                except VtnFault as fault:
                    failures += 1
                    self.fault = f"report: {fault}"
                    if _is_hopeless(fault, failures):
                        self.lost += self._drop(body)
                        failures = 0
                    else:
                        await asyncio.sleep(retry_s(failures))
                    continue
                self.fault, failures = "", 0
                self.sent += 1
                self._drop(body)
            await self._wake.wait()

    async def _post(self, body: bytes) -> None:
        try:
            await self._vtn.call("POST", "reports", body=body)
        except Refusal as refusal:
            if refusal.status != HAS_IT_ALREADY:
                raise

    def _drop(self, body: bytes) -> bool:
        """False: a newer one has displaced it meanwhile, and it was counted."""
        is_first = bool(self._waiting) and self._waiting[0] is body
        if is_first:
            self._waiting.popleft()
        return is_first


def _is_hopeless(fault: VtnFault, failures: int) -> bool:
    if isinstance(fault, Unreachable):
        return False
    is_ours = isinstance(fault, Refusal) and 400 <= fault.status < 500 and fault.status not in MAY_PASS
    return is_ours or failures >= REPORT_TRIES_MAX
