"""The checkout sheet on paper: HTML to print, sign and file, CSV for whoever keeps such lists.

The HTML is one file without anything from elsewhere: A4 landscape, heads repeated on every page, a device
never separated from its first point. Whatever a device or a file has said is text in it and never markup, and
never a formula in the CSV.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Final

from controller.commissioning import files
from controller.commissioning.checkout import BY_HAND, DOUBT, FAIL, PASS, Line, Part, Sheet
from controller.commissioning.shown import NOT_FITTED

SUFFIXES: Final = (".csv", ".html")
FORMULA_STARTS: Final = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "\uff1d",
    "\uff0b",
    "\uff0d",
    "\uff20",
)  # some read wide signs, too

COLUMNS: Final = {
    "number": "no.", "device": "device", "point": "point", "title": "title", "address": "address",
    "form": "type", "expected": "expected", "access": "access", "read": "read", "unit": "unit",
    "raw": "raw", "quality": "quality", "verdict": "result", "why": "reason",
}  # fmt: skip
BY_PEOPLE: Final = ("instrument reading", "initials", "date")
INSTRUMENTS: Final = ("instrument, maker and type", "serial number", "calibrated until")
SIGNATURES: Final = ("Tested by", "Witnessed by", "Accepted by")
SIGNED: Final = ("name, company", "date and signature")


def paths_of(output: Path) -> list[Path]:
    """`sheet` becomes sheet.csv and sheet.html, a name with an ending of the two only itself.

    Raises ToolError for a file that is there: it may be signed.
    """
    paths = [output] if output.suffix in SUFFIXES else [Path(f"{output}{ending}") for ending in SUFFIXES]
    for path in paths:
        files.demand_new(path)
    return paths


def written(sheet: Sheet, paths: list[Path]) -> list[Path]:
    """All of them. Raises ToolError."""
    forms = {".csv": as_csv, ".html": as_html}
    for path in paths:
        files.written(path, forms[path.suffix](sheet))
    return paths


# --- CSV ----------------------------------------------------------------------------------------------------


def as_csv(sheet: Sheet) -> str:
    """One row per point. A byte order mark tells spreadsheets that it is UTF-8."""
    text = io.StringIO()
    rows = csv.writer(text)
    text.write("\ufeff")
    rows.writerow([*COLUMNS.values(), *BY_PEOPLE])
    for part in sheet.parts:
        for line in part.lines:
            fields = asdict(line)
            rows.writerow([*(_harmless(fields[key]) for key in COLUMNS), *("" for _ in BY_PEOPLE)])
    return text.getvalue()


def _harmless(cell: str | int) -> str | int:
    """A text is never a formula: titles and values come from files and devices."""
    if isinstance(cell, int) or not cell.startswith(FORMULA_STARTS) or _is_number(cell):
        return cell
    return f"'{cell}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# --- HTML ---------------------------------------------------------------------------------------------------

STYLE: Final = """
@page { size: A4 landscape; margin: 12mm 10mm 14mm 10mm;
  @bottom-left { content: "%s"; font: 7pt sans-serif; color: #555 }
  @bottom-right { content: "page " counter(page) " of " counter(pages); font: 7pt sans-serif; color: #555 } }
* { box-sizing: border-box }
body { font: 8pt/1.3 "Helvetica Neue", Arial, "Liberation Sans", sans-serif; color: #111; margin: 0 }
@media screen { body { max-width: 277mm; margin: 8mm auto; padding: 0 4mm } }
h1 { font-size: 15pt; margin: 0 0 1mm }
h2 { font-size: 11pt; margin: 0 0 2mm }
dl { display: grid; grid-template-columns: max-content 1fr max-content 1fr; gap: 0.6mm 4mm; margin: 2mm 0 }
dt { color: #555 } dd { margin: 0 }
.sum { display: flex; gap: 3mm; margin: 2mm 0 4mm }
.sum b { font-size: 12pt } .sum div { border: 0.3mm solid #999; padding: 1.2mm 4mm; min-width: 30mm }
table { width: 100%%; border-collapse: collapse; table-layout: fixed; margin-bottom: 4mm }
thead { display: table-header-group }
th { text-align: left; font-weight: 600; background: #e8e8e8 }
th, td { border: 0.2mm solid #999; padding: 0.7mm 1mm; vertical-align: top; overflow-wrap: anywhere }
th, tr { print-color-adjust: exact; -webkit-print-color-adjust: exact }
tr { break-inside: avoid }
tr.device th { background: #fff; font-weight: 400; border-color: #fff #fff #999; padding: 1mm 0 }
tr.device b { font-size: 10pt }
tr.fault th { border: 0.4mm solid #a00; background: #fff }
td.n { text-align: right; color: #555 } td.v { text-align: right; font-weight: 600 }
small { color: #555; font-size: 7pt } code { font: 7pt "DejaVu Sans Mono", monospace }
.pass { color: #063 } .fail { color: #a00; font-weight: 700 } .hand { color: #555 }
.doubt { color: #850; font-weight: 700 }
.end { break-inside: avoid; border-top: 0.3mm solid #111; padding-top: 3mm; margin-top: 6mm }
.fields { display: grid; gap: 1mm 8mm } .signatures { grid-template-columns: repeat(3, 1fr) }
.instruments { grid-template-columns: 2fr 1fr 1fr; margin-bottom: 5mm }
.fields p { border-bottom: 0.2mm solid #111; margin: 7mm 0 0.5mm } .fields small { display: block }
.draft { border: 0.5mm solid #a00; color: #a00; padding: 1.5mm 3mm; margin: 2mm 0; font-weight: 700 }
"""

WIDTHS_PERCENT: Final = (3.2, 15, 12.5, 12, 10, 8, 5.3, 12.5, 10.5, 5, 6)
HEADS: Final = (
    "no.", "point", "address", "expected", "value read", "raw", "result", "reason", *BY_PEOPLE,
)  # fmt: skip
CLASSES: Final = {PASS: "pass", FAIL: "fail", DOUBT: "doubt", NOT_FITTED: "hand", BY_HAND: "hand"}
COUNTED: Final = {BY_HAND: "to be tried by hand"}  # others go by their own names


def as_html(sheet: Sheet) -> str:
    return "".join(_html(sheet))


def _html(sheet: Sheet) -> Iterator[str]:
    footer = f"{sheet.block}, checkout of {sheet.began_utc}, {sheet.file} {sheet.digest}"
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    yield f"<title>Checkout of {escape(sheet.block)}</title>"
    yield f"<style>{STYLE % _css_text(footer)}</style></head><body>\n"
    yield f"<h1>Point-to-point checkout: {escape(sheet.block)}</h1>\n"
    if not sheet.complete:
        yield '<p class="draft">Interrupted: not all devices are on this sheet.</p>\n'
    yield "<dl>"
    for name, text in (
        ("read", sheet.began_utc),
        ("configuration", f"{sheet.file}, SHA-256 {sheet.digest}…"),
        ("made by", sheet.program),
        ("devices", str(len(sheet.parts))),
    ):
        yield f"<dt>{name}</dt><dd>{escape(text)}</dd>"
    yield '</dl>\n<div class="sum">'
    for verdict, style in CLASSES.items():
        yield f'<div class="{style}"><b>{sheet.count(verdict)}</b> {COUNTED.get(verdict, verdict)}</div>'
    yield "</div>\n"
    for part in sheet.parts:
        yield from _part(part)
    yield from _end(sheet)
    yield "</body></html>\n"


def _part(part: Part) -> Iterator[str]:
    """A table of its own: its head, with the device's name, stands on every page that it takes."""
    wide = len(HEADS)
    yield "<table><colgroup>" + "".join(f'<col style="width:{width}%">' for width in WIDTHS_PERCENT)
    yield f'</colgroup>\n<thead><tr class="device"><th colspan="{wide}"><b>{escape(part.name)}</b> '
    yield f"{escape(part.title)} &nbsp; {_outcome(part)}<br><small>"
    yield escape("; ".join(filter(None, (part.place, part.where, part.namespaces))))
    yield f"; profile {escape(part.profile)}, evidence: {escape(part.evidence)}</small></th></tr>\n"
    if part.fault:
        yield f'<tr class="fault"><th colspan="{wide}" class="fail">{escape(part.fault)}</th></tr>\n'
    yield "<tr>" + "".join(f"<th>{head}</th>" for head in HEADS) + "</tr></thead>\n<tbody>\n"
    for line in part.lines:
        yield _row(line, "" if part.fault and line.verdict == FAIL else line.why)
    yield "</tbody></table>\n"


def _outcome(part: Part) -> str:
    failed = part.count(FAIL)
    if failed or part.fault:
        return f'<span class="fail">{failed} of {len(part.lines)} fail</span>'
    if doubted := part.count(DOUBT):
        return f'<span class="doubt">{doubted} of {len(part.lines)} in doubt</span>'
    return f'<span class="pass">{_well(part)}</span>'


def _well(part: Part) -> str:
    missing = part.count(NOT_FITTED)
    if not missing:
        return f"all {len(part.lines)} read well"
    return f"all {len(part.lines) - missing} read well, {missing} not fitted"


def _row(line: Line, why: str) -> str:
    title = f"<br><small>{escape(line.title)}</small>" if line.title else ""
    may = f"<br><small>{escape(line.access)}</small>" if line.access != "r" else ""
    unit = f" {escape(line.unit)}" if line.unit and line.read else ""
    cells = (
        f'<td class="n">{line.number}</td>',
        f"<td>{escape(line.point)}{title}</td>",
        f"<td>{escape(line.address.rpartition(';')[2])}<br><small>{escape(line.form)}</small></td>",
        f"<td>{escape(line.expected)}{may}</td>",
        f'<td class="v">{escape(line.read)}{unit}</td>',
        f"<td><code>{escape(line.raw)}</code></td>",
        f'<td class="{CLASSES[line.verdict]}">{line.verdict}</td>',
        f"<td>{escape(why)}</td>",
        *("<td></td>" for _ in BY_PEOPLE),
    )
    return f"<tr>{''.join(cells)}</tr>\n"


def _end(sheet: Sheet) -> Iterator[str]:
    """Never on two pages, and never a page of signatures without what they are for."""
    yield f'<div class="end"><h2>{escape(sheet.block)}, checkout of {escape(sheet.began_utc)}</h2>\n'
    yield '<div class="fields instruments">' + "".join(map(_field, INSTRUMENTS * 2)) + "</div>\n"
    yield '<div class="fields signatures">'
    yield "".join(f"<div><b>{role}</b>{''.join(map(_field, SIGNED))}</div>" for role in SIGNATURES)
    yield "</div></div>\n"


def _field(name: str) -> str:
    return f"<div><p></p><small>{name}</small></div>"


def _css_text(text: str) -> str:
    """Between the quotes of a style sheet, inside of HTML."""
    return "".join(char for char in text if char.isprintable() and char not in '"\\<>')
