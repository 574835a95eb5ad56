"""One property under fire: counts its inputs, keeps the dearest, saves what breaks it."""

import hashlib
import time
import traceback
from pathlib import Path
from typing import Final

from tests.fuzz.properties import MESSAGES, cost_s

FOLDER: Final = Path("build/fuzz")
TOLD_EVERY: Final = 500  # inputs; a fuzzer that ends its process at will leaves no last word


class Trial:
    """Call it with one input after the other; False: this one broke the property."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.began_s = time.monotonic()
        self.slowest_s = 0.0
        self.slowest = b""

    def __call__(self, payload: bytes) -> bool:
        self.count += 1
        try:
            took_s = cost_s(self.name, payload)
        except Exception:  # noqa: BLE001  whatever it is, it is what we look for
            traceback.print_exc()
            path = FOLDER / f"{self.name}-{hashlib.sha256(payload).hexdigest()[:12]}"
            path.write_bytes(payload)
            print(f"{self.name}: BROKEN; again: python -m tests.fuzz --only {self.name} --replay {path}")
            return False
        if took_s > self.slowest_s:
            self.slowest_s, self.slowest = took_s, payload
            (FOLDER / f"{self.name}.slowest").write_bytes(payload)
        if self.count % TOLD_EVERY == 0:
            self.report.write_text(str(self))
        return True

    def __str__(self) -> str:
        dearest = f"the dearest took {self.slowest_s * 1e3:.1f} ms of CPU ({len(self.slowest)} bytes)"
        heard, took_s = MESSAGES[self.name], time.monotonic() - self.began_s
        held = f"{self.count} inputs" if heard == self.count else f"{heard} messages in {self.count} inputs"
        return f"{self.name}: {held} held, {heard / took_s:.0f} a second; {dearest}"

    @property
    def report(self) -> Path:
        return FOLDER / f"{self.name}.told"
