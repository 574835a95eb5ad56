"""The register map as a document: CSV, Markdown and a spreadsheet, from the same rows that are served.

Whoever configures a SCADA system needs five things that maps rarely say: where counting starts, which word
of a pair comes first, which function codes work, what a missing value looks like, and whether the map in
hand is the one that runs. All five stand at the head of each form; the last as a fingerprint that the server
shows in its registers, too.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import xlsxwriter

from controller.facility.modbus.registers import (
    MAP_VERSION,
    NATIVE_UNIT,
    SUNSPEC_UNIT,
    Register,
    fingerprint,
)

COLUMNS: Final = {
    "unit_id": "unit id",
    "address": "address",
    "words": "registers",
    "type": "type",
    "name": "name",
    "unit": "unit",
    "access": "access",
    "functions": "function codes",
    "lowest": "lowest (raw)",
    "highest": "highest (raw)",
    "scale": "scale",
    "states": "states",
    "description": "description",
}
INCOMPLETE: Final = (
    "what they have, only they say: make the map again while the controller runs and reads them;"
    " its fingerprint is another one then"
)
WIDTHS: Final = {"name": 44, "states": 40, "description": 60, "functions": 16}  # characters; others 11


def write(path: Path, registers: Sequence[Register], head: Sequence[str]) -> None:
    """In the form that the name asks for. Raises ValueError for another one, OSError."""
    if path.suffix not in FORMS:
        raise ValueError(f"{path.name}: no such form; name it {', '.join('*' + form for form in FORMS)}")
    path.write_bytes(FORMS[path.suffix](registers, head))


def notes(registers: Sequence[Register], block: str, unknown: Sequence[str] = ()) -> Iterator[str]:
    """What one must know before the first register. `unknown`: groups whose points are still to be found."""
    yield f"Modbus map of {block}"
    yield f"map {MAP_VERSION}.{fingerprint(registers):08x}, as in map_version and map_fingerprint"
    yield "addresses count from 0, as on the wire; a tool that counts from 1, or from 40001, adds that"
    yield "words and bytes big-endian: high word first; float32 is IEEE 754; texts are ASCII, filled with NUL"
    yield f"unit {SUNSPEC_UNIT}: SunSpec, function 3 only; from unit {NATIVE_UNIT} on functions 3 and 4 alike"
    yield "missing: NaN in f32, 65535 in u16, 4294967295 in u32; its quality is 0; SunSpec: not implemented"
    yield "one read is of one moment, 125 registers at most; one write, 123; values are written whole"
    yield "exceptions: 1 no right to write, 2 no such address, 3 cannot be, 4 refused, 6 busy, 11 no unit"
    if unknown:
        yield f"NOT WHOLE: {', '.join(unknown)}: {INCOMPLETE}"


def as_csv(registers: Sequence[Register], head: Sequence[str]) -> bytes:
    text = io.StringIO()
    text.writelines(f"# {note}\r\n" for note in head)
    rows = csv.writer(text)
    rows.writerow(COLUMNS.values())
    rows.writerows(_cells(register) for register in registers)
    return text.getvalue().encode()


def as_markdown(registers: Sequence[Register], head: Sequence[str]) -> bytes:
    title, *rest = head
    lines = [f"# {title}", "", *(f"* {note}" for note in rest), "", _row(list(COLUMNS.values()))]
    lines += [_row(["---"] * len(COLUMNS)), *(_row(_cells(register)) for register in registers)]
    return ("\n".join(lines) + "\n").encode()


def as_spreadsheet(registers: Sequence[Register], head: Sequence[str]) -> bytes:
    """One sheet to read first, one with the registers, filtered and frozen at its head."""
    made = io.BytesIO()
    with xlsxwriter.Workbook(made, {"in_memory": True}) as book:
        bold = book.add_format({"bold": True})
        first, sheet = book.add_worksheet("read first"), book.add_worksheet("registers")
        first.set_column(0, 0, 110)
        for row, note in enumerate(head):
            first.write_string(row, 0, note, bold if row == 0 else None)
        for column, (key, title) in enumerate(COLUMNS.items()):
            sheet.set_column(column, column, WIDTHS.get(key, 11))
            sheet.write_string(0, column, title, bold)
        for row, register in enumerate(registers, start=1):
            for column, cell in enumerate(_cells(register)):
                # a text is never a formula: names come from configuration files
                put = sheet.write_string if isinstance(cell, str) else sheet.write_number
                put(row, column, cell)
        sheet.freeze_panes(1, 0)
        sheet.autofilter(0, 0, len(registers), len(COLUMNS) - 1)
    return made.getvalue()


def _cells(register: Register) -> list[str | float]:
    values = asdict(register)
    return ["" if values[key] is None else values[key] for key in COLUMNS]


def _row(cells: Sequence[str | float]) -> str:
    return (
        "| "
        + " | ".join(
            f"{cell:g}" if isinstance(cell, float) else str(cell).replace("|", "\\|") for cell in cells
        )
        + " |"
    )


FORMS: Final = {".csv": as_csv, ".md": as_markdown, ".xlsx": as_spreadsheet}
