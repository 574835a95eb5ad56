"""The commands of commissioning; `register` adds them to `powerblock`.

Exit status as everywhere: 0 all is well, 1 the answer is not the one hoped for (nobody answers, a point is
bad, a write is refused, interrupted), 2 bad input. What a program wants goes to stdout, progress and errors
go to stderr. SIGTERM is heard like Ctrl-C, so that `timeout` leaves what was found, too.
"""

import asyncio
import errno
import functools
import inspect
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.text import Text

# Each command imports its own part: `powerblock --help` must not wait for driver libraries.

EXIT_NEGATIVE: Final = 1
EXIT_BAD_INPUT: Final = 2
PIPE_COLUMNS: Final = 160  # whoever reads a file of it scrolls sideways
STEP_SAID_S: Final = 10.0  # in a pipe, from one line about what is being done to the next
PANEL: Final = "Commissioning"

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="URL | BLOCK.yaml DEVICE [POINT]...", help="a device, and points of it; none: all"
    ),
]
Device = Annotated[
    list[str], typer.Argument(metavar="URL | BLOCK.yaml DEVICE", help="a device, by its URL or as configured")
]
Ca = Annotated[Path | None, typer.Option(help="modbus+tls: who signed the device's certificate")]
Cert = Annotated[Path | None, typer.Option(help="modbus+tls: our certificate")]
Key = Annotated[Path | None, typer.Option(help="modbus+tls: our key")]
Every = Annotated[str, typer.Option(metavar="TIME", help="from one look to the next: 1s, 500ms, 2m")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for programs")]

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Told:
    """What is said of a device beside its URL: an option each. A block says all of it itself."""

    profile: Annotated[
        str | None, typer.Option("--profile", metavar="NAME", help="built-in profile, or the path of yours")
    ] = None
    unit: Annotated[int | None, typer.Option("--unit", min=1, max=247, help="unit id; 1 if not given")] = None
    ca: Ca = None
    cert: Cert = None
    key: Key = None

    def target(self, words: list[str]) -> tuple[Any, list[str]]:
        """The device, and the words after it. Raises ToolError."""
        from controller.commissioning.target import parsed

        return parsed(words, profile=self.profile, unit=self.unit, tls=(self.ca, self.cert, self.key))


def register(app: typer.Typer) -> None:
    """Add the commands of commissioning."""
    for command in (scan, probe, points, read, watch, write, capture, playback, checkout):
        settings = {"ignore_unknown_options": command is write}  # -5 is a value
        app.command(rich_help_panel=PANEL, context_settings=settings)(_command(command))


# --- who is there -------------------------------------------------------------------------------------------


def scan(
    where: Annotated[
        list[str],
        typer.Argument(metavar="HOST|URL...", help="10.0.0.7, 10.0.0.7-20, or modbus+rtu:///dev/ttyUSB0"),
    ],
    units: Annotated[str, typer.Option(metavar="RANGE", help="unit ids, such as 1-20,33")] = "1",
    ports: Annotated[str, typer.Option(metavar="RANGE", help="TCP ports of hosts; 4840 is OPC UA")] = "502",
    rate: Annotated[float, typer.Option(help="questions a second, at most")] = 4.0,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Look which units answer: slowly, one connection at a time, reads alone. Status 1 if none does."""
    from controller.commissioning import scan as tool
    from controller.commissioning import target

    places = tool.places(where, tool.numbers(ports, "--ports", 1, 65_535), tls=(ca, cert, key))
    ids = tool.numbers(units, "--units", 1, tool.UNIT_MAX)
    survey, gap_s = tool.planned(places, ids), target.gap_s(rate)
    asked = f"{_counted(survey.of, 'question')} at {_counted(len(places), 'place')}"
    _say(f"{asked}; Ctrl-C ends it and shows what was found")
    with _Steps() as step:
        _interruptible(
            tool.scan(
                places,
                ids,
                survey,
                gap_s=gap_s,
                on_step=lambda text: step(f"{survey.done}/{survey.of}  {text}"),
            )
        )
    _show(tool.as_json(survey) if as_json else tool.render(survey))
    _demand(survey.complete and survey.found)


def probe(device: Device, told: Told, as_json: AsJson = False) -> None:
    """Find out what a device is, and what to paste into block.yaml. Status 1 if nothing fits."""
    from controller.commissioning import probe as modbus
    from controller.commissioning import probe_opcua as opcua
    from controller.commissioning.target import ToolError
    from controller.gateway_config import SUNSPEC
    from protocols.profile import load_profile

    only = told.profile  # the one to try, and not what is there
    target, rest = replace(told, profile=None).target(device)
    if rest:
        raise ToolError(f"{' '.join(rest)!r}: a probe takes a device and no points; remove it")
    if only is not None and (only != SUNSPEC or target.config.is_opcua):
        load_profile(only)
    _demand_free(target)
    kind: Any = opcua if target.config.is_opcua else modbus
    place = {} if target.config.is_opcua else {"unit": target.config.unit}
    found = kind.Found(where=target.where, url=target.config.url, **place)
    with _Steps() as step:
        complete = _interruptible(kind.probe(target, found, only, step))
    about = (found, target) if target.config.is_opcua else (found,)
    _show(kind.as_json(*about) if as_json else kind.render(*about))
    _demand(complete and found.well)


def points(
    device: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROFILE | URL | BLOCK.yaml DEVICE]", help="none: list all profiles"),
    ] = None,
    *,
    told: Told,
    as_json: AsJson = False,
) -> None:
    """Show what a profile knows: address, type, range, access and evidence of each point."""
    from controller.commissioning import points as tool

    if not device and told.profile is None:
        _show(tool.all_as_json() if as_json else tool.render_all())
        return
    found = _profile_of(device or [], told)
    _show(tool.as_json(found) if as_json else tool.render(found))


# --- values -------------------------------------------------------------------------------------------------


def read(device: Words, told: Told, as_json: AsJson = False) -> None:
    """Read points once, with quality and raw registers. Status 1 if one of them is not good."""
    from controller.commissioning import reading as tool

    target, names = told.target(device)
    _warn_if_held(target)
    seen = _run(tool.look(target, names))
    _show(seen.as_json() if as_json else tool.Screen(seen))
    _demand(seen.well)


def watch(device: Words, told: Told, every: Every = "1s", as_json: AsJson = False) -> None:
    """Watch points until Ctrl-C: a live table, or plain lines in a pipe."""
    from controller.commissioning import reading as tool
    from controller.commissioning.target import period_s

    every_s = period_s(every)
    target, names = told.target(device)
    _warn_if_held(target)
    watching = tool.Watch(target, names, every_s)
    console = Console()
    if as_json or not console.is_terminal:
        _interruptible(_print_lines(watching, as_json))
        return
    _interruptible(_draw(watching, console))
    if watching.last is not None:
        _show(tool.Screen(watching.last, watching.seen))


async def _print_lines(watching: Any, as_json: bool) -> None:
    from controller.commissioning.reading import lines

    async for seen in watching.looks():
        typer.echo(json.dumps(seen.as_json()) if as_json else lines(seen))


async def _draw(watching: Any, console: Console) -> None:
    from rich.live import Live

    from controller.commissioning.reading import Screen

    with Live(console=console, screen=True, auto_refresh=False) as live:
        async for seen in watching.looks():
            live.update(Screen(seen, watching.seen, live=True), refresh=True)


def write(
    device: Annotated[
        list[str],
        typer.Argument(
            metavar="URL|BLOCK.yaml DEVICE... POINT VALUE", help="the device, the point, its value"
        ),
    ],
    told: Told,
    confirm: Annotated[bool, typer.Option("--confirm", help="send it; without, only show it")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a write would send; with --confirm send it, read it back and compare."""
    from controller.commissioning import writing as tool
    from controller.commissioning.target import ToolError

    target, rest = told.target(device)
    if len(rest) != 2:
        raise ToolError(f"give the point and its value after the device, not {' '.join(rest) or 'nothing'!r}")
    made = _run(tool.plan(target, *rest))
    written = _run(tool.sent(made)) if confirm else None
    _show(tool.written_as_json(made, written) if as_json else tool.render(made, written))


# --- on paper -----------------------------------------------------------------------------------------------


def capture(
    device: Device,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help=".yaml or .json")],
    told: Told,
    ranges: Annotated[
        list[str] | None, typer.Option("--range", metavar="TABLE:FIRST-LAST", help="such as holding:0-99")
    ] = None,
    rounds: Annotated[int, typer.Option(help="how often")] = 1,
    every: Every = "1s",
    rate: Annotated[float, typer.Option(help="questions a second, at most")] = 10.0,
) -> None:
    """Record a device's raw registers with their times; `powerblock playback` serves the file."""
    from controller.commissioning import capture as tool
    from controller.commissioning import files, recording
    from controller.commissioning.target import ToolError, gap_s, period_s

    target, rest = told.target(device)
    if rest:
        raise ToolError(f"{' '.join(rest)!r}: a capture takes all points, or --range")
    made = tool.Capture(
        target, tool.ranges(ranges or []), gap_s=gap_s(rate), rounds=rounds, every_s=period_s(every)
    )
    files.demand_new(output)
    _demand_free(target)
    complete = False
    with _Steps() as step:
        try:
            complete = _interruptible(made.run(step))
        finally:
            if made.recording.reads:
                files.written(output, recording.as_text(made.recording, output.suffix))
                _say(f"written {output}: {len(made.recording.reads)} reads")
    if made.unanswered:
        _say(f"not answered: {made.missing}; try a lower --rate")
    _demand(complete and not made.unanswered)


def playback(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="a file of `powerblock capture`")],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT")] = "127.0.0.1:5020",
    again: Annotated[bool, typer.Option("--again", help="start over at the end")] = False,
) -> None:
    """Serve a recorded device over Modbus TCP until Ctrl-C. Nobody can write to it."""
    from controller.commissioning import playback as tool
    from controller.commissioning import recording
    from controller.commissioning.target import ToolError

    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ToolError(f"--listen {listen!r}: write it like 127.0.0.1:5020")
    taken = recording.loaded(path)
    begun_s = time.monotonic()
    server = tool.server_of(
        taken, lambda: time.monotonic() - begun_s, host=host.strip("[]"), port=int(port), again=again
    )
    recorded = f"unit {taken.unit} of {taken.url}, recorded {taken.began_utc}"

    def say() -> None:
        _say(f"{recorded}, at modbus+tcp://{host}:{server.port}; Ctrl-C ends it")

    try:
        _interruptible(tool.served(server, say))
    except OSError as error:
        raise ToolError(f"--listen {listen}: {error.strerror}; choose another address or port") from error


def checkout(
    block_path: Annotated[Path, typer.Argument(metavar="BLOCK.yaml", help="configuration of the block")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="SHEET", help="writes SHEET.html and SHEET.csv"),
    ] = None,
    devices: Annotated[
        list[str] | None, typer.Option("--device", metavar="NAME", help="only this one; may be repeated")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every point of a block and write the sheet to sign. Status 1 if one fails."""
    from controller.commissioning import checkout as tool
    from controller.commissioning import sheet as paper

    paths = [] if output is None else paper.paths_of(output)
    sheet, targets, configured = tool.begun(block_path, devices or [])
    with _Steps() as step:
        _interruptible(tool.checkout(sheet, targets, configured, step))
    _show(tool.as_json(sheet) if as_json else tool.render(sheet))
    for path in paper.written(sheet, paths):
        _say(f"written {path}")
    _demand(sheet.well)


# --- what they share ----------------------------------------------------------------------------------------


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Spread `told` over an option for each of its fields, and make a sentence of what goes wrong."""
    own = inspect.signature(function).parameters
    spread = inspect.signature(Told).parameters if "told" in own else {}

    @functools.wraps(function)
    def command(**given: Any) -> None:
        if spread:
            given["told"] = Told(**{name: given.pop(name) for name in spread})
        with _Errors():
            function(**given)

    options = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (own | spread).values()]
    command.__signature__ = inspect.Signature([one for one in options if one.name != "told"])  # type: ignore[attr-defined]
    return command


class _Errors:
    """What goes wrong becomes a sentence on stderr and an exit status."""

    def __enter__(self) -> None:
        logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # it logs what it also raises

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from controller.commissioning.target import ToolError
        from protocols.profile import ProfileError
        from protocols.reading import DeviceError

        if isinstance(error, ToolError | ProfileError):
            _leave(str(error), EXIT_BAD_INPUT)
        if isinstance(error, DeviceError):
            _leave(str(error), EXIT_NEGATIVE)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _leave("the output cannot be written: the disk is full", EXIT_NEGATIVE)


class _Steps:
    """What is being done now, on stderr: one line that changes, or in a pipe a line now and then."""

    def __enter__(self) -> Callable[[str], None]:
        self._said_s = time.monotonic()
        self._status = Console(stderr=True).status("") if sys.stderr.isatty() else None
        if self._status is not None:
            self._status.start()
        return self._step

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def _step(self, text: str) -> None:
        if self._status is not None:
            self._status.update(Text(text))
        elif time.monotonic() - self._said_s >= STEP_SAID_S:
            self._said_s = time.monotonic()
            _say(text)


def _run(what: Coroutine[Any, Any, _T]) -> _T:
    try:
        return asyncio.run(_hearing_sigterm(what))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _leave("interrupted", EXIT_NEGATIVE)


def _interruptible(what: Coroutine[Any, Any, None]) -> bool:
    """Run it; False if Ctrl-C ended it."""
    try:
        asyncio.run(_hearing_sigterm(what))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return False
    return True


async def _hearing_sigterm(what: Coroutine[Any, Any, _T]) -> _T:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await what


def _demand(well: object) -> None:
    if not well:
        raise typer.Exit(EXIT_NEGATIVE)


def _demand_free(target: Any) -> None:
    """A device that a running controller holds is not asked beside it. Raises ToolError.

    Of one that is named by its URL that is said, and no more: it may have room for two.
    """
    from controller.commissioning.sources import controller_runs
    from controller.commissioning.target import ToolError

    if target.run_dir is not None and controller_runs(target.run_dir):
        raise ToolError(
            f"{target.name}: a controller runs this block and may hold the device's only connection;"
            " stop it first, or use read and watch, which ask the controller"
        )
    _warn_if_held(target)


def _warn_if_held(target: Any) -> None:
    """Whoever names a device by its URL goes past the controller that may hold its only connection."""
    from controller.commissioning.sources import holder
    from controller.commissioning.target import ToolError

    try:
        held = _run(holder(target, any_unit=True))
    except ToolError:
        _say("warning: a controller runs on this host and may hold this device; only its group may know")
        return
    if held:
        _say(
            f"warning: this host's controller is connected there, for {held}: a second connection may push"
            f" it out; `powerblock read BLOCK.yaml {held}` asks the controller"
        )


def _profile_of(words: list[str], told: Told) -> Any:
    """Of a name or file, of a configured device, or of a device that tells it. Raises ToolError."""
    from controller.commissioning.sources import opened
    from controller.commissioning.target import SCHEME_MARK
    from protocols.profile import load_profile

    if not words or (len(words) == 1 and SCHEME_MARK not in words[0]):
        return load_profile(words[0] if words else told.profile or "")
    target, _ = told.target(words)
    known = target.profile()
    if known is not None:
        return known

    async def asked() -> Any:
        source = await opened(target)
        await source.close()
        return getattr(source, "profile", None) or target.known_profile()

    return _run(asked())


def _show(what: dict[str, Any] | RenderableType) -> None:
    if isinstance(what, dict):
        typer.echo(json.dumps(what, indent=2))
        return
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=PIPE_COLUMNS)
    console.print(what)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _leave(why: str, status: int) -> NoReturn:
    _say(why)
    raise typer.Exit(status)
