"""`powerblock`: one program for everything on the block.

On the hosts: run (block controller or gateway), serve (OPC UA, Modbus,
DSX Exchange, metrics), agent (on every GPU host).
For people: check, status, alarms, grouping, signals, explain, replay, map;
they read and touch nothing. command and shed are the block's own panel.
On site, with field devices: scan, probe, points, read, watch, write, capture,
playback, checkout; only write --confirm changes anything.
For benches: agent-farm, the agents of many nodes in one process.

Exit status: 0 all is well; 2 bad input, or what keeps a program from
starting, named on stderr with its remedy; 1 the answer is not the one hoped
for: controller not running, a signal refused, a decision that differs.
"""

import json
import time
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn

import typer
from rich.console import Console, RenderableType

from controller.commissioning.cli import register

# The daemon must not carry what only the views need, nor the views a driver library: each command imports
# its own part.

EXIT_NEGATIVE: Final = 1
EXIT_BAD_INPUT: Final = 2
REFRESH_S: Final = 0.25  # the controller writes as often
RUN_DIR: Final = Path("/run/powerblock")  # as the systemd unit makes it
SIGNAL_MAX_BYTES: Final = 1024 * 1024  # four times what the wire accepts; the parser says the rest

COMMAND_HELP: Final = """\
Have something done, as from the block's own panel. Status 1 if it is refused.

\b
VERB               NAME=VALUE ...   (? may be left out)
set_power_limit    limit_w ramp_w_per_s? valid_for_s? priority?
                   heartbeat_timeout_s? then_w?
release            priority? writer?
shed               level? number? valid_for_s?
end_shed           writer?
write              device point value
withdraw           device
set_mode           mode
heartbeat
acknowledge        key?
reset              key?
shelve             key for_s reason?
unshelve           key?
out_of_service     key reason?
return_to_service  key?

mode is remote, local or off; key is an alarm's, as `powerblock alarms` shows it, left out: all. What each
of them means: docs/operations.md.
"""

app = typer.Typer(name="powerblock", add_completion=False, no_args_is_help=True, help=__doc__)

register(app)

BlockPath = Annotated[Path, typer.Argument(metavar="BLOCK.yaml", help="configuration of the block")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for programs")]


@app.command()
def run(
    block_path: BlockPath,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="lead even if another controller of this block lives")
    ] = False,
) -> None:
    """Control the block until SIGTERM or Ctrl-C. A stop raises no power.

    Status 2 if it cannot start, as when another controller leads the block.
    """
    from controller.service import main

    raise typer.Exit(main(block_path, take_over=take_over))


@app.command()
def serve(block_path: BlockPath) -> None:
    """Serve the block to SCADA, DSX Exchange and monitoring until SIGTERM or Ctrl-C."""
    from controller.facility.serve import main

    raise typer.Exit(main(block_path))


@app.command()
def agent(
    node_path: Annotated[Path, typer.Argument(metavar="NODE.yaml", help="configuration of this GPU host")],
    observe: Annotated[bool, typer.Option("--observe", help="read and report, never write a limit")] = False,
    restore: Annotated[
        bool, typer.Option("--restore", help="put limits, clocks and profiles back as found, and end")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="with --restore: only show it")] = False,
    wait_s: Annotated[
        float | None,
        typer.Option(
            "--wait",
            metavar="SECONDS",
            min=0,
            max=3600,
            help="with --restore: how long before a limit rises; left out: 35, until any controller counts"
            " on it. 0 where none counts this host",
        ),
    ] = None,
) -> None:
    """Obey the controller on this GPU host, and fall back by itself when it is not heard."""
    import asyncio

    from controller.agent import observing
    from controller.agent import restore as restoring
    from controller.agent.service import main

    if dry_run and not restore:
        _give_up("--dry-run belongs to --restore; to run an agent that writes nothing use --observe")
    if wait_s is not None and not restore:
        _give_up("--wait belongs to --restore")
    if restore and observe:
        _give_up("--restore writes and --observe never does: give one of them")
    if restore:
        raise typer.Exit(
            restoring.main(node_path, dry_run=dry_run, wait_s=restoring.WAIT_S if wait_s is None else wait_s)
        )
    if observe:
        _load_node(node_path)  # what is wrong with it is said before anybody waits for a driver
        if why := asyncio.run(observing.driver_fault()):
            _negative(f"nothing to observe: {why}")
    raise typer.Exit(main(node_path, observe))


@app.command("agent-farm")
def agent_farm(
    farm_path: Annotated[Path, typer.Argument(metavar="FARM.yaml", help="nodes, one node.yaml each")],
) -> None:
    """Run the agents of many nodes in one process: for benches and rehearsals, not for hosts."""
    from controller.agent.farm import main

    raise typer.Exit(main(farm_path))


@app.command()
def check(block_path: BlockPath, as_json: AsJson = False) -> None:
    """Check a block.yaml or node.yaml and show what it means, or everything that is wrong with it."""
    from controller.config import BlockConfig
    from controller.views import check, check_gateway, check_node, check_scenario

    if check_scenario.is_scenario(block_path):
        _give_up(check_scenario.sentence(block_path))
    if check_node.is_of_node(block_path):
        node = _load_node(block_path)
        typer.echo(node.model_dump_json() if as_json else check_node.sentence(node))
        unfit = list(check_node.unfit(node))
    else:
        config = _load_any(block_path)
        view: Any = check if isinstance(config, BlockConfig) else check_gateway
        _show(view.as_json(config) if as_json else view.render(config))
        unfit = list(view.unfit(config))
    for sentence in unfit:
        typer.echo(f"{block_path.name}: {sentence}", err=True)
    if unfit:
        raise typer.Exit(EXIT_NEGATIVE)


@app.command()
def status(
    block_path: Annotated[
        Path | None, typer.Argument(metavar="[BLOCK.yaml]", help="names the run directory")
    ] = None,
    run_dir: Annotated[Path, typer.Option(help="where the controller writes its status")] = RUN_DIR,
    once: Annotated[bool, typer.Option("--once", help="show it once; so does a pipe")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch the controller: power, budget, what binds and why. With --once, status 1 if it is not running."""
    from controller.clock import now_utc_s
    from controller.views import status as view

    guessed = block_path is None
    if block_path is not None:
        run_dir = _load_any(block_path).run_dir
    path, console = run_dir / "status.json", Console()
    if not (once or as_json) and console.is_terminal:
        _watch(console, path, guessed=guessed)
        return
    seen = view.look(path, now_utc_s(), guessed=guessed)
    _show(view.as_json(seen) if as_json else view.render(seen, now_utc_s(), console.width))
    if seen.fault:
        raise typer.Exit(EXIT_NEGATIVE)


@app.command()
def alarms(block_path: BlockPath, as_json: AsJson = False) -> None:
    """Show the alarms of a running block and what to do about them. Status 1 if it is not running."""
    from controller.clock import now_utc_s
    from controller.views import alarms as view
    from controller.views.status import look

    seen = look(_load_any(block_path).run_dir / "status.json", now_utc_s())
    _show(view.as_json(seen.told) if as_json else view.render(seen.told, now_utc_s(), Console().width))
    if seen.fault:
        _negative(seen.fault)


@app.command()
def grouping(
    block_path: BlockPath,
    propose: Annotated[
        bool, typer.Option("--propose", help="print the racks as found, for block.yaml; changes nothing")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show which GPUs are not who or where block.yaml says.

    Status 1 if some are, a node has not told its GPUs yet, or nothing is running.
    """
    from controller.clock import now_utc_s
    from controller.views import grouping as view
    from controller.views.status import look
    from controller.yaml_config import parse

    config = _load(block_path)
    run_dir = config.run_dir
    try:
        told = view.look(run_dir)
    except view.GroupingError as error:
        _negative(str(error))
    missing = view.untold(told, [node.name for node in config.nodes])
    if propose:
        typer.echo(view.propose(told, parse(block_path)["racks"], missing), nl=False)
    else:
        _show(view.as_json(told) if as_json else view.render(told, missing))
    fault = look(run_dir / "status.json", now_utc_s()).fault
    if fault:
        _negative(fault)
    if missing or (told["mismatches"] and not propose):
        raise typer.Exit(EXIT_NEGATIVE)


@app.command(help=COMMAND_HELP)
def command(
    block_path: BlockPath,
    verb: Annotated[
        str, typer.Argument(metavar="VERB", help="set_power_limit, release, set_mode, acknowledge ...")
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="such as limit_w=9000 valid_for_s=600"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    import asyncio

    from controller.image.model import Result
    from controller.views import command as view

    run_dir = _run_dir(block_path)
    try:
        wanted = view.parsed(verb, arguments or [])
    except view.CommandError as error:
        _give_up(str(error))
    try:
        outcome = asyncio.run(view.carry_out(run_dir, wanted))
    except view.CommandError as error:
        _negative(str(error))
    _show(view.as_json(outcome) if as_json else view.render(outcome))
    if outcome.result is Result.REJECTED:
        raise typer.Exit(EXIT_NEGATIVE)


@app.command()
def shed(
    block_path: BlockPath,
    level: Annotated[str | None, typer.Argument(metavar="[LEVEL]", help="as in `shed.levels`")] = None,
    valid_for: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="how long: 90s, 10m, 2h; else until --end")
    ] = None,
    end: Annotated[bool, typer.Option("--end", help="withdraw the call")] = False,
    writer: Annotated[
        str | None, typer.Option("--of", metavar="WRITER", help="whose call to withdraw: 'opcua alice'")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Call a level of shedding at once, as from the block's own panel; or show them, and the last call."""
    import asyncio

    from controller.clock import now_utc_s
    from controller.image.model import Result
    from controller.views import command as panel
    from controller.views import shed as view
    from controller.views.status import look

    run_dir = _run_dir(block_path)
    try:
        wanted = view.wanted(level, valid_for, end=end, writer=writer)
    except panel.CommandError as error:
        _give_up(str(error))
    if wanted is not None:
        outcome = asyncio.run(panel.carry_out(run_dir, wanted))
        _show(panel.as_json(outcome) if as_json else panel.render(outcome))
        if outcome.result is Result.REJECTED:
            raise typer.Exit(EXIT_NEGATIVE)
        return
    config = _load(block_path)
    seen = look(config.run_dir / "status.json", now_utc_s())
    _show(view.as_json(seen.told) if as_json else view.render(seen.told, now_utc_s(), config.shed))
    if seen.fault:
        _negative(seen.fault)


@app.command()
def signals(
    block_path: BlockPath,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="how far back: 15m, 2h, 1d, or 2026-11-21T18:00:00Z")
    ] = "1d",
    as_json: AsJson = False,
) -> None:
    """Show every signal received, accepted or refused and why, and what came of it."""
    from controller.clock import now_utc_s
    from controller.views import signals as view

    now = now_utc_s()
    try:
        since_utc_s = view.moment_of(since, now)
    except ValueError:
        _give_up(f"--since: {since!r} is no time; write 15m, 2h, 1d, or one like 2026-11-21T18:00:00Z")
    try:
        lines = view.look(_load(block_path).state_dir, since_utc_s)
    except view.HistoryError as error:
        _give_up(str(error))
    _show(view.as_json(lines) if as_json else view.render(lines, now))


@app.command()
def explain(
    signal_paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="SIGNAL.json...", help="OpenADR events, DSX load targets, in order of arrival"
        ),
    ],
    block_path: Annotated[
        Path | None, typer.Option("--block", metavar="BLOCK.yaml", help="add what was agreed, and its ramps")
    ] = None,
    now: Annotated[
        str | None, typer.Option(metavar="TIME", help="moment of arrival, such as 2026-11-21T18:00:00Z")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what signals of either standard would do, as a time line of limits. Status 1 if one is refused."""
    from controller.views import explain as view
    from controller.yaml_config import ConfigError

    config = None if block_path is None else _load(block_path)
    signals = [(path.name, _content(path)) for path in signal_paths]
    try:
        found = view.explain(signals, _moment(now), config)
    except ConfigError as error:  # a file of keys that the configuration names
        _give_up(str(error))
    _show(view.as_json(found) if as_json else view.render(found))
    if found.refused:
        raise typer.Exit(EXIT_NEGATIVE)


@app.command("map")
def map_(
    block_path: BlockPath,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="its ending says what: .csv, .md or .xlsx")
    ],
) -> None:
    """Write the Modbus register map that `facility.modbus` serves. SunSpec devices: while they are read."""
    from controller.facility.modbus.export import INCOMPLETE, notes, write
    from controller.facility.modbus.shown import register_map
    from controller.views import register_map as view

    config = _load_any(block_path)
    groups = view.groups_of(config)
    registers, unknown = register_map(groups), view.unknown(groups)
    try:
        write(out, registers, list(notes(registers, config.block, unknown)))
    except (ValueError, OSError) as error:
        _give_up(f"{out}: {error}")
    if unknown:
        typer.echo(f"{out}: not whole: {', '.join(unknown)}: {INCOMPLETE}", err=True)


@app.command()
def password(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the user, as the client says it")],
    role: Annotated[
        Literal["observe", "operate", "engineer"], typer.Option(help="what the user may")
    ] = "observe",
) -> None:
    """Ask for a password and print the user's line for the file that `facility.opcua.users` names."""
    from pydantic import ValidationError

    from controller.facility.opcua.users import PASSWORD_MAX_CHARS, User, hashed

    said = typer.prompt("password", hide_input=True, confirmation_prompt=True)
    if len(said) > PASSWORD_MAX_CHARS:
        _give_up(f"more than {PASSWORD_MAX_CHARS} characters; choose a shorter one")
    try:
        user = User(name=name, role=role, password=hashed(said))
    except ValidationError as error:
        _give_up(f"NAME: {error.errors()[0]['msg']}")
    typer.echo(f"  - {json.dumps(user.model_dump(exclude_none=True))}")


@app.command()
def replay(
    journal_path: Annotated[Path, typer.Argument(metavar="JOURNAL", help="one journal file")],
    listed_max: Annotated[int, typer.Option("--max", min=0, help="differences listed")] = 20,
    as_json: AsJson = False,
) -> None:
    """Run recorded beats through today's law. Status 1 if it decides differently."""
    from controller.journal import JournalError
    from controller.views import replay as view

    try:
        outcome = view.replay(journal_path, listed_max)
    except JournalError as error:
        _give_up(str(error))
    _show(view.as_json(outcome) if as_json else view.render(outcome))
    if outcome.fault:
        _give_up(outcome.fault)
    if outcome.beats_differing:
        raise typer.Exit(EXIT_NEGATIVE)


def _watch(console: Console, path: Path, *, guessed: bool) -> None:
    """Draw until Ctrl-C."""
    from rich.live import Live

    from controller.clock import now_utc_s
    from controller.views import status as view

    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                now = now_utc_s()
                seen = view.look(path, now, guessed=guessed)
                live.update(view.render(seen, now, console.width), refresh=True)
                time.sleep(REFRESH_S)
        except KeyboardInterrupt:
            return


def _load(path: Path) -> Any:
    """A block with GPUs."""
    from controller.config import ConfigError, load_block

    try:
        return load_block(path)
    except ConfigError as error:
        _give_up(str(error))


def _run_dir(path: Path) -> Path:
    """Where the controller of a block.yaml is; nothing else is read, since an emergency may not wait."""
    from controller.yaml_config import ConfigError, run_dir_of

    try:
        return run_dir_of(path)
    except ConfigError as error:
        _give_up(str(error))


def _load_any(path: Path) -> Any:
    """A block with or without."""
    from controller.config import ConfigError, load_config

    try:
        return load_config(path)
    except ConfigError as error:
        _give_up(str(error))


def _load_node(path: Path) -> Any:
    from controller.agent.config import ConfigError, load_node

    try:
        return load_node(path)
    except ConfigError as error:
        _give_up(str(error))


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(SIGNAL_MAX_BYTES)
    except OSError as error:
        _give_up(f"{path}: cannot be read: {error.strerror}; check the path and its permissions")


def _moment(now: str | None) -> float:
    from controller.clock import now_utc_s
    from protocols.openadr import OpenAdrError, parse_time

    try:
        return now_utc_s() if now is None else parse_time(now, "--now")
    except OpenAdrError as error:
        _give_up(str(error))


def _show(what: dict[str, Any] | RenderableType) -> None:
    if isinstance(what, dict):
        print(json.dumps(what, indent=2))
    else:
        Console().print(what)


def _negative(why: str) -> NoReturn:
    typer.echo(why, err=True)
    raise typer.Exit(EXIT_NEGATIVE)


def _give_up(why: str) -> NoReturn:
    typer.echo(why, err=True)
    raise typer.Exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    app()
