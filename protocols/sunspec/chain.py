"""Walks a device's model chain and makes a profile of it.

The map begins with 'SunS' at one of three addresses; then come models, each with its id and its length, until
the id 0xFFFF. Nothing about the device must be known beforehand, and unknown models are skipped by their
length. All of it is bounded: what a device says about itself is not believed without limit.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from protocols import codec
from protocols.profile import Block, Example, Identity, Point, Profile, ProfileError, Provenance
from protocols.reading import DeviceError
from protocols.sunspec.control import COMMANDED, control_of
from protocols.sunspec.definitions import HEADER, definition, head_length, lay_out, needs_head
from protocols.sunspec.points import points_of

Read = Callable[[int, int], Awaitable[Sequence[int]]]

BASES: Final = (40_000, 50_000, 0)  # SunSpec Device Information Model Specification V1.1, 6.2
MARKER: Final = (0x5375, 0x6E53)  # 'SunS'
MARKER_POINT: Final = "sunspec_marker"
END_ID: Final = 0xFFFF
MODELS_MAX: Final = 100  # the longest chain seen has 20
POINTS_MAX: Final = 4000  # the largest battery seen has 600; each costs 30 us of the loop
ADDRESS_MAX: Final = 0xFFFF
READ_MAX: Final = 125  # registers per request; Modbus Application Protocol V1.1b3, 6.3
TEXT_NAMES: Final = ("Mn", "Md", "Opt", "Vr", "SN")
REFUSED: Final = (1, 2, 3)  # illegal function, address, value: the device answered, there is nothing there


@dataclass(frozen=True)
class Model:
    """One link of the chain: `address` of its id, `length` registers after id and length."""

    id: int
    address: int
    length: int

    @property
    def last(self) -> int:
        return self.address + HEADER + self.length - 1


@dataclass
class _Found:
    """What discovery has gathered."""

    points: dict[str, Point] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    words: dict[int, int] = field(default_factory=dict)  # address -> register, where it had to be read
    keys: dict[tuple[int, str], Point] = field(default_factory=dict)  # (model, standard's key), first of each
    faults: list[str] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)


async def discover(read: Read, *, name: str) -> Profile:
    """The profile of the SunSpec device behind `read`, from nothing but its own model chain.

    Args:
        read: `count` holding registers from `address`; raises DeviceError as the Modbus client does, with
            the exception code of a refusal in `code`.
        name: of the device; the profile is called the same.

    Raises:
        ProfileError: no SunSpec map, or none of its models is known; the text says what was tried.
        DeviceError: the device fell silent; try again later.
    """
    base = await _find(read, name)
    chain, faults = await _chain(read, base + len(MARKER), name)
    found = _Found(faults=faults)
    found.points[MARKER_POINT] = _marker(base)
    found.blocks.append(Block(table="holding", first=base, last=base + len(MARKER) - 1))
    found.words.update(zip(range(base, base + len(MARKER)), MARKER, strict=True))
    for model in chain:
        if len(found.points) >= POINTS_MAX:
            found.faults.append(
                f"model {model.id} and those behind it left out: {POINTS_MAX} points are enough"
            )
            break
        await _add(read, model, found, name)
    if len(found.points) == 1:
        raise ProfileError(
            f"{name}: SunSpec models {_ids(chain)}, none of them known; write a profile for it"
        )
    return _profile(name, base, chain, found)


async def _find(read: Read, name: str) -> int:
    tried: list[str] = []
    for base in BASES:
        try:
            words = await _read(read, base, len(MARKER), name)
        except DeviceError as error:
            if not _refused(error):
                raise
            tried.append(f"{base} refused")
            continue
        if tuple(words) == MARKER:
            return base
        tried.append(f"{base} says {words[0]:#06x} {words[1]:#06x}")
    raise ProfileError(
        f"{name}: no SunSpec map ('SunS'): {', '.join(tried)}; check unit id and device, or name a profile"
    )


async def _chain(read: Read, address: int, name: str) -> tuple[list[Model], list[str]]:
    chain: list[Model] = []
    while len(chain) < MODELS_MAX and address + 1 <= ADDRESS_MAX:
        try:
            model_id, length = await _read(read, address, HEADER, name)
        except DeviceError as error:
            if not (chain and _refused(error)):
                raise
            return chain, [f"the chain ends at {address} without its end mark"]
        if model_id == END_ID:
            return chain, []
        model = Model(model_id, address, length)
        if model.last > ADDRESS_MAX:
            return chain, [f"model {model_id} at {address} claims {length} registers; left out"]
        chain.append(model)
        address = model.last + 1
    return chain, [f"the chain has no end; took the first {len(chain)} models"]


async def _add(read: Read, model: Model, found: _Found, name: str) -> None:
    group = definition(model.id)
    if group is None:
        found.faults.append(f"model {model.id} is not known; skipped")
        return
    count = found.counts[model.id] = found.counts.get(model.id, 0) + 1
    head: Sequence[int] = ()
    if _must_read(model.id) or needs_head(group):
        length = min(head_length(group), HEADER + model.length)
        head = await _read(read, model.address, length, name)
        found.words.update(enumerate(head, start=model.address))
    places, faults = lay_out(group, model.length, head)
    found.faults.extend(f"model {model.id}: {fault}" for fault in faults)
    prefix = f"m{model.id}" if count == 1 else f"m{model.id}_{count}"
    points = points_of(model.id, prefix, model.address, places)
    found.points.update((point.name, point) for point in points.values())
    found.blocks.append(Block(table="holding", first=model.address, last=model.last))
    for key, point in points.items():
        found.keys.setdefault((model.id, key), point)


def _must_read(model_id: int) -> bool:
    """Whether what it says now decides about the profile: the name plate, and what can be commanded."""
    return model_id == 1 or any(model_id == model for model, _ in COMMANDED)


async def _read(read: Read, address: int, count: int, name: str) -> list[int]:
    words: list[int] = []
    while len(words) < count:
        wanted = min(READ_MAX, count - len(words))
        part = await read(address + len(words), wanted)
        if len(part) != wanted:
            raise DeviceError(f"{name}: {len(part)} registers where {wanted} were asked for")
        words.extend(part)
    return words


def _refused(error: DeviceError) -> bool:
    return getattr(error, "code", 0) in REFUSED


def _profile(name: str, base: int, chain: Sequence[Model], found: _Found) -> Profile:
    plate = {key: _said(found, found.keys.get((1, key))) for key in TEXT_NAMES}
    implemented = {
        key: found.keys[key].name for key in COMMANDED if _said(found, found.keys.get(key)) is not None
    }
    texts = [f"{plate[key]}" for key in ("Mn", "Md") if plate[key] is not None]
    return Profile(
        name=name,
        title=" ".join(texts) or "SunSpec device",
        protocol="modbus",
        provenance=Provenance(
            document=f"the device's own model chain at {base}: {_ids(chain)}",
            page="SunSpec model definitions, sunspec/models",
            evidence="document",
            note="; ".join(found.faults),
        ),
        points=found.points,
        examples=tuple(_examples(found)),
        identity=tuple(_identity(found, plate)),
        control=control_of(implemented),
        blocks=tuple(found.blocks),
        max_registers_per_read=READ_MAX,
    )


def _ids(chain: Sequence[Model]) -> str:
    return ", ".join(str(model.id) for model in chain)


def _marker(base: int) -> Point:
    return Point(
        name=MARKER_POINT,
        unit="count",
        title="'SunS': the map begins here",
        address=base,
        type="u32",
        poll="once",
    )


def _identity(found: _Found, plate: Mapping[str, codec.Value]) -> list[Identity]:
    """The map must still begin there, model and version be the same: another one has other registers."""
    return [
        Identity(point=MARKER_POINT, equals=float(MARKER[0] << 16 | MARKER[1])),
        *(
            Identity(point=found.keys[1, key].name, equals=plate[key])
            for key in ("Md", "Vr")
            if plate[key] is not None
        ),
    ]


def _examples(found: _Found) -> list[Example]:
    """What the device said when it was asked, as the profile's worked examples."""
    points = [
        found.points[MARKER_POINT],
        *(found.keys[1, key] for key in TEXT_NAMES if (1, key) in found.keys),
    ]
    return [
        Example(
            point=point.name, value=value, registers=_words(found, point), source="the device at discovery"
        )
        for point in points
        if (value := _said(found, point)) is not None
    ]


def _said(found: _Found, point: Point | None) -> codec.Value:
    """What the device said of `point` during discovery; None if it was not read or is not implemented."""
    if point is None or point.address not in found.words or point.last_address not in found.words:
        return None
    return codec.decode(point, _words(found, point))


def _words(found: _Found, point: Point) -> tuple[int, ...]:
    return tuple(found.words[address] for address in range(point.address, point.last_address + 1))
