"""``holdfast demo``: real processes, a cut network, and an account computed from outside."""

import asyncio
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import orjson
import typer

from nodes.commands.process import fail
from schemas.errors import ExitCode, MeshError
from simulator.demo.script import Kill

__all__ = ["demo"]


def demo(
    seconds: Annotated[float, typer.Option(help="how long the plant runs", max=86_400)] = 30.0,
    outage: Annotated[float, typer.Option(help="for how many of these the network is cut")] = 12.0,
    rate: Annotated[float, typer.Option(help="readings a second", min=1, max=20_000)] = 500.0,
    seed: Annotated[int, typer.Option(help="of the plant", min=0)] = 7,
    kill: Annotated[
        Kill, typer.Option(help="what is killed with SIGKILL, and restarted")
    ] = Kill.NONE,
    directory: Annotated[
        Path | None, typer.Option(help="keep everything that the run writes in this new folder")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON object, no screen")] = False,
) -> None:
    """Runs edge, WAN and headquarters as processes, cuts the network, accounts for every record.

    Ends with 0 when every identity is accounted for and decisions kept their rate during the
    outage, with 1 otherwise.
    """
    # What a screen and an audit need is loaded here, so that other commands start without it.
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    from simulator.demo import screen  # noqa: PLC0415
    from simulator.demo.run import Progress, Settings, run  # noqa: PLC0415
    from simulator.demo.script import plan  # noqa: PLC0415

    try:
        plan(seconds, outage, kill)
    except ValueError as wrong:
        raise typer.BadParameter(str(wrong)) from wrong
    if directory is not None and directory.exists():
        raise typer.BadParameter(f"{directory} is there already; name a new folder")
    root = directory or Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{root} cannot be made: {error.strerror}") from error
    settings = Settings(root.resolve(), seconds, outage, rate, seed, kill)
    console = Console(stderr=json)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    try:
        if json:
            outcome, lanes = asyncio.run(run(settings, lambda _: None))
        else:
            with Live(console=console, refresh_per_second=8, transient=True) as view:

                def show(now: Progress) -> None:
                    view.update(screen.live(now, seconds))

                outcome, lanes = asyncio.run(run(settings, show))
        if json:
            sys.stdout.buffer.write(
                orjson.dumps(asdict(outcome), option=orjson.OPT_INDENT_2) + b"\n"
            )
        else:
            screen.verdict(console, outcome, lanes)
    except MeshError as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.FAILED) from None
    finally:
        if directory is None:
            shutil.rmtree(root, ignore_errors=True)
    if outcome.failures:
        raise typer.Exit(ExitCode.FAILED)
