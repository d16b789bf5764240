"""``holdfast spool``: how a spool stands, what its files hold, whether they are sound, its records.

Each of these works beside a running node, on a medium that is mounted read-only, and for anybody
who may read: no lock is taken and nothing is written. Exit codes: 0 fine; 1 damage was found; 75
the node was too busy, try again; 77 permission to read is missing; 78 there is no spool there, or
it is of a format that is not known here.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import Progress

from mesh.adapters.system import SystemClock, SystemDisk
from mesh.ports import Disk
from mesh.spool.settings import DEFAULT_LANES
from mesh.spool.view.extract import Extracted, Wanted, extract
from mesh.spool.view.findings import Finding
from mesh.spool.view.inspection import FileKind, inspect
from mesh.spool.view.onlooker import ReadOnlyDisk
from mesh.spool.view.outlook import Outlook, outlook
from mesh.spool.view.sight import Sight, look
from mesh.spool.view.verdict import Step, examine
from nodes import config
from nodes.commands.owner import owner_of
from nodes.commands.process import escaped, fail, told
from nodes.commands.reported import Report, ask
from nodes.commands.spool_file import settled
from nodes.commands.spool_frames import (
    inspection_document,
    inspection_line,
    record_documents,
    stretch_document,
    stretch_line,
)
from nodes.commands.spool_status import status_document, status_lines, status_table
from nodes.commands.spool_verdict import verdict_document, verdict_lines
from nodes.settings import Settings
from schemas.documents import to_json
from schemas.errors import (
    ConfigurationInvalid,
    Damaged,
    DiskReadOnly,
    ExitCode,
    MeshError,
    StoreUnusable,
)
from schemas.limits import SEQ_MAX
from schemas.messages import Lane

__all__ = ["app"]

app = typer.Typer(help="Looks into a spool, beside a running node too.", no_args_is_help=True)

_PAUSE_SECONDS: Final = 0.05
_NICE: Final = 10
_PIPE_WIDTH: Final = 200
_NS: Final = 1_000_000_000
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

_Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="the node's configuration (TOML)")
]
_Directory = Annotated[
    Path | None, typer.Option("--directory", "-d", help="the folder of the spool itself")
]
_Json = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.callback()
def _spool() -> None:
    """Looks into a spool, beside a running node too."""


@app.command()
def status(file: _Config = None, directory: _Directory = None, json: _Json = False) -> None:
    """Tells how each lane stands, how long the space lasts, and what would go first."""
    folder, settings = _place(file, directory)
    with _failing(folder):
        owner = owner_of(folder)
        with look(_disk(folder), _pause) as sight:
            seen = _outlook(sight, settings)
            identity, free_bytes = sight.identity, sight.picture.free_bytes()
        if settings is None:
            report = Report("no --config names the broker to ask")
        elif owner.known and owner.pid is None:
            report = Report("no node runs on it")
        else:
            report = ask(settings)
        told_of = (str(folder), identity, seen, owner, report, free_bytes)
        if json:
            typer.echo(to_json(status_document(*told_of)))
            return
        for line in status_lines(*told_of):
            typer.echo(line)
        console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
        console.print(status_table(seen))


def _outlook(sight: Sight, settings: Settings | None) -> Outlook:
    if settings is None:
        return outlook(sight, DEFAULT_LANES)
    spool = settings.spool
    return outlook(sight, spool.lane_settings(), int(spool.bytes_max), int(spool.headroom))


@app.command(name="inspect")
def inspect_file(
    file: Annotated[Path, typer.Argument(help="a journal, a batch, or a piece in quarantine")],
    records: Annotated[bool, typer.Option("--records", help="decode the records too")] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON lines")] = False,
) -> None:
    """Shows any journal or batch frame by frame, damaged or not, also outside a spool.

    Ends with 0 when all verifies, or all but a torn tail; with 1 when something does not.
    """
    with _failing(file.parent), _piping():
        data = settled(file, _pause)
        inspection = inspect(data)
        _out(
            to_json(inspection_document(str(file), inspection))
            if json
            else inspection_line(str(file), inspection).encode()
        )
        wrong = bool(inspection.wrong)
        for stretch in inspection.stretches:
            tail = stretch.end == len(data) and inspection.kind is not FileKind.BATCH
            wrong |= bool(stretch.wrong) and not (tail and stretch.boot is None)
            if json:
                _out(to_json(stretch_document(stretch, records=records)))
                continue
            _out(stretch_line(stretch).encode())
            for record in record_documents(stretch) if records else ():
                _out(b"            " + to_json(record))
        sys.stdout.flush()
    if wrong:
        sys.exit(ExitCode.FAILED)


@app.command()
def check(file: _Config = None, directory: _Directory = None, json: _Json = False) -> None:
    """Reads everything and says whether it is sound; changes nothing.

    Ends with 0 when it is sound, and with 1 when something is damaged: which file, which numbers,
    and what the node will do about it.
    """
    folder, _ = _place(file, directory)
    os.nice(_NICE)
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with _failing(folder), bar as progress:
        task = progress.add_task("reading", total=None)

        def tell(step: Step) -> None:
            what = f"reading {escaped(step.file)}"
            progress.update(
                task, completed=step.done_bytes, total=step.total_bytes, description=what
            )

        running = owner_of(folder).pid is not None
        verdict = examine(_disk(folder), _pause, tell, running=running)
    if json:
        typer.echo(to_json(verdict_document(verdict)))
    else:
        for line in verdict_lines(verdict):
            typer.echo(line)
    if not verdict.sound:
        sys.exit(ExitCode.FAILED)


@app.command()
def export(
    file: _Config = None,
    directory: _Directory = None,
    lane: Annotated[list[Lane] | None, typer.Option(help="only this lane; repeatable")] = None,
    first: Annotated[int, typer.Option("--from", min=0, help="the lowest number")] = 0,
    last: Annotated[int, typer.Option("--to", min=0, help="the highest number")] = SEQ_MAX,
    since: Annotated[
        str | None, typer.Option(help="made since: RFC 3339, or a time ago: 90s, 15m, 2h, 3d")
    ] = None,
    released: Annotated[
        bool, typer.Option("--released", help="also what was released and is still there")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="as without: it is always JSON")] = False,
) -> None:
    """Prints the pending records as JSON lines, in order within a lane.

    Damage is told on standard error, with its numbers; the rest follows, and the exit code is 1.
    """
    del json
    folder, _ = _place(file, directory)
    wanted = Wanted(first, last, _since(since), released)
    os.nice(_NICE)
    damaged = 0
    with _failing(folder), _piping():
        disk, running = _disk(folder), owner_of(folder).pid is not None
        with look(disk, _pause) as sight:
            for one in lane or list(Lane):
                for item in _extracted(sight, one, wanted, disk, running=running):
                    if isinstance(item, Finding):
                        damaged += 1
                        print(f"holdfast: {escaped(str(item))}", file=sys.stderr)  # noqa: T201
                    else:
                        _out(_line(item))
        sys.stdout.flush()
    if damaged:
        sys.exit(ExitCode.FAILED)


def _extracted(
    sight: Sight, lane: Lane, wanted: Wanted, disk: Disk, *, running: bool
) -> Iterator[Extracted | Finding]:
    return extract(sight, lane, wanted, lambda: look(disk, _pause), running=running)


def _line(item: Extracted) -> bytes:
    identity, record = item.identity, item.record
    return to_json(
        {
            "identity": str(identity),
            "node": identity.node,
            "epoch": identity.epoch,
            "lane": identity.lane,
            "seq": identity.seq,
            "time": told(record.wall_ns),
            "kind": type(record).__name__.lower(),
            "record": record,
        }
    )


# --- the place -------------------------------------------------------------------------------


def _place(file: Path | None, directory: Path | None) -> tuple[Path, Settings | None]:
    """The spool's folder, and the configuration where one was given."""
    if (file is None) == (directory is None):
        raise typer.BadParameter("give either --config FILE or --directory DIR")
    if directory is not None:
        return directory, None
    assert file is not None, "one of the two is there"
    with _failing(file.parent):
        settings = config.load(file)
        if settings.node is None:
            problem = f"{file}: [node] is missing: it says where the spool stands"
            raise ConfigurationInvalid((problem,))
    return settings.node.state_directory / "spool", settings


def _disk(folder: Path) -> Disk:
    return ReadOnlyDisk(SystemDisk(folder))


def _pause() -> None:
    time.sleep(_PAUSE_SECONDS)


def _since(text: str | None) -> int | None:
    """A moment, ns UTC."""
    if text is None:
        return None
    now_ns = SystemClock().now().wall_ns
    try:
        if text[-1:] in _UNITS:
            ago = timedelta(**{_UNITS[text[-1]]: float(text[:-1])})
            return now_ns - int(ago.total_seconds() * _NS)
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is neither RFC 3339, as 2026-11-23T16:00:00Z, nor a time ago, as 90s, 2h, 3d"
        ) from None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(aware.timestamp() * _NS)


# --- the ends --------------------------------------------------------------------------------


def _out(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")


@contextmanager
def _piping() -> Iterator[None]:
    """Ends quietly when the reader of standard output has seen enough."""
    try:
        yield
    except BrokenPipeError:
        # The interpreter flushes once more at its end, and must find somebody who takes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.FINE)


@contextmanager
def _failing(folder: Path) -> Iterator[None]:
    """Tells what is wrong, and where, with the exit code that says whose turn it is."""
    try:
        yield
    except DiskReadOnly as refused:
        hint = "run this as the node's user, or as a member of its group"
        fail(DiskReadOnly(f"{refused}: {hint}"))
    except (Damaged, StoreUnusable) as unusable:
        fail(StoreUnusable(f"{folder}: {unusable}"))
    except MeshError as error:
        fail(error)
