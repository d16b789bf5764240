"""``holdfast demo``: real processes, a cut network, and an account computed from outside."""

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import orjson
import typer

from nodes.commands.process import fail
from schemas.errors import ExitCode, MeshError
from simulator.demo.script import Kill, plan
from simulator.demo.site.script import site_plan

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from simulator.demo.outcome import Outcome
    from simulator.demo.site.outcome import SiteOutcome

__all__ = ["Topology", "demo"]

# How long the plant runs, for how long the network is cut, readings a second (at each edge).
_DEFAULTS: Final = {"edge": (30.0, 12.0, 500.0), "site": (40.0, 10.0, 150.0)}


class Topology(StrEnum):
    """What is run."""

    EDGE = "edge"
    SITE = "site"


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was asked for."""

    root: Path
    seconds: float
    outage: float
    rate: float
    seed: int
    json: bool

    @property
    def console(self) -> "Console":
        """Where a person looks."""
        from rich.console import Console  # noqa: PLC0415

        return Console()


def demo(
    topology: Annotated[
        Topology,
        typer.Option(
            help="an edge and headquarters; or a site: three edges, a gateway, three JetStream "
            "servers and two workers, all of which are killed"
        ),
    ] = Topology.EDGE,
    seconds: Annotated[
        float | None, typer.Option(help="how long the plant runs; 30, a site's 40", max=86_400)
    ] = None,
    outage: Annotated[
        float | None,
        typer.Option(help="for how many of these the network is cut; 12, a site's 10"),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="readings a second; 500, in a site 150 at each edge", min=1, max=20_000),
    ] = None,
    seed: Annotated[int, typer.Option(help="of the plant", min=0)] = 7,
    kill: Annotated[
        Kill, typer.Option(help="what is killed with SIGKILL, and restarted; of an edge")
    ] = Kill.NONE,
    directory: Annotated[
        Path | None, typer.Option(help="keep everything that the run writes in this new folder")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON object, no screen")] = False,
) -> None:
    """Runs edges, WAN and headquarters as processes, cuts the network, accounts for every record.

    Ends with 0 when every identity is accounted for and decisions kept their rate during the
    outage, with 1 otherwise.
    """
    given = (seconds, outage, rate)
    seconds, outage, rate = (
        default if value is None else value
        for value, default in zip(given, _DEFAULTS[topology], strict=True)
    )
    if topology is Topology.SITE and kill is not Kill.NONE:
        raise typer.BadParameter("a site is killed by its own script: leave --kill away")
    try:
        if topology is Topology.SITE:
            site_plan(seconds, outage)
        else:
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
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    asked = _Asked(root.resolve(), seconds, outage, rate, seed, json)
    try:
        failures = _play_site(asked) if topology is Topology.SITE else _play_edge(asked, kill)
    except MeshError as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.FAILED) from None
    finally:
        if directory is None:
            shutil.rmtree(root, ignore_errors=True)
    if failures:
        raise typer.Exit(ExitCode.FAILED)


# What screens and audits need is loaded here, so that other commands start without it.


def _play_edge(asked: "_Asked", kill: Kill) -> Sequence[str]:
    """Runs an edge and headquarters; what is not as it must be."""
    from simulator.demo import screen  # noqa: PLC0415
    from simulator.demo.run import Settings, run  # noqa: PLC0415

    settings = Settings(asked.root, asked.seconds, asked.outage, asked.rate, asked.seed, kill)
    with _view(asked) as update:
        outcome, lanes = asyncio.run(
            run(settings, lambda now: update(screen.live(now, asked.seconds)))
        )
    _tell(asked, outcome, lambda console: screen.verdict(console, outcome, lanes))
    return outcome.failures


def _play_site(asked: "_Asked") -> Sequence[str]:
    """Runs a site; what is not as it must be."""
    from simulator.demo.site import screen  # noqa: PLC0415
    from simulator.demo.site.run import SiteSettings, run_site  # noqa: PLC0415

    settings = SiteSettings(asked.root, asked.seconds, asked.outage, asked.rate, asked.seed)
    with _view(asked) as update:
        outcome, lanes = asyncio.run(
            run_site(settings, lambda now: update(screen.live(now, asked.seconds)))
        )
    _tell(asked, outcome, lambda console: screen.verdict(console, outcome, lanes))
    return outcome.failures


@contextmanager
def _view(asked: "_Asked") -> "Iterator[Callable[[RenderableType], None]]":
    """Where frames are shown; nowhere when JSON was asked for."""
    from rich.live import Live  # noqa: PLC0415

    if asked.json:
        yield lambda _: None
        return
    with Live(console=asked.console, refresh_per_second=8, transient=True) as view:
        yield view.update


def _tell(
    asked: "_Asked", outcome: "Outcome | SiteOutcome", verdict: Callable[["Console"], None]
) -> None:
    if asked.json:
        document = orjson.dumps(asdict(outcome), option=orjson.OPT_INDENT_2)
        sys.stdout.buffer.write(document + b"\n")
    else:
        verdict(asked.console)
