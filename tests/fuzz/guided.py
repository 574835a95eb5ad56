"""Atheris for one property: coverage tells it which inputs lead somewhere new. A process of its own.

Its own mutations know nothing of JSON and seldom get past the decoder, so every other one is one of ours.

`python -m tests.fuzz.guided NAME [libFuzzer options] CORPUS`; started by `python -m tests.fuzz`.
"""

import sys
from random import Random

import atheris

with atheris.instrument_imports(include=["protocols", "controller", "json"]):
    from tests.fuzz.mutate import changed
    from tests.fuzz.seeds import SEEDS, words
    from tests.fuzz.trial import Trial


def main() -> None:
    trial = Trial(sys.argv[1])
    seeds, vocabulary = SEEDS[trial.name], words(trial.name)

    def play(payload: bytes) -> None:
        if not trial(payload):
            raise AssertionError(f"{trial.name}: see above")

    def mutate(payload: bytes, size_max: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.5:
            return atheris.Mutate(payload, size_max)
        return changed(random, payload, seeds, vocabulary)[:size_max]

    atheris.Setup([sys.argv[0], *sys.argv[2:]], play, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
