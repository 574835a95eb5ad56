"""The commands of commissioning; `register` adds them to `powerblock`.

Exit status as everywhere: 0 all is well, 1 the answer is not the one hoped for (nobody answers, a point is
bad, a write is refused, interrupted), 2 bad input. What a program wants goes to stdout, progress and errors
go to stderr.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer
from rich.console import Console, RenderableType

# Each command imports its own part: `powerblock --help` must not wait for driver libraries.

EXIT_NEGATIVE: Final = 1
EXIT_BAD_INPUT: Final = 2
PIPE_COLUMNS: Final = 160  # whoever reads a file of it scrolls sideways
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
ProfileName = Annotated[
    str | None, typer.Option("--profile", metavar="NAME", help="built-in profile, or the path of yours")
]
UnitId = Annotated[int | None, typer.Option("--unit", min=1, max=247, help="unit id; 1 if not given")]
Ca = Annotated[Path | None, typer.Option(help="modbus+tls: who signed the device's certificate")]
Cert = Annotated[Path | None, typer.Option(help="modbus+tls: our certificate")]
Key = Annotated[Path | None, typer.Option(help="modbus+tls: our key")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for programs")]

_T = TypeVar("_T")


def register(app: typer.Typer) -> None:
    """Add the commands of commissioning."""
    for command in (scan, probe, points, read, watch, write, capture, playback, checkout):
        app.command(rich_help_panel=PANEL)(command)


# --- who is there -------------------------------------------------------------------------------------------


def scan(
    where: Annotated[
        list[str],
        typer.Argument(metavar="HOST|URL...", help="10.0.0.7, 10.0.0.7-20, or modbus+rtu:///dev/ttyUSB0"),
    ],
    units: Annotated[str, typer.Option(metavar="RANGE", help="unit ids, such as 1-20,33")] = "1",
    ports: Annotated[str, typer.Option(metavar="RANGE", help="TCP ports of hosts; 4840 is OPC UA")] = "502",
    rate: Annotated[float, typer.Option(help="questions a second, at most")] = 4.0,
    as_json: AsJson = False,
) -> None:
    """Look which units answer: slowly, one connection at a time, reads alone. Status 1 if none does."""
    from controller.commissioning import scan as tool

    with _Errors():
        places = tool.places(where, tool.numbers(ports, "--ports", 1, 65_535))
        ids = tool.numbers(units, "--units", 1, tool.UNIT_MAX)
        survey = tool.planned(places, ids, rate)
        _say(f"{survey.of} questions at {len(places)} places; Ctrl-C ends it and shows what was found")
    with _Steps() as step:
        _interruptible(
            tool.scan(
                places,
                ids,
                survey,
                rate_per_s=rate,
                on_step=lambda text: step(f"{survey.done}/{survey.of}  {text}"),
            )
        )
    _show(tool.as_json(survey) if as_json else tool.render(survey))
    if not (survey.complete and survey.found):
        raise typer.Exit(EXIT_NEGATIVE)


def probe(
    device: Device,
    profile: Annotated[
        str | None, typer.Option("--profile", metavar="NAME", help="try this one alone")
    ] = None,
    unit: UnitId = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Find out what a device is, and what to paste into block.yaml. Status 1 if nothing fits."""
    from controller.commissioning import probe as modbus
    from controller.commissioning import probe_opcua as opcua
    from controller.commissioning.target import ToolError, parsed

    with _Errors():
        target, rest = parsed(device, unit=unit, tls=(ca, cert, key))
        if rest:
            raise ToolError(f"{' '.join(rest)!r}: a probe takes a device and no points; remove it")
        _checked_profile(profile)
        _free(target)
    kind: Any = opcua if target.config.is_opcua else modbus
    place = {} if target.config.is_opcua else {"unit": target.config.unit}
    found = kind.Found(where=target.where, url=target.config.url, **place)
    with _Errors(), _Steps() as step:
        complete = _interruptible(kind.probe(target, found, profile, step))
    about = (found, target) if target.config.is_opcua else (found,)
    _show(kind.as_json(*about) if as_json else kind.render(*about))
    if not (complete and found.well):
        raise typer.Exit(EXIT_NEGATIVE)


def points(
    device: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROFILE | URL | BLOCK.yaml DEVICE]", help="none: list all profiles"),
    ] = None,
    profile: ProfileName = None,
    unit: UnitId = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show what a profile knows: address, type, range, access and evidence of each point."""
    from controller.commissioning import points as tool

    if not device and profile is None:
        _show(tool.all_as_json() if as_json else tool.render_all())
        return
    with _Errors():
        found = _profile_of(device or [], profile, unit, (ca, cert, key))
    _show(tool.as_json(found) if as_json else tool.render(found))


# --- values -------------------------------------------------------------------------------------------------


def read(
    device: Words,
    profile: ProfileName = None,
    unit: UnitId = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Read points once, with quality and raw registers. Status 1 if one of them is not good."""
    from controller.commissioning import reading as tool
    from controller.commissioning.target import parsed

    with _Errors():
        target, names = parsed(device, profile=profile, unit=unit, tls=(ca, cert, key))
        seen = _run(tool.look(target, names))
    _show(seen.as_json() if as_json else tool.render(seen))
    if not seen.well:
        raise typer.Exit(EXIT_NEGATIVE)


def watch(
    device: Words,
    every: Annotated[str, typer.Option(metavar="TIME", help="between two looks: 1s, 500ms, 2m")] = "1s",
    profile: ProfileName = None,
    unit: UnitId = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Watch points until Ctrl-C: a live table, or plain lines in a pipe."""
    from controller.commissioning import reading as tool
    from controller.commissioning.target import ToolError, parsed

    with _Errors():
        try:
            every_s = tool.seconds(every)
        except ValueError as error:
            raise ToolError(f"--every: {error}") from error
        target, names = parsed(device, profile=profile, unit=unit, tls=(ca, cert, key))
        watching = tool.Watch(target, names, every_s)
        console = Console()
        if as_json or not console.is_terminal:
            _interruptible(_print_lines(watching, as_json))
        else:
            _interruptible(_draw(watching, console))


async def _print_lines(watching: Any, as_json: bool) -> None:
    from controller.commissioning.reading import lines

    async for seen in watching.looks():
        typer.echo(json.dumps(seen.as_json()) if as_json else lines(seen))


async def _draw(watching: Any, console: Console) -> None:
    from rich.live import Live

    from controller.commissioning.reading import render_watch

    with Live(console=console, screen=True, auto_refresh=False) as live:
        async for seen in watching.looks():
            live.update(render_watch(seen, watching.seen), refresh=True)


def write(
    device: Annotated[
        list[str],
        typer.Argument(
            metavar="URL|BLOCK.yaml DEVICE... POINT VALUE", help="the device, the point, its value"
        ),
    ],
    confirm: Annotated[bool, typer.Option("--confirm", help="send it; without, only show it")] = False,
    profile: ProfileName = None,
    unit: UnitId = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show what a write would send; with --confirm send it, read it back and compare."""
    from controller.commissioning import writing as tool
    from controller.commissioning.target import ToolError, parsed

    with _Errors():
        target, rest = parsed(device, profile=profile, unit=unit, tls=(ca, cert, key))
        if len(rest) != 2:
            raise ToolError(
                f"give the point and its value after the device, not {' '.join(rest) or 'nothing'!r}"
            )
        made = _run(tool.plan(target, *rest))
        written = _run(tool.sent(made)) if confirm else None
    _show(tool.written_as_json(made, written) if as_json else tool.render(made, written))


# --- on paper -----------------------------------------------------------------------------------------------


def capture(
    device: Device,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help=".yaml or .json")],
    ranges: Annotated[
        list[str] | None, typer.Option("--range", metavar="TABLE:FIRST-LAST", help="such as holding:0-99")
    ] = None,
    rounds: Annotated[int, typer.Option(help="how often")] = 1,
    every: Annotated[str, typer.Option(metavar="TIME", help="from one round to the next")] = "1s",
    rate: Annotated[float, typer.Option(help="questions a second, at most")] = 10.0,
    profile: ProfileName = None,
    unit: UnitId = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
) -> None:
    """Record a device's raw registers with their times; `powerblock playback` serves the file."""
    from controller.commissioning import capture as tool
    from controller.commissioning import recording
    from controller.commissioning.reading import seconds
    from controller.commissioning.target import ToolError, parsed

    with _Errors():
        target, rest = parsed(device, profile=profile, unit=unit, tls=(ca, cert, key))
        if rest:
            raise ToolError(f"{' '.join(rest)!r}: a capture takes all points, or --range")
        if output.exists():
            raise ToolError(f"{output} exists; choose another name, or remove it")
        if not 0.0 < rate <= 50.0:
            raise ToolError(f"--rate: {rate:g}; use more than 0, 50 questions a second at most")
        try:
            every_s = seconds(every)
        except ValueError as error:
            raise ToolError(f"--every: {error}") from error
        _free(target)
        made = tool.Capture(
            target, tool.ranges(ranges or []), gap_s=1.0 / rate, rounds=rounds, every_s=every_s
        )
        with _Steps() as step:
            try:
                complete = _interruptible(made.run(step))
            finally:
                if made.recording.reads:
                    recording.written(made.recording, output)
                    _say(f"written {output}: {len(made.recording.reads)} reads")
    if made.unanswered:
        _say(f"not answered: {made.missing}; try a lower --rate")
    if made.unanswered or not complete:
        raise typer.Exit(EXIT_NEGATIVE)


def playback(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="a file of `powerblock capture`")],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT")] = "127.0.0.1:5020",
    again: Annotated[bool, typer.Option("--again", help="start over at the end")] = False,
) -> None:
    """Serve a recorded device over Modbus TCP until Ctrl-C. Nobody can write to it."""
    import time

    from controller.commissioning import playback as tool
    from controller.commissioning import recording
    from controller.commissioning.target import ToolError

    with _Errors():
        host, _, port = listen.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65_535:
            raise ToolError(f"--listen {listen!r}: write it like 127.0.0.1:5020")
        taken = recording.loaded(path)
        begun_s = time.monotonic()
        server = tool.server_of(
            taken, lambda: time.monotonic() - begun_s, host=host.strip("[]"), port=int(port), again=again
        )
        recorded = f"unit {taken.unit} of {taken.url}, recorded {taken.began_utc}"
        _say(f"{recorded}, at modbus+tcp://{listen}; Ctrl-C ends it")
        try:
            _interruptible(server.run())
        except OSError as error:
            raise ToolError(f"--listen {listen}: {error.strerror}; choose another port") from error


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

    with _Errors():
        paths = [] if output is None else paper.paths_of(output)
        sheet, targets, configured = tool.begun(block_path, devices or [])
        with _Steps() as step:
            _interruptible(tool.checkout(sheet, targets, configured, step))
        paper.written(sheet, paths)
    _show(tool.as_json(sheet) if as_json else tool.render(sheet, paths))
    if not sheet.well:
        raise typer.Exit(EXIT_NEGATIVE)


# --- what they share ----------------------------------------------------------------------------------------


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


class _Steps:
    """What is being done now, on stderr: one line that changes, or nothing in a pipe."""

    def __enter__(self) -> Callable[[str], None]:
        self._status = Console(stderr=True).status("") if sys.stderr.isatty() else None
        if self._status is not None:
            self._status.start()
        return self._step

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def _step(self, text: str) -> None:
        if self._status is not None:
            self._status.update(text)


def _run(what: Coroutine[Any, Any, _T]) -> _T:
    try:
        return asyncio.run(what)
    except KeyboardInterrupt:
        _leave("interrupted", EXIT_NEGATIVE)


def _interruptible(what: Coroutine[Any, Any, None]) -> bool:
    """Run it; False if Ctrl-C ended it."""
    try:
        asyncio.run(what)
    except KeyboardInterrupt:
        return False
    return True


def _free(target: Any) -> None:
    """A device that a running controller holds is not asked beside it. Raises ToolError."""
    from controller.commissioning.sources import controller_runs
    from controller.commissioning.target import ToolError

    if target.run_dir is not None and controller_runs(target.run_dir):
        raise ToolError(
            f"{target.name}: a controller runs this block and may hold the device's only connection;"
            " stop it first, or use read and watch, which ask the controller"
        )


def _checked_profile(name: str | None) -> None:
    """Raises ProfileError."""
    from protocols.profile import load_profile

    if name is not None:
        load_profile(name)


def _profile_of(words: list[str], name: str | None, unit: int | None, tls: tuple[Path | None, ...]) -> Any:
    """Of a name or file, of a configured device, or of a device that tells it. Raises ToolError."""
    from controller.commissioning.sources import opened
    from controller.commissioning.target import SCHEME_MARK, parsed
    from protocols.profile import load_profile

    if not words or (len(words) == 1 and SCHEME_MARK not in words[0]):
        return load_profile(words[0] if words else name or "")
    target, _ = parsed(words, profile=name, unit=unit, tls=tls)
    known = target.profile()
    if known is not None:
        return known

    async def told() -> Any:
        source = await opened(target)
        await source.close()
        return getattr(source, "profile", None) or target.known_profile()

    return _run(told())


def _show(what: dict[str, Any] | RenderableType) -> None:
    if isinstance(what, dict):
        typer.echo(json.dumps(what, indent=2))
        return
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=PIPE_COLUMNS)
    console.print(what)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _leave(why: str, status: int) -> NoReturn:
    _say(why)
    raise typer.Exit(status)
