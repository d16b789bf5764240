"""``holdfast carry``: batches and receipts on a medium that a person carries.

``carry out`` on an edge puts what waits onto the medium. ``carry in`` at headquarters, or at a
gateway, hands it over and puts receipts beside it. ``carry in`` on the edge takes the receipts.
Exit codes: 0 fine; 1 something was damaged or refused, and is named; 75 not all of it yet: another
medium, or another attempt, takes the rest; 77 the medium or the store cannot be written; 78 the
configuration does not say what this is.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import Progress

from mesh.adapters.carrier.medium import SystemMedium
from mesh.adapters.carrier.outward import RESERVE_BYTES
from mesh.adapters.system import SystemDisk
from nodes import config
from nodes.commands.carry_deliver import deliver_loads
from nodes.commands.carry_out import carry_out
from nodes.commands.carry_outcome import CarryOutcome, Tell
from nodes.commands.carry_receipts import take_receipts
from nodes.commands.process import escaped, fail
from nodes.settings import Settings
from schemas.documents import to_json
from schemas.errors import ConfigurationInvalid, DiskReadOnly, MeshError

__all__ = ["app"]

app = typer.Typer(
    help="Carries batches and receipts where there is no network.", no_args_is_help=True
)

_NICE: Final = 10
_WAIT_SECONDS: Final = 60.0

_Directory = Annotated[
    Path,
    typer.Argument(exists=True, file_okay=False, help="a folder on the medium, or its root"),
]
_Config = Annotated[Path, typer.Option("--config", "-c", help="configuration file (TOML)")]
_Json = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.callback()
def _carry() -> None:
    """Carries batches and receipts where there is no network."""


@app.command()
def out(
    directory: _Directory,
    file: _Config,
    limit: Annotated[
        str | None, typer.Option(help="take at most so much, as bytes or as 500MB, 2GiB")
    ] = None,
    reserve: Annotated[
        str, typer.Option(help="leave so much free on the medium, 8 MiB at least")
    ] = f"{RESERVE_BYTES}B",
    json: _Json = False,
) -> None:
    """Puts what waits in the spool onto the medium; the node may run. Releases nothing."""
    limit_bytes, reserve_bytes = _size("--limit", limit), _size("--reserve", reserve)
    os.nice(_NICE)
    with _failing(), _progress("carrying out") as tell:
        settings = config.load(file)
        disk, medium = SystemDisk(directory), SystemMedium(directory)
        done = carry_out(settings, disk, medium, limit_bytes, reserve_bytes or 0, tell)
    _end(done, directory, json=json)


@app.command(name="in")
def in_(
    directory: _Directory,
    file: _Config,
    wait: Annotated[
        float,
        typer.Option(min=1, max=86_400, help="seconds without progress after which it is given up"),
    ] = _WAIT_SECONDS,
    json: _Json = False,
) -> None:
    """Takes what was carried: batches at headquarters or a gateway, receipts on an edge."""
    with _failing(), _progress("carrying in") as tell:
        settings = config.load(file)
        disk, medium = SystemDisk(directory), SystemMedium(directory)
        if _is_edge(settings, file):
            done = take_receipts(settings, disk, medium)
        else:
            done = deliver_loads(settings, disk, medium, wait, tell)
    _end(done, directory, json=json)


def _end(done: CarryOutcome, directory: Path, *, json: bool) -> NoReturn:
    if json:
        typer.echo(to_json({"directory": str(directory), **done.document}))
    else:
        for line in done.lines:
            typer.echo(escaped(line))
    sys.exit(done.exit_code)


def _is_edge(settings: Settings, file: Path) -> bool:
    """Whether this is a node that takes receipts, not a holder that gives them.

    Raises:
        ConfigurationInvalid: it does not say.
    """
    if settings.headquarters is not None or settings.gateway is not None:
        return False
    if settings.node is None and not settings.uplinks:
        known = "[headquarters], [gateway], [[uplinks]] or [node]"
        problem = f"{file}: {known} is missing: it says what this is"
        raise ConfigurationInvalid((problem,))
    return settings.node is not None


def _size(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        found = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        found = -1
    if found < 0:
        raise typer.BadParameter(f"{option} {text!r} is no size, such as 1000000, 500MB or 2GiB")
    return found


@contextmanager
def _progress(what: str) -> Iterator[Tell]:
    """Shows on a terminal how far it has come, and what it waits for."""
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with bar as progress:
        task = progress.add_task(what, total=None)

        def tell(note: str, done: int, total: int | None) -> None:
            shown = f"{what}: {escaped(note)}"
            progress.update(task, completed=done, total=total, description=shown)

        yield tell


@contextmanager
def _failing() -> Iterator[None]:
    """Tells what is wrong, and where, with the exit code that says whose turn it is."""
    try:
        yield
    except DiskReadOnly as refused:
        hint = "it is mounted read-only, or is not this user's to write"
        fail(DiskReadOnly(f"{refused}: {hint}"))
    except MeshError as error:
        fail(error)
