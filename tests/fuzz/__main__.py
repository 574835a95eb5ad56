"""Bytes of every kind against every reader: `python -m tests.fuzz [--seconds 60] [--seed n] [--only ven]`.

Atheris where it is installed, else our own mutations. What breaks a property is saved below `build/fuzz`, the
exit status is 1, and `--only NAME --replay FILE` shows it again. Inputs that led somewhere new are kept there
as well, and are where the next run begins.
"""

import argparse
import importlib.util
import random
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.mutate import INPUT_MAX_BYTES, inputs
from tests.fuzz.properties import PROPERTIES, cost_s
from tests.fuzz.seeds import SEEDS, words
from tests.fuzz.trial import FOLDER, Trial

MEMORY_MAX_MB = 2048


def mutate(name: str, seconds: float, seed: int) -> bool:
    trial, until_s = Trial(name), time.monotonic() + seconds
    for payload in inputs(name, seed):
        if not trial(payload):
            return False
        if time.monotonic() > until_s:
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
    asked.add_argument("--seed", type=int, help="what a run printed, to repeat it")
    asked.add_argument("--only", choices=PROPERTIES, help="one property")
    asked.add_argument("--own", action="store_true", help="our own mutations, though atheris is there")
    asked.add_argument("--replay", type=Path, help="one input from a file")
    said = asked.parse_args()
    names = [said.only] if said.only else list(PROPERTIES)
    if said.replay:
        took_s = max(cost_s(name, said.replay.read_bytes()) for name in names)
        print(f"holds, in {took_s * 1e3:.1f} ms of CPU")
        return 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    seed = random.SystemRandom().randrange(1, 2**31) if said.seed is None else said.seed
    run = mutate if said.own or importlib.util.find_spec("atheris") is None else guided
    print(f"{run.__name__}, seed {seed}, {said.seconds:g} s over {', '.join(names)}", flush=True)
    held = [run(name, said.seconds / len(names), seed) for name in names]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
