"""The controller daemon with a stop-watch on its garbage collector; `python -m benchmarks.metered_daemon`.

Everything else is the daemon itself, as `powerblock run` starts it. Pauses count from the moment the daemon
has frozen what it built at start-up, and are written to a JSON file when it stops.
"""

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

from controller import service
from controller.config import load_block
from controller.endless import run_and_leave
from controller.logs import configure


class Pauses:
    """Worst pause and number of collections per generation."""

    def __init__(self) -> None:
        self.counts = [0, 0, 0]
        self.worst_s = [0.0, 0.0, 0.0]
        self._began_s = 0.0

    def hear(self, phase: str, collection: dict[str, Any]) -> None:
        if phase == "start":
            self._began_s = time.perf_counter()
            return
        generation = collection["generation"]
        self.counts[generation] += 1
        self.worst_s[generation] = max(self.worst_s[generation], time.perf_counter() - self._began_s)


async def live(block_path: Path, pauses_path: Path) -> int:
    pauses, freeze = Pauses(), gc.freeze

    def freeze_and_listen() -> None:
        freeze()
        gc.callbacks.append(pauses.hear)

    gc.freeze = freeze_and_listen
    status = await service.run(load_block(block_path))
    gc.callbacks.clear()
    worst_ms = [1e3 * worst_s for worst_s in pauses.worst_s]
    pauses_path.write_text(json.dumps({"counts": pauses.counts, "worst_ms": worst_ms}))  # noqa: ASYNC240  at the end
    return status


if __name__ == "__main__":
    configure("INFO", json=True)
    run_and_leave(live(Path(sys.argv[1]), Path(sys.argv[2])))
