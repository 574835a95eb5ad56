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

from controller.commissioning.checkout import BY_HAND, FAIL, PASS, Line, Part, Sheet
from controller.commissioning.target import ToolError

SUFFIXES: Final = (".csv", ".html")
FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")

COLUMNS: Final = {
    "number": "no.", "device": "device", "point": "point", "title": "title", "address": "address",
    "form": "type", "expected": "expected", "access": "access", "read": "read", "unit": "unit",
    "raw": "raw", "quality": "quality", "verdict": "result", "why": "reason",
}  # fmt: skip
BY_PEOPLE: Final = ("instrument reading", "initials", "date")
SIGNATURES: Final = ("tested by", "witnessed by", "accepted by")


def paths_of(output: Path) -> list[Path]:
    """`sheet` becomes sheet.csv and sheet.html, a name with an ending of the two only itself.

    Raises ToolError for a file that is there: it may be signed.
    """
    paths = [output] if output.suffix in SUFFIXES else [Path(f"{output}{ending}") for ending in SUFFIXES]
    for path in paths:
        if path.exists():
            raise ToolError(f"{path} exists, and may be signed; choose another name, or remove it")
        if not path.parent.is_dir():
            raise ToolError(f"{path}: there is no folder {path.parent}; make it first")
    return paths


def written(sheet: Sheet, paths: list[Path]) -> None:
    """Raises ToolError."""
    forms = {".csv": as_csv, ".html": as_html}
    for path in paths:
        try:
            with path.open("x", encoding="utf-8", newline="") as file:
                file.write(forms[path.suffix](sheet))
        except OSError as error:
            raise ToolError(f"{path}: cannot be written: {error.strerror}") from None


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
dl { display: grid; grid-template-columns: max-content 1fr max-content 1fr; gap: 0.6mm 4mm;
  margin: 2mm 0 3mm }
dt { color: #555 } dd { margin: 0 }
.sum { display: flex; gap: 3mm; margin: 2mm 0 4mm }
.sum b { font-size: 12pt } .sum div { border: 0.3mm solid #999; padding: 1.2mm 4mm; min-width: 30mm }
table { width: 100%%; border-collapse: collapse; table-layout: fixed }
thead { display: table-header-group }
th { text-align: left; font-weight: 600; background: #e8e8e8; -webkit-print-color-adjust: exact }
th, td { border: 0.2mm solid #999; padding: 0.7mm 1mm; vertical-align: top; overflow-wrap: anywhere }
tr { break-inside: avoid }
tr.device td { background: #f4f4f4; -webkit-print-color-adjust: exact; padding: 1.2mm 1mm }
tr.device b { font-size: 10pt } tr.device { break-after: avoid }
tr.fault td { border: 0.5mm solid #a00; font-weight: 600 }
td.n { text-align: right; color: #555 } td.v { text-align: right; font-weight: 600 }
small { color: #555; font-size: 7pt } code { font: 7pt "DejaVu Sans Mono", monospace }
.pass { color: #063 } .fail { color: #a00; font-weight: 700 } .hand { color: #555 }
td.w { background: #fff }
.sign { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8mm; margin-top: 8mm; break-inside: avoid }
.sign p { border-bottom: 0.3mm solid #111; margin: 9mm 0 0.5mm } .sign small { display: block }
.sign b { display: block; text-transform: capitalize }
.draft { border: 0.5mm solid #a00; color: #a00; padding: 1.5mm 3mm; margin: 2mm 0; font-weight: 700 }
"""

WIDTHS_PERCENT: Final = (3, 15, 10, 12, 11, 8, 6.5, 13, 10.5, 5, 6)
HEADS: Final = (
    "no.", "point", "address", "expected", "value read", "raw", "result", "reason", *BY_PEOPLE,
)  # fmt: skip
CLASSES: Final = {PASS: "pass", FAIL: "fail", BY_HAND: "hand"}


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
    for verdict, words in ((PASS, "pass"), (FAIL, "fail"), (BY_HAND, "to be tried by hand")):
        yield f'<div class="{CLASSES[verdict]}"><b>{sheet.count(verdict)}</b> {words}</div>'
    yield "</div>\n<table><colgroup>"
    yield "".join(f'<col style="width:{width}%">' for width in WIDTHS_PERCENT)
    yield "</colgroup>\n<thead><tr>" + "".join(f"<th>{head}</th>" for head in HEADS) + "</tr></thead>\n"
    for part in sheet.parts:
        yield from _part(part)
    yield "</table>\n"
    yield '<div class="sign">' + "".join(map(_signature, SIGNATURES)) + "</div>\n</body></html>\n"


def _part(part: Part) -> Iterator[str]:
    wide = len(HEADS)
    failed = part.count(FAIL)
    verdict = f'<span class="fail">{failed} fail</span>' if failed else '<span class="pass">all pass</span>'
    yield f'<tbody><tr class="device"><td colspan="{wide}"><b>{escape(part.name)}</b> {escape(part.title)}'
    yield f" &nbsp; {verdict}<br><small>{escape(part.place)}; {escape(part.where)}; profile "
    yield f"{escape(part.profile)}, evidence: {escape(part.evidence)}</small></td></tr>\n"
    if part.fault:
        yield f'<tr class="fault"><td colspan="{wide}" class="fail">{escape(part.fault)}</td></tr>\n'
    for line in part.lines:
        yield _row(line, "" if part.fault and line.verdict == FAIL else line.why)
    yield "</tbody>\n"


def _row(line: Line, why: str) -> str:
    title = f"<br><small>{escape(line.title)}</small>" if line.title else ""
    may = f"<br><small>{escape(line.access)}</small>" if line.access != "r" else ""
    unit = f" {escape(line.unit)}" if line.unit else ""
    cells = (
        f'<td class="n">{line.number}</td>',
        f"<td>{escape(line.point)}{title}</td>",
        f"<td>{escape(line.address)}<br><small>{escape(line.form)}</small></td>",
        f"<td>{escape(line.expected)}{unit}{may}</td>",
        f'<td class="v">{escape(line.read)}{unit if line.read else ""}</td>',
        f"<td><code>{escape(line.raw)}</code></td>",
        f'<td class="{CLASSES[line.verdict]}">{line.verdict}</td>',
        f"<td>{escape(why)}</td>",
        *('<td class="w"></td>' for _ in BY_PEOPLE),
    )
    return f"<tr>{''.join(cells)}</tr>\n"


def _signature(role: str) -> str:
    fields = "".join(f"<p></p><small>{name}</small>" for name in ("name, company", "date and signature"))
    return f"<div><b>{role}</b>{fields}</div>"


def _css_text(text: str) -> str:
    """Between the quotes of a style sheet, inside of HTML."""
    return "".join(char for char in text if char.isprintable() and char not in '"\\<>')
