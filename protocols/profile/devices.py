"""The table of device types for the documentation: what is supported, and how far it has been proven.

`python -m protocols.profile.devices > docs/devices.md` writes it anew.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Final

from protocols.profile import Profile, builtin_profiles, load_profile

HEAD: Final = """\
# Device types

A device type is a profile: one YAML file in `protocols/profiles/` or of your own (`profile:
types/mine.yaml`, counted from the folder of `block.yaml`). The JSON Schema in `docs/profile.schema.json`
gives editors completion. SunSpec devices need none: `profile: sunspec` reads the device's own model chain.

## Writing one

```yaml
# yaml-language-server: $schema=/opt/powerblock/docs/profile.schema.json
title: ACME M100 power meter
protocol: modbus
provenance: {document: ACME M100 manual 3.2, page: "table 4, page 17", evidence: document}
max_registers_per_read: 60             # what the manual allows in one question
blocks:                                # what is read in one go; nothing outside is ever asked
  - {table: holding, first: 0, last: 9}
points:                                # the name ends with the unit: power_w, never power_kw
  power_w: {unit: W, address: 0, type: i32, scale: 100, lowest: -900000, highest: 900000} # says 0.1 kW
  energy_imported_wh: {unit: Wh, address: 2, type: u32, word_order: little, scale: 1000} # low word first
  current_a: {unit: A, address: 4, type: f32, lowest: 0, highest: 5000}
  load_ratio: {unit: ratio, address: 6, type: u16, scale: 0.01, lowest: 0, highest: 1}   # says %; 1 is 100 %
  state: {unit: enum, address: 7, type: u16, enum: {0: "off", 1: "on", 2: fault}}
  limit_w: {unit: W, address: 8, type: u16, scale: 10, access: rw, lowest: 0, highest: 100000}
examples:                              # registers, and what they mean: from the manual or the display
  - {point: power_w, registers: [0x0000, 0x007B], value: 12300, source: "123 of 0.1 kW"}
  - {point: energy_imported_wh, registers: [0x0002, 0x0001], value: 65538000, source: low word first}
```

Addresses are those on the wire, counted from 0: 40001 in a manual is `address: 0`. Numbers of 32 and 64 bits
have their high word first; `word_order: little` is for devices that send the low word first, `byte_order:
little` for swapped bytes. A value outside `lowest` and `highest` is bad, and none is written. `powerblock
check` says everything that is wrong with a profile; `powerblock checkout` compares it with the device.

## What the table says

Evidence says how far the numbers have been proven: *document*: read in the maker's document or in two
independent implementations; *interop*: another implementation agrees on the wire; *hardware*: the device
itself did. Every profile carries worked examples, registers to value, which are verified whenever it is
loaded.

This page is made by `python -m protocols.profile.devices`.
"""

SUNSPEC: Final = """\
## SunSpec

`profile: sunspec` finds the map at 40000, 50000 or 0, follows the chain of models to its end and takes
every model that the SunSpec Alliance has published (package pysunspec2), among them 1 common, 101 to 103
and 111 to 113 inverter, 120 to 124 ratings, settings, controls and storage, 201 to 204 and 211 to 214
meters, 701 to 704 and 713 to 715 DER, 802 to 804 battery. Unknown models are skipped by their length. A
point is named after model, meaning and unit:

| the standard says | the point is called |
|---|---|
| model 203, `W` | `m203_power_w` |
| model 203, `PhVphA` | `m203_voltage_l1_v` |
| the second model 203, `TotWhImp` | `m203_2_energy_imported_wh` |
| model 714, second port, `DCW` | `m714_prt_2_dc_power_w` |
| model 704, `WMaxLimPct` (in %) | `m704_w_max_lim_pct_ratio` (1 is 100 %) |
| model 802, `SoC` | `m802_state_of_charge_ratio` |

Where the device has them, commands are armed with the reversion timer of model 704 or 123 (60 s), with the
heartbeat of model 715 or 802 (every second), and are sent only while its switch stands on REMOTE. Counters
that say 0 have no value: to SunSpec that means "not implemented".
"""


def table() -> str:
    """The page, as Markdown."""
    profiles = [load_profile(name) for name in builtin_profiles()]
    return "\n".join((HEAD, *_rows(profiles), "", SUNSPEC, "## Sources", "", *_sources(profiles), ""))


def _rows(profiles: Sequence[Profile]) -> Iterator[str]:
    yield _row(
        "profile", "device", "points", "may be written", "checked before use", "falls back by", "evidence"
    )
    yield _row(*7 * ["---"])
    for profile in profiles:
        yield _row(
            f"`{profile.name}`",
            profile.title,
            f"{len(profile.points)}",
            ", ".join(f"`{point.name}`" for point in profile.points.values() if point.writable),
            ", ".join(f"`{identity.point}`" for identity in profile.identity),
            _fallback(profile),
            profile.provenance.evidence,
        )


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell or "-" for cell in cells) + " |"


def _fallback(profile: Profile) -> str:
    control = profile.control
    if control is None:
        return ""
    if control.reversion is not None:
        return f"timer, {control.reversion.seconds:g} s"
    return "heartbeat" if control.heartbeat is not None else "nothing: the last command stands"


def _sources(profiles: Sequence[Profile]) -> Iterator[str]:
    for profile in profiles:
        source = profile.provenance
        yield f"* `{profile.name}`: {source.document}; {source.page}. {source.note}".rstrip()


if __name__ == "__main__":
    sys.stdout.write(table())
