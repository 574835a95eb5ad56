"""`powerblock-rig`: a power block on the bench.

powerblock-rig run examples/curtailment.yaml       facility, controller and agents; verdict at the end
powerblock-rig serve examples/curtailment.yaml     facility alone; connect your own controller to it
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.live import Live

from firmware_sim.gpu_firmware import FirmwareError, build_library, environment
from firmware_sim.lifetime import RigError
from firmware_sim.live import LiveView, verdict_table
from firmware_sim.report_lock import FILE_NAME, alone_in
from firmware_sim.rig import Outcome, Rig, View
from firmware_sim.scenario import Scenario, ScenarioError, load_scenario

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

EXAMPLES = Path("examples")
EXIT_FAILED = 1
EXIT_CANNOT = 2
NAMES_SHOWN = 12  # all of them are in the report

ScenarioPath = Annotated[Path, typer.Argument(help="scenario file, YAML")]
ReportDir = Annotated[Path, typer.Option("--report", help="folder for verdict, record, plot and logs")]
Command = Annotated[
    Path,
    typer.Option("--powerblock", help="command of the device under test", show_default="beside this Python"),
]


@app.command()
def run(
    scenario_path: ScenarioPath,
    report_dir: ReportDir = Path("demo-report"),
    powerblock: Command = Path(sys.executable).parent / "powerblock",
) -> None:
    """Play a scenario against the real controller and agents; exit status 1 if an expectation failed."""
    console = Console()
    scenario = _load(scenario_path)
    if not powerblock.exists():
        _give_up(
            f"no {powerblock}: install the project into this Python, or name the command with --powerblock"
        )
    with _alone_in(report_dir):
        rig = Rig(scenario, report_dir.absolute(), powerblock)
        outcome = _run(_run_live(rig, scenario, console))
    console.print(verdict_table(outcome))
    for title, names in (("alarms raised", outcome.alarms), ("above their limits", outcome.excesses)):
        if names:
            more = f", and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            console.print(f"{title}:", ", ".join(names[:NAMES_SHOWN]) + more)
    files = sorted(
        path.name for path in outcome.report_dir.iterdir() if path.is_file() and path.name != FILE_NAME
    )
    console.print(f"report: {outcome.report_dir}/", ", ".join(files))
    if not outcome.verdict.passed:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def serve(scenario_path: ScenarioPath, report_dir: ReportDir = Path("demo-report")) -> None:
    """Run the facility alone, print its endpoints, and let time pass until Ctrl-C."""
    scenario = _load(scenario_path)
    with _alone_in(report_dir):
        _run(_serve(Rig(scenario, report_dir.absolute(), None), Console()))


async def _run_live(rig: Rig, scenario: Scenario, console: Console) -> Outcome:
    view = LiveView(scenario, console.width)
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def show(seen: View) -> None:
            if console.is_terminal:
                live.update(view.render(seen))

        return await rig.run(show)


async def _serve(rig: Rig, console: Console) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with rig.facility() as facility:
        for name, value in rig.grid.endpoints().items():
            console.print(f"{name:10} {value}", soft_wrap=True)
        served = {} if rig.scada is None else rig.scada.endpoints()
        for name, value in served.items():
            console.print(f"{name:10} {value}", soft_wrap=True)
        for name, url in rig.device_urls.items():
            console.print(f"{name:10} {url}")
        library = build_library(rig.work_dir)
        for node, memory in facility.memories.items():
            variables = " ".join(f"{key}={value}" for key, value in environment(library, memory.path).items())
            console.print(f"{node:10} {variables}", soft_wrap=True)
        console.print(
            f"configs    {rig.block_path} {' '.join(map(str, rig.node_paths.values()))}", soft_wrap=True
        )
        await stopping.wait()


Result = TypeVar("Result")


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # dumps its last frames when a client hangs up
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: no child may outlive the rig
    try:
        return asyncio.run(work)
    except (RigError, FirmwareError) as error:
        _give_up(str(error))


@contextmanager
def _alone_in(report_dir: Path) -> Iterator[None]:
    try:
        with alone_in(report_dir.absolute()):
            yield
    except RigError as error:
        _give_up(str(error))


def _load(path: Path) -> Scenario:
    try:
        return load_scenario(path)
    except ScenarioError as error:
        _give_up(f"{error}{'' if path.exists() else _others(path)}")


def _others(path: Path) -> str:
    """Scenarios that do exist, for whoever has mistyped one: its folder's, or the examples."""
    found = [str(one) for one in sorted(path.parent.glob("*.yaml")) or sorted(EXAMPLES.glob("*.yaml"))]
    return f"; there are {', '.join(found)}" if found else ""


def _give_up(why: str) -> NoReturn:
    typer.echo(why, err=True)
    raise typer.Exit(EXIT_CANNOT)


if __name__ == "__main__":
    app()
