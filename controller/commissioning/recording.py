"""A device on paper: its registers with the moments they were read at, as one YAML file.

    powerblock_capture: 1
    url: modbus+tcp://10.0.0.7
    unit: 1
    profile: xerus_pdu
    began_utc: 2026-11-21T10:00:00+00:00
    nameplate: {vendor: Raritan}
    reads:
      - {at_s: 0.0, table: holding, first: 12296, words: [0x4366, 0x8000]}
      - {at_s: 0.3, table: holding, first: 12302, refused: 2, count: 2}

Words are what was on the wire (in JSON, which has no hex, 0 to 65535), bits 0 and 1; nothing is decoded, so a
profile that turns out wrong can be mended and tried on the same file. `refused` is the Modbus exception code
of so many addresses.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controller.commissioning.target import ToolError
from protocols.profile import BIT_TABLES, Table

VERSION: Final = 1
FILE_MAX_BYTES: Final = 64 * 1024 * 1024  # a day of a meter, once a second
READS_MAX: Final = 500_000
ADDRESSES: Final = 0x10000

Word = Annotated[int, Field(ge=0, le=0xFFFF)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Taken(_Strict):
    """The answer to one read: words, or an exception."""

    at_s: Annotated[float, Field(ge=0)]
    table: Table
    first: Annotated[int, Field(ge=0, lt=ADDRESSES)]
    words: list[Word] = []
    refused: Annotated[int, Field(ge=1, le=255)] | None = None
    count: Annotated[int, Field(ge=1, le=ADDRESSES)] = 1  # of addresses refused

    @property
    def addresses(self) -> range:
        return range(self.first, self.first + (len(self.words) if self.refused is None else self.count))


class Recording(_Strict):
    powerblock_capture: Literal[1] = VERSION
    url: str
    unit: Annotated[int, Field(ge=0, le=255)]
    profile: str = ""
    began_utc: str
    nameplate: dict[str, str] = {}
    note: str = ""
    reads: Annotated[list[Taken], Field(max_length=READS_MAX)] = []


@dataclass(frozen=True)
class Range:
    """Addresses to record, such as `holding:0-99`."""

    table: Table
    first: int
    last: int


def as_text(recording: Recording, suffix: str) -> str:
    """One read per line: made for people and for version control; `.json` as JSON."""
    if suffix == ".json":
        content = {"powerblock_capture": VERSION, **recording.model_dump(exclude_defaults=True)}
        return json.dumps(content, indent=1)
    head = recording.model_dump(exclude={"reads"}, exclude_defaults=True)
    text = yaml.safe_dump({"powerblock_capture": VERSION, **head}, sort_keys=False, allow_unicode=True)
    text += "reads:\n" if recording.reads else "reads: []\n"
    return text + "".join(f"  - {_flow(taken)}\n" for taken in recording.reads)


def _flow(taken: Taken) -> str:
    fields = taken.model_dump(exclude_defaults=True)
    texts = {name: json.dumps(value) for name, value in fields.items()}
    if taken.words and taken.table not in BIT_TABLES:
        texts["words"] = "[" + ", ".join(f"0x{word:04X}" for word in taken.words) + "]"
    return "{" + ", ".join(f"{name}: {text}" for name, text in texts.items()) + "}"


def loaded(path: Path) -> Recording:
    """Raises ToolError."""
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise ToolError(f"{path}: larger than {FILE_MAX_BYTES} bytes; is it a capture?")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ToolError(f"{path}: cannot be read: {error.strerror}; check path and permissions") from None
    except UnicodeDecodeError as error:
        raise ToolError(f"{path}: not UTF-8 at byte {error.start}") from None
    try:
        content: Any = json.loads(text) if path.suffix == ".json" else yaml.load(text, _loader())  # noqa: S506
        return Recording.model_validate(content)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise ToolError(f"{path}: not a capture: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise ToolError(
            f"{path.name}: {where}: {first['msg']}; is it a file of `powerblock capture`?"
        ) from None


def _loader() -> Any:
    """The C loader where there is one: a day of a meter is a long file."""
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)
