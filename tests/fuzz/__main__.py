"""Bytes of every kind against every reader: `python -m tests.fuzz [--seconds 60] [--seed n] [--only ven]`.

`--count 1000000` goes on until so many messages were heard, however long it takes: of each reader, or with
`--only modbus-tcp` of that one. A reader that speaks in turns hears many messages per input.

Atheris where it is installed, else our own mutations. What breaks a property is saved below `build/fuzz`, the
exit status is 1, and `--only NAME --replay FILE` shows it again. Inputs that led somewhere new are kept there
as well, and are where the next run begins.
"""

import argparse
import importlib.util
import logging
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import structlog

from tests.fuzz.mutate import INPUT_MAX_BYTES, inputs
from tests.fuzz.properties import MESSAGES, PROPERTIES, cost_s
from tests.fuzz.seeds import SEEDS, words
from tests.fuzz.trial import FOLDER, Trial

MEMORY_MAX_MB = 2048
SILENT: Final = logging.CRITICAL  # what is refused a million times is no news


def mutate(name: str, seconds: float, seed: int, count: int = 0) -> bool:
    """For so long, or until so many messages were heard."""
    trial, until_s = Trial(name), time.monotonic() + seconds
    for payload in inputs(name, seed):
        if not trial(payload):
            return False
        if MESSAGES[name] >= count if count else time.monotonic() > until_s:
            break
    print(trial, flush=True)
    return True


def guided(name: str, seconds: float, seed: int) -> bool:
    corpus = FOLDER / f"{name}.corpus"
    corpus.mkdir(exist_ok=True)
    for number, payload in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(payload)
    dictionary = FOLDER / f"{name}.dict"
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in words(name))
    dictionary.write_text("".join(f'"{word}"\n' for word in escaped))
    options = [f"-max_total_time={max(1, round(seconds))}", f"-seed={seed}", f"-dict={dictionary}"]
    options += [f"-max_len={INPUT_MAX_BYTES}", f"-rss_limit_mb={MEMORY_MAX_MB}", "-verbosity=0"]
    options += [f"-artifact_prefix={FOLDER}/{name}-"]
    command = [sys.executable, "-m", "tests.fuzz.guided", name, *options, str(corpus)]
    log = FOLDER / f"{name}.log"
    with log.open("w") as stderr:
        held = subprocess.run(command, check=False, stderr=stderr).returncode == 0
    print(Trial(name).report.read_text() if held else log.read_text(), flush=True)
    return held


def main() -> int:
    asked = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    asked.add_argument("--seconds", type=float, default=60.0, help="in all, shared evenly")
    asked.add_argument("--count", type=int, default=0, help="messages to each reader, instead of seconds")
    asked.add_argument("--seed", type=int, help="what a run printed, to repeat it")
    asked.add_argument("--only", choices=PROPERTIES, help="one property")
    asked.add_argument("--own", action="store_true", help="our own mutations, though atheris is there")
    asked.add_argument("--replay", type=Path, help="one input from a file")
    said = asked.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(SILENT))
    names = [said.only] if said.only else list(PROPERTIES)
    if said.replay:
        took_s = max(cost_s(name, said.replay.read_bytes()) for name in names)
        print(f"holds, in {took_s * 1e3:.1f} ms of CPU")
        return 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    seed = random.SystemRandom().randrange(1, 2**31) if said.seed is None else said.seed
    own = said.own or said.count > 0
    own = own or importlib.util.find_spec("atheris") is None
    much = f"{said.count} messages each to" if said.count else f"{said.seconds:g} s over"
    print(f"{(mutate if own else guided).__name__}, seed {seed}, {much} {', '.join(names)}", flush=True)
    share_s = said.seconds / len(names)
    held = [mutate(name, share_s, seed, said.count) if own else guided(name, share_s, seed) for name in names]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
