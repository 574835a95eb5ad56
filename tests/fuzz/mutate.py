"""A small mutational fuzzer: good messages, spoiled. Same seed, same inputs."""

from collections.abc import Callable, Iterator
from random import Random

from tests.fuzz.seeds import SCALAR, SEEDS, words

CHANGES_MAX = 6  # per input; more leave nothing that any reader would open
INPUT_MAX_BYTES = 16_384
DEPTH_MAX = 2000  # beyond what Python's own stack takes

Change = Callable[[Random, bytes, list[bytes], list[bytes]], bytes]


def inputs(name: str, seed: int) -> Iterator[bytes]:
    """Without end; the good messages themselves come first."""
    random, seeds, vocabulary = Random(seed), SEEDS[name], words(name)
    yield from seeds
    while True:
        yield changed(random, random.choice(seeds), seeds, vocabulary)


def changed(random: Random, payload: bytes, seeds: list[bytes], vocabulary: list[bytes]) -> bytes:
    """The same message, spoiled in a few places."""
    for _ in range(random.randint(1, CHANGES_MAX)):
        payload = random.choice(CHANGES)(random, payload, seeds, vocabulary)[:INPUT_MAX_BYTES]
    return payload


def _span(random: Random, payload: bytes) -> tuple[int, int]:
    start = random.randint(0, len(payload))
    return start, min(len(payload), start + random.choice((1, 2, 4, 16, 64)))


def flip(random: Random, payload: bytes, _seeds: list[bytes], _words: list[bytes]) -> bytes:
    start, end = _span(random, payload)
    flipped = bytes(byte ^ (1 << random.randrange(8)) for byte in payload[start : min(end, start + 1)])
    return payload[:start] + flipped + payload[start + len(flipped) :]


def cut(random: Random, payload: bytes, _seeds: list[bytes], _words: list[bytes]) -> bytes:
    start, end = _span(random, payload)
    return payload[:start] + payload[end:]


def repeat(random: Random, payload: bytes, _seeds: list[bytes], _words: list[bytes]) -> bytes:
    start, end = _span(random, payload)
    return payload[:end] + payload[start:end] * random.choice((1, 2, 50)) + payload[end:]


def splice(random: Random, payload: bytes, seeds: list[bytes], _words: list[bytes]) -> bytes:
    other = random.choice(seeds)
    return payload[: random.randint(0, len(payload))] + other[random.randint(0, len(other)) :]


def insert(random: Random, payload: bytes, _seeds: list[bytes], vocabulary: list[bytes]) -> bytes:
    start, _ = _span(random, payload)
    return payload[:start] + random.choice(vocabulary) + payload[start:]


def exchange(random: Random, payload: bytes, _seeds: list[bytes], vocabulary: list[bytes]) -> bytes:
    """Another scalar in the place of one: the message stays JSON, and gets deep into the readers."""
    places = [match.span() for match in SCALAR.finditer(payload)]
    if not places:
        return payload
    start, end = random.choice(places)
    return payload[:start] + random.choice(vocabulary) + payload[end:]


def nest(random: Random, payload: bytes, _seeds: list[bytes], _words: list[bytes]) -> bytes:
    places = [match.span() for match in SCALAR.finditer(payload)] or [(0, len(payload))]
    start, end = random.choice(places)
    depth = random.choice((1, 5, DEPTH_MAX))
    return payload[:start] + b"[" * depth + payload[start:end] + b"]" * depth + payload[end:]


def scramble(random: Random, payload: bytes, _seeds: list[bytes], _words: list[bytes]) -> bytes:
    start, end = _span(random, payload)
    return payload[:start] + random.randbytes(end - start) + payload[end:]


CHANGES: tuple[Change, ...] = (
    flip,
    cut,
    repeat,
    splice,
    insert,
    scramble,
    nest,
    exchange,
    exchange,
    exchange,
    exchange,
)
